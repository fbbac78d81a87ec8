"""evaluate_at and AnchorCallback: the right weights everywhere, and x' back bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import AnchorCallback, EntropySGD, evaluate_at
from tests.tracing import build_before_fit

STEPS = 8  # a pass over the data; 8 mod L = 3 is in the middle of an inner loop
L = 5


def data(n=64, features=6, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)).astype("float32")
    return x, (x @ rng.normal(size=(features, classes))).argmax(1)


def build(optimizer=None, normalised=False, **compile_arguments):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6,)), keras.layers.Dense(8, activation="tanh")]
    if normalised:
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=3)]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    model.compile(
        optimizer=optimizer or EntropySGD(langevin_steps=L, seed=1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **compile_arguments,
    )
    return model


def fit(model, epochs=1, **arguments):
    x, y = data()
    build_before_fit(model, x, y)
    arguments.setdefault("callbacks", [AnchorCallback()])
    return model.fit(x, y, batch_size=64 // STEPS, epochs=epochs, shuffle=False, verbose=0,
                     **arguments)  # fmt: skip


def in_the_middle(**arguments):
    """A model in phase 3 of 5 that holds x', as it does inside `fit`."""
    model = build(**arguments)
    fit(model)
    model.optimizer._swap.place("langevin")  # `fit` ends at the anchor
    assert int(model.optimizer.langevin_phase) == STEPS % L != 0
    return model


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def slots(model, which):
    optimizer = esgd_tf.training.local_entropy_optimizer(model)
    return [v.numpy() for v in getattr(optimizer._loop, f"{which}s")]


@pytest.mark.parametrize("where", ["anchor", "mean"])
@pytest.mark.few(1)
def test_holds_the_weights_asked_for_and_gives_x_prime_back(where):
    model = in_the_middle()
    langevin, wanted = weights(model), slots(model, where)
    assert not equal(langevin, wanted)
    with evaluate_at(model, where):
        assert equal(weights(model), wanted)
    assert equal(weights(model), langevin)
    assert equal(slots(model, where), wanted)
    with evaluate_at(model, "langevin"):
        assert equal(weights(model), langevin)


def test_restores_after_an_exception_and_after_changes_inside():
    model = in_the_middle()
    langevin, anchor, mean = weights(model), slots(model, "anchor"), slots(model, "mean")
    with pytest.raises(RuntimeError, match="on purpose"), evaluate_at(model):
        for variable in model.trainable_variables:
            variable.assign(variable + 1.0)
        raise RuntimeError("on purpose")
    assert equal(weights(model), langevin)
    assert equal(slots(model, "anchor"), anchor)
    assert equal(slots(model, "mean"), mean)


@pytest.mark.slow
def test_contexts_nest():
    model = in_the_middle()
    langevin, anchor, mean = weights(model), slots(model, "anchor"), slots(model, "mean")
    with evaluate_at(model, "anchor"):
        with evaluate_at(model, "mean"):
            assert equal(weights(model), mean)
            with evaluate_at(model, "langevin"):
                assert equal(weights(model), langevin)
        assert equal(weights(model), anchor)
    assert equal(weights(model), langevin)


def test_training_is_the_same_with_and_without_looking():
    looked, alone = in_the_middle(), in_the_middle()
    with evaluate_at(looked, "mean"):
        looked.evaluate(*data(), verbose=0)
    fit(looked, epochs=2)
    fit(alone, epochs=2)
    assert equal(weights(looked), weights(alone))


@pytest.mark.slow
def test_training_inside_the_block_stays():
    model, reference = in_the_middle(), in_the_middle()
    with evaluate_at(model):
        fit(model)
    fit(reference)
    with evaluate_at(reference, "langevin"):
        after = weights(reference)
    with evaluate_at(model, "langevin"):
        assert equal(weights(model), after)


@pytest.mark.slow
def test_two_fits_are_one_long_fit():
    twice, once = build(), build()
    fit(twice)
    fit(twice)
    fit(once, epochs=2)
    assert equal(weights(twice), weights(once))


@pytest.mark.slow
def test_without_the_callback_outer_updates_go_on_all_the_same():
    model = build(EntropySGD(langevin_steps=20, seed=1))
    start = weights(model)
    for _ in range(3):  # 8 steps each: none is a whole inner loop
        fit(model, callbacks=[])
    assert int(model.optimizer.outer_iterations.numpy()) == 1
    assert int(model.optimizer.langevin_phase) == 4
    assert not equal(weights(model), start)


def test_other_optimizers_and_phase_zero_have_one_place():
    for model in (build(keras.optimizers.SGD(0.1)), build()):
        before = weights(model)
        with evaluate_at(model, "mean"):
            assert equal(weights(model), before)
            model.layers[0].kernel.assign(model.layers[0].kernel * 2)
        assert equal(weights(model), before)


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="anchor"), evaluate_at(build(), "average"):
        pass


@pytest.mark.slow
def test_looks_through_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    model = build()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    fit(model)
    inner = model.optimizer.inner_optimizer
    inner._swap.place("langevin")
    anchor, langevin = slots(model, "anchor"), weights(model)
    with evaluate_at(model):
        assert equal(weights(model), anchor)
    assert equal(weights(model), langevin)


@pytest.mark.slow
def test_on_two_devices(two_cpus):
    with two_cpus.scope():
        model = in_the_middle()
    langevin, anchor = weights(model), slots(model, "anchor")
    with evaluate_at(model):
        assert equal(weights(model), anchor)
        for variable in model.trainable_variables:  # on every device
            assert all(np.array_equal(v, variable.numpy()) for v in variable.value.values)
    assert equal(weights(model), langevin)
    for variable in model.trainable_variables:
        assert all(np.array_equal(v, variable.numpy()) for v in variable.value.values)


class Witness(keras.callbacks.Callback):
    """Remembers where the model stood at each of Keras' hooks."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def look(self, hook):
        optimizer = self.model.optimizer
        place = "langevin"
        if int(optimizer.langevin_phase) != 0:
            place = ("langevin", "anchor", "mean")[int(optimizer._swap._held.numpy())]
        self.seen.setdefault(hook, []).append(place)

    def on_train_batch_end(self, batch, logs=None):
        self.look("batch")

    def on_test_begin(self, logs=None):
        self.look("test")

    def on_epoch_end(self, epoch, logs=None):
        self.look("epoch")


def test_callback_puts_validation_and_the_end_of_epochs_at_the_anchor():
    witness, model = Witness(), build()
    fit(model, epochs=2, callbacks=[AnchorCallback(), witness], validation_data=data())
    assert witness.seen["test"] == ["anchor", "anchor"]
    assert witness.seen["epoch"] == ["anchor", "anchor"]
    assert witness.seen["batch"][: STEPS - 1] == ["langevin"] * (STEPS - 1)
    plain = build()
    fit(plain, epochs=2)
    assert equal(weights(model), weights(plain))


@pytest.mark.slow
def test_callback_with_a_dataset_of_unknown_length():
    x, y = data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).filter(lambda *_: True)
    witness, model = Witness(), build()
    assert not model.optimizer.built  # `fit` does it here
    model.fit(batches, epochs=1, verbose=0, callbacks=[AnchorCallback(), witness])
    assert witness.seen["epoch"] == ["anchor"]


@pytest.mark.slow
def test_save_freq_goes_to_the_anchor_every_so_many_batches():
    witness, model = Witness(), build(EntropySGD(langevin_steps=50, seed=1))
    fit(model, callbacks=[AnchorCallback(save_freq=3), witness])
    assert witness.seen["batch"] == [
        "anchor" if (k + 1) % 3 == 0 or k + 1 == STEPS else "langevin" for k in range(STEPS)
    ]
    plain = build(EntropySGD(langevin_steps=50, seed=1))
    fit(plain)
    with evaluate_at(model, "langevin"), evaluate_at(plain, "langevin"):
        assert equal(weights(model), weights(plain))
    with pytest.raises(ValueError, match="save_freq"):
        AnchorCallback(save_freq=0)


def test_model_checkpoint_saves_the_anchor_and_can_be_resumed(tmp_path):
    model = build()
    path = tmp_path / "{epoch}.keras"
    fit(model, epochs=2, callbacks=[AnchorCallback(), keras.callbacks.ModelCheckpoint(path)])
    loaded = keras.models.load_model(tmp_path / "1.keras")
    assert int(loaded.optimizer.langevin_phase) == STEPS % L
    assert equal(weights(loaded), slots(loaded_at_langevin(tmp_path / "1.keras"), "anchor"))
    fit(loaded)
    assert equal(weights(loaded), weights(model))


def loaded_at_langevin(path):
    model = keras.models.load_model(path)
    model.optimizer._swap.place("langevin")
    return model


def test_early_stopping_brings_back_the_anchor_of_the_best_epoch():
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(weights(self.model))

    model = build()
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", mode="max", patience=1, restore_best_weights=True
    )  # the loss falls, so the first epoch is the best
    fit(model, epochs=5, callbacks=[AnchorCallback(), Keep(), stop])
    assert len(kept) == 2
    assert equal(weights(model), kept[0])
    # Training that goes on starts from there, not from the x' of the second epoch.
    x, y = data()
    model.fit(x, y, batch_size=8, steps_per_epoch=1, verbose=0, callbacks=[AnchorCallback()])
    assert int(model.optimizer.langevin_phase) == (2 * STEPS + 1) % L
    assert equal(weights(model), kept[0])  # the anchor still, in the middle of the inner loop
