"""No weight is ever at another place than promised, whatever else Keras does meanwhile."""

import os
import signal
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import AnchorCallback, EntropyAdam, EntropySGD, LocalEntropy, evaluate_at
from tests.optimizers import helpers

L = 4
STEPS = helpers.STEPS_PER_EPOCH  # 5: every epoch ends in the middle of an inner loop
# The anchor moves only if someone moves it.
STILL = {"learning_rate": 0.0, "langevin_steps": L, "noise": 0.01, "seed": 1}


def quiet_fit(model, epochs=1, **options):
    options.setdefault("callbacks", [AnchorCallback()])
    return helpers.fit(model, epochs, **options)


def anchors(model):
    return helpers.numpy(esgd_tf.local_entropy_optimizer(model).anchors())


def weights(model):
    return helpers.numpy(model.trainable_variables)


# ---- averages -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_ema_of_a_fit_shorter_than_one_outer_update():
    model = helpers.network(EntropySGD(langevin_steps=20, use_ema=True))
    start = weights(model)
    quiet_fit(model)
    helpers.assert_equal(weights(model), start)  # no outer update: the anchor is the start


def test_ema_of_a_weight_without_gradient():
    model = helpers.variables(helpers.start_weights())
    optimizer = EntropySGD(0.5, langevin_steps=2, use_ema=True, noise=0.0)
    optimizer.build(model)
    unused = model[1].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': gradients do not exist
        for step in range(6):
            grads = helpers.gradient(helpers.numpy(model), step)
            optimizer.apply([tf.constant(grads[0]), None, tf.constant(grads[2])], model)
    optimizer.finalize_variable_values(model)
    helpers.assert_equal([model[1].numpy()], [unused])
    helpers.assert_differ([model[0].numpy()], helpers.start_weights()[:1])


ALONE = {
    "sgd": (
        lambda **o: EntropySGD(0.1, 0, outer_momentum=0.9, **o),
        lambda **o: keras.optimizers.SGD(0.1, momentum=0.9, **o),
    ),
    "adam": (lambda **o: EntropyAdam(0.05, langevin_steps=0, **o),
             lambda **o: keras.optimizers.Adam(0.05, **o)),
}  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.9},
        {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    ],
    ids=["accumulation", "accumulation and EMA", "EMA"],
)
def test_no_inner_loop_is_the_optimizer_alone_bit_for_bit(name, options):
    ours, plain = (helpers.network(make(**options)) for make in ALONE[name])
    for model in (ours, plain):
        helpers.fit(model, epochs=3)
    helpers.assert_equal(weights(ours), weights(plain))


@pytest.mark.few(1)
@pytest.mark.parametrize("anchor", ["first", "last", "none"])
@pytest.mark.slow
def test_keras_ema_callback_looks_and_leaves_training_alone(anchor):
    """SwapEMAWeights swaps by arithmetic; the inner loop goes on all the same."""
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(weights(self.model))

    options = {"langevin_steps": L, "noise": 0.01, "seed": 1, "use_ema": True, "ema_momentum": 0.5}
    swapped, plain = (helpers.network(EntropySGD(0.7, **options)) for _ in range(2))
    callbacks = [keras.callbacks.SwapEMAWeights()]
    if anchor != "none":
        callbacks.insert(0 if anchor == "first" else 1, AnchorCallback())
    data = helpers.data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no AnchorCallback
        quiet_fit(swapped, 3, callbacks=[*callbacks, Look()], validation_data=data)
    averages = []

    class Averages(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            averages.append(helpers.numpy(self.model.optimizer._model_variables_moving_average))

    quiet_fit(plain, 3, callbacks=[AnchorCallback(), Averages()])
    for looked_at, average in zip(seen, averages, strict=True):
        helpers.assert_close(looked_at, average, atol=1e-5)
    assert int(swapped.optimizer.outer_iterations) == int(plain.optimizer.outer_iterations) == 3
    helpers.assert_close(anchors(swapped), anchors(plain), atol=1e-5)


# ---- the phase ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_phase_is_not_a_matter_of_the_iterations():
    moved, plain = (helpers.network(EntropySGD(0.7, L, noise=0.0)) for _ in range(2))
    moved.optimizer.iterations.assign(1007)
    for model in (moved, plain):
        helpers.train_on_batches(model, 6)
    helpers.assert_equal(weights(moved), weights(plain))
    assert int(moved.optimizer.langevin_phase) == 2


@pytest.mark.parametrize("callbacks", [lambda: [], lambda: [AnchorCallback()]], ids=["", "anchor"])
@pytest.mark.few(1)
def test_epochs_shorter_than_an_inner_loop_move_the_anchor(callbacks):
    model = helpers.network(EntropySGD(0.7, 3 * STEPS))
    start = weights(model)
    for _ in range(3):
        quiet_fit(model, callbacks=callbacks())
    assert int(model.optimizer.outer_iterations) == 1
    helpers.assert_differ(weights(model), start)


# ---- who takes part -----------------------------------------------------------------------------


def test_weights_that_get_their_gradients_in_turn_stay_at_a_still_anchor():
    model = [keras.Variable([1.0, 1.0], name=name) for name in ("generator", "critic")]
    optimizer = EntropySGD(**STILL)
    optimizer.build(model)
    gradient = tf.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': gradients do not exist
        for step in range(3 * L + 1):
            optimizer.apply([gradient, None] if step % 2 else [None, gradient], model)
            if (step + 1) % L == 0:
                helpers.assert_equal(helpers.numpy(model), [np.ones(2, "float32")] * 2)
    helpers.assert_equal(helpers.numpy(optimizer.anchors()), [np.ones(2, "float32")] * 2)


def two_layers(optimizer):
    first, second = (
        keras.layers.Dense(units, "tanh", kernel_initializer=keras.initializers.GlorotUniform(s))
        for s, units in ((1, 5), (2, 3))
    )
    model = keras.Sequential([keras.Input((4,)), first, second])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model, first


@pytest.mark.parametrize("use_ema", [False, True])
@pytest.mark.slow
def test_a_layer_frozen_between_two_fits_stays(use_ema):
    model, layer = two_layers(EntropySGD(0.7, L, use_ema=use_ema, seed=1))
    quiet_fit(model)  # ends in mid-loop, at the anchor
    kept = layer.get_weights()
    layer.trainable = False
    model.compile(model.optimizer, "mse")

    class AtEveryStep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            helpers.assert_equal(layer.get_weights(), kept)

        on_train_batch_end = on_train_batch_begin

    quiet_fit(model, 3, callbacks=[AnchorCallback(), AtEveryStep()])
    helpers.assert_equal(layer.get_weights(), kept)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    layer.trainable = True
    model.compile(model.optimizer, "mse")
    quiet_fit(model, 2)
    helpers.assert_differ(layer.get_weights(), kept)


@pytest.mark.slow
def test_a_layer_frozen_at_its_langevin_weights_goes_to_its_anchor():
    model, layer = two_layers(EntropySGD(0.7, L, seed=1))
    helpers.train_on_batches(model, L + 2)
    anchor = anchors(model)[:2]
    layer.trainable = False
    model.compile(model.optimizer, "mse")
    helpers.train_on_batches(model, L, start=L + 2)
    helpers.assert_equal(layer.get_weights(), anchor)


# ---- weights that someone sets ------------------------------------------------------------------


@pytest.mark.parametrize("between_fits", [True, False])
def test_set_weights_is_not_undone(between_fits):
    model = helpers.network(EntropySGD(**STILL))
    if between_fits:
        quiet_fit(model)
    else:
        helpers.train_on_batches(model, L + 2)
    # A permutation of the same weights.
    new = [w[::-1].copy() if w.ndim > 1 else w + 0.25 for w in model.get_weights()]
    model.set_weights(new)
    helpers.assert_equal(anchors(model), model.get_weights())
    if between_fits:
        quiet_fit(model, 2)
    else:
        helpers.train_on_batches(model, 2 * L, start=L + 2)
    helpers.assert_equal(anchors(model), new)  # whose rate is 0


def test_a_callback_that_clips_weights_is_not_undone():
    """Weight clipping after each minibatch, as the first Wasserstein GANs have it."""
    limit = 0.2

    class Clip(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(tf.clip_by_value(variable.value, -limit, limit))

    model = helpers.network(EntropySGD(1.0, L, 0.5, noise=0.0, seed=1))
    start = weights(model)
    quiet_fit(model, 4, callbacks=[Clip(), AnchorCallback()])
    # Each inner loop ends with an outer step from a clipped anchor to a mean of clipped weights.
    assert max(np.abs(w).max() for w in weights(model)) <= limit + 0.05
    helpers.assert_differ(weights(model), start)


def test_raw_writes_are_seen_and_training_goes_on_from_them():
    model = helpers.network(EntropySGD(**STILL))
    helpers.train_on_batches(model, L + 1)
    for variable in model.trainable_variables:
        variable.value.assign_add(tf.ones_like(variable.value))
    new = model.get_weights()
    helpers.train_on_batches(model, L, start=L + 1)
    helpers.assert_equal(anchors(model), new)


# ---- looking ------------------------------------------------------------------------------------


class TwoPlayers(keras.Model):
    """Two networks, each with an optimizer of its own, which Keras knows nothing of."""

    def __init__(self):
        super().__init__()
        self.one, self.two = helpers.network("sgd"), helpers.network("sgd")
        self.built = True

    def compile(self, optimizers):
        super().compile(loss="mse")  # with Keras' default optimizer
        self.optimizer_of_one, self.others = optimizers[0], {"two": optimizers[1]}

    def call(self, x):
        return self.one(x) + self.two(x)

    def train_step(self, data):
        x, y = data
        pairs = ((self.one, self.optimizer_of_one), (self.two, self.others["two"]))
        for network, optimizer in pairs:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - y) ** 2)
            variables = network.trainable_variables
            optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return {"loss": loss}


@pytest.mark.slow
def test_optimizers_that_are_attributes_are_found():
    model = TwoPlayers()
    optimizers = [EntropySGD(0.5, L, seed=1), EntropyAdam(0.01, langevin_steps=3, seed=2)]
    model.compile(optimizers)
    assert esgd_tf.training.local_entropy_optimizers(model) == optimizers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        helpers.fit(model, callbacks=[])  # without the callback, x' is left in the model
    for optimizer in optimizers:
        assert optimizer._swap.holds() == "langevin"
    langevin, at_anchor = weights(model), [a.numpy() for o in optimizers for a in o.anchors()]
    with evaluate_at(model):
        helpers.assert_equal(weights(model), at_anchor)
    helpers.assert_equal(weights(model), langevin)
    with evaluate_at(model, optimizer=optimizers[0]):
        helpers.assert_equal(weights(model), [*at_anchor[:2], *langevin[2:]])
    helpers.fit(model, callbacks=[AnchorCallback()])
    helpers.assert_equal(weights(model), [a.numpy() for o in optimizers for a in o.anchors()])


def test_optimizers_that_are_kept_elsewhere_are_named_or_missed():
    model = helpers.network("sgd")
    with pytest.warns(UserWarning, match="has the optimizer SGD and no"), evaluate_at(model):
        pass
    with pytest.warns(UserWarning, match="name it by `optimizer=...`"):
        helpers.fit(model, callbacks=[AnchorCallback()])
    with pytest.raises(ValueError, match="must be a LocalEntropy"):
        AnchorCallback(optimizer=keras.optimizers.SGD())
    mine = EntropySGD(0.5, L)
    helpers.run(mine, weights(model), 1)
    with evaluate_at(model, optimizer=mine):
        pass
    AnchorCallback(optimizer=[mine])


@pytest.mark.slow
def test_multi_optimizer():
    first, rest = EntropySGD(0.5, L, seed=1), EntropySGD(0.5, 3, seed=2)
    make = keras.optimizers.MultiOptimizer
    model, layer = two_layers(make(lambda v: first if v.shape[0] == 4 else rest))
    quiet_fit(model, 2)
    assert int(first.outer_iterations) == 2 and int(rest.outer_iterations) == 3
    helpers.assert_equal([layer.kernel.numpy()], helpers.numpy(first.anchors()))
    before = helpers.numpy(model.optimizer.variables)
    model.optimizer.set_weights(before)
    helpers.assert_equal(helpers.numpy(model.optimizer.variables), before)


def in_mid_loop(**options):
    model = helpers.network(EntropySGD(0.7, L, seed=1, **options))
    helpers.train_on_batches(model, L + 2)
    return model


@pytest.mark.slow
def test_fit_inside_the_block_stays_where_training_left_it():
    model, plain = (helpers.network(EntropySGD(0.7, L, seed=1)) for _ in range(2))
    with evaluate_at(model):
        quiet_fit(model)
    quiet_fit(plain)
    helpers.assert_equal(weights(model), weights(plain))
    assert model.optimizer._swap.holds() == "anchor"


def test_building_and_freezing_inside_the_block():
    model = helpers.network(EntropySGD(0.7, L, seed=1), build_in_fit=True)
    before = weights(model)
    with evaluate_at(model):
        model.optimizer.build(model.trainable_variables)
    helpers.assert_equal(weights(model), before)
    model = in_mid_loop()
    anchor = anchors(model)
    with evaluate_at(model):
        model.layers[0].trainable = False
    helpers.assert_equal(model.get_weights(), anchor)  # out of the inner loop for good


@pytest.mark.slow
def test_fit_of_no_epochs_ends_at_the_anchor():
    model = helpers.network(EntropySGD(0.7, L, seed=1))
    quiet_fit(model)
    anchor = weights(model)
    quiet_fit(model, epochs=0)
    helpers.assert_equal(weights(model), anchor)


@pytest.mark.parametrize("look", ["evaluate", "predict"])
def test_evaluate_with_the_callback_alone_goes_to_the_anchor_and_back(look):
    model = in_mid_loop()
    langevin, anchor, seen = weights(model), anchors(model), []

    class Look(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            seen.append(weights(self.model))

        on_predict_batch_begin = on_test_batch_begin

    x, y = helpers.data()
    callbacks = [AnchorCallback(), Look()]
    if look == "evaluate":
        model.evaluate(x, y, verbose=0, callbacks=callbacks)
    else:
        model.predict(x, verbose=0, callbacks=callbacks)
    helpers.assert_equal(seen[0], anchor)
    helpers.assert_equal(weights(model), langevin)


def test_ctrl_c_while_the_weights_move_waits_until_they_have(monkeypatch):
    model = in_mid_loop()
    langevin, anchor = weights(model), anchors(model)
    plain_assign = keras.Variable.assign
    interrupted = []

    def assign(self, value):
        if not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return plain_assign(self, value)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        model.optimizer._swap.place("anchor")
    monkeypatch.undo()
    assert interrupted
    assert model.optimizer._swap.holds() == "anchor"
    helpers.assert_equal(weights(model), anchor)
    model.optimizer._swap.place("langevin")
    helpers.assert_equal(weights(model), langevin)


# ---- callbacks ----------------------------------------------------------------------------------


class Cut(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


@pytest.mark.few(1)
@pytest.mark.parametrize("anchor_first", [True, False])
@pytest.mark.parametrize("make", [lambda: EntropySGD(0.7, L), lambda: EntropyAdam(0.05)])
def test_backup_and_restore_is_exact_in_any_order(make, anchor_first, tmp_path):
    def callbacks(*more):
        both = [AnchorCallback(), keras.callbacks.BackupAndRestore(tmp_path)]
        return [*(both if anchor_first else both[::-1]), *more]

    cut = helpers.network(make())
    with pytest.raises(InterruptedError):
        quiet_fit(cut, 4, callbacks=callbacks(Cut()))
    seed = int(cut.optimizer._seed.numpy())
    restored = helpers.network(make(), build_in_fit=True)
    quiet_fit(restored, 4, callbacks=callbacks())
    whole = helpers.network(make())
    whole.optimizer._seed.assign(seed)
    quiet_fit(whole, 4)
    helpers.assert_equal(weights(restored), weights(whole))
    assert int(restored.optimizer.iterations.numpy()) == 4 * STEPS


@pytest.mark.slow
def test_save_freq_counts_over_epochs_as_keras_does(tmp_path):
    places = {}

    class Place(keras.callbacks.Callback):
        """In the place of a ModelCheckpoint, which says nothing of what it saves."""

        def on_train_batch_end(self, batch, logs=None):
            number = int(self.model.optimizer.iterations.numpy())
            places[number] = self.model.optimizer._swap.holds()

    model = helpers.network(EntropySGD(0.7, 50, seed=1))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=3)
    quiet_fit(model, 3, callbacks=[AnchorCallback(save_freq=3), Place(), checkpoint])
    at_anchor = {number for number, place in places.items() if place == "anchor"}
    assert at_anchor == {3, 6, 9, 12, 15} | {5, 10, 15}
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert len(saved) == 5
    for path in tmp_path.iterdir():
        loaded = esgd_tf.load_model(path)
        assert loaded.optimizer._swap.holds() == "anchor", path


@pytest.mark.slow
def test_forgetting_the_callback_is_told_once():
    data = helpers.data()
    model = helpers.network(EntropySGD(0.7, L, seed=1))
    with pytest.warns(UserWarning) as caught:
        quiet_fit(model, 3, callbacks=[], validation_data=data)
    told = [w for w in caught if "AnchorCallback" in str(w.message)]
    assert len(told) == 1
    assert "evaluated at its Langevin weights x', after 1 of 4 steps" in str(told[0].message)
    assert told[0].filename == helpers.__file__  # the line that called `fit`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        aware, at_phase_zero = (helpers.network(EntropySGD(0.7, L, seed=1)) for _ in range(2))
        quiet_fit(aware, 2, validation_data=data)
        quiet_fit(at_phase_zero, 1, callbacks=[], validation_data=data, steps_per_epoch=L)
        with evaluate_at(model, "langevin"):
            model.evaluate(*data, verbose=0)


def test_the_callback_is_seen_where_the_number_of_minibatches_is_not_known():
    x, y = helpers.data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).filter(lambda *_: True)
    model = helpers.network(EntropySGD(0.7, L, seed=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(batches, validation_data=(x, y), verbose=0, callbacks=[AnchorCallback()])
    assert not [w for w in caught if "Langevin" in str(w.message)]


def test_a_fit_that_ends_before_the_anchor_has_moved_is_told():
    model = helpers.network(EntropySGD(0.7, 3 * STEPS, seed=1))
    start = weights(model)
    with pytest.warns(UserWarning, match="ended after 5 of the 15 steps of its first inner loop"):
        quiet_fit(model)
    helpers.assert_equal(weights(model), start)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quiet_fit(model, 2)
        quiet_fit(model)
    helpers.assert_differ(weights(model), start)


@pytest.mark.slow
def test_a_file_saved_at_the_langevin_weights_says_so(tmp_path):
    model = in_mid_loop()
    anchor, langevin = anchors(model), weights(model)
    with pytest.warns(UserWarning, match="saved at its Langevin weights"):
        model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="saved in the middle of an inner loop"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    helpers.assert_equal(weights(loaded), langevin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        at_anchor = esgd_tf.load_model(tmp_path / "model.keras")
    helpers.assert_equal(weights(at_anchor), anchor)
    for trained in (model, loaded, at_anchor):
        trained.optimizer._swap.place("langevin")
        helpers.train_on_batches(trained, L, start=L + 2)
        helpers.assert_equal(weights(trained), weights(model))


@pytest.mark.slow
def test_an_outer_optimizer_with_state_leaves_frozen_weights_alone():
    model, layer = two_layers(LocalEntropy(keras.optimizers.Adam(0.1), L, seed=1))
    quiet_fit(model)
    kept = layer.get_weights()
    layer.trainable = False
    model.compile(model.optimizer, "mse")
    quiet_fit(model, 2)
    helpers.assert_equal(layer.get_weights(), kept)
