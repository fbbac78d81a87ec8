"""What Keras' own optimizers can do in a workflow, these can: a sweep of one over the other.

Every workflow is run with ours and with Keras' SGD and Adam, which keeps it honest: what Keras
itself cannot do is not asked for.
"""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import AnchorCallback, EntropyAdam, EntropySGD, LocalEntropy, evaluate_at
from esgd_tf import enable_minibatch_gradients as ready
from tests.baselines import rivals
from tests.optimizers import helpers

# Other modules look at what is warned of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OPTIONS = {"langevin_steps": 3, "noise": 0.01, "seed": 1}
# Ours come first: the default tier takes the first.
OPTIMIZERS = {
    "EntropySGD": lambda **o: EntropySGD(0.7, outer_momentum=0.5, **OPTIONS, **o),
    "EntropyAdam": lambda **o: EntropyAdam(0.05, **OPTIONS, **o),
    "LocalEntropy": lambda **o: LocalEntropy(keras.optimizers.Lion(0.01), **OPTIONS, **o),
    "without inner loop": lambda **o: EntropySGD(0.1, 0, outer_momentum=0.9, seed=1, **o),
    **{name: make for name, make in rivals.MAKERS.items()},
    "SGD": lambda **o: keras.optimizers.SGD(0.1, momentum=0.9, **o),
    "Adam": lambda **o: keras.optimizers.Adam(0.01, **o),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
#: Takes gradients where a loop of one's own takes none.
TAKES_GRADIENTS = ("SAM", "ASAM", "GSAM", "LPFSGD")


def network(make, **options):
    options.setdefault("run_eagerly", True)
    return ready(helpers.network(make(), **options))


def fit(model, epochs=1, *more, **options):
    return helpers.fit(model, epochs, callbacks=[AnchorCallback(), *more], **options)


def state(model):
    return helpers.numpy([*model.variables, *model.optimizer.variables])


@every_optimizer
@pytest.mark.few(1)
def test_resume(make, tmp_path):
    """Two epochs, saved and loaded, and two more are four."""
    whole, half = network(make), network(make)
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "model.keras")
    other = ready(keras.models.load_model(tmp_path / "model.keras"))
    fit(other, 2)
    helpers.assert_equal(state(other), state(whole))


@every_optimizer
@pytest.mark.few(1)
def test_weights_into_a_model_that_has_not_trained(make, tmp_path):
    trained = network(make)
    fit(trained, 2)
    trained.save_weights(tmp_path / "model.weights.h5")
    other = network(make, build_in_fit=True)
    other.load_weights(tmp_path / "model.weights.h5")
    helpers.assert_equal(other.get_weights(), trained.get_weights())
    fit(other)
    assert all(np.isfinite(w).all() for w in other.get_weights())


@every_optimizer
@pytest.mark.few(1)
def test_weights_alone_by_a_callback(make, tmp_path):
    path = tmp_path / "{epoch}.weights.h5"
    model = network(make)
    fit(model, 2, keras.callbacks.ModelCheckpoint(path, save_weights_only=True))
    other = network(make, build_in_fit=True)
    other.load_weights(str(path).format(epoch=2))
    helpers.assert_equal(other.get_weights(), model.get_weights())


@every_optimizer
@pytest.mark.few(1)
def test_pickle_and_copy(make):
    model = network(make)
    fit(model, 2)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        ready(twin)
        helpers.assert_equal(twin.get_weights(), model.get_weights())
        fit(twin)
    fit(model)
    helpers.assert_equal(twin.get_weights(), model.get_weights())


@every_optimizer
@pytest.mark.few(1)
def test_clone_and_config(make):
    model = network(make)
    twin = keras.models.clone_model(model)
    config = keras.optimizers.serialize(model.optimizer)
    twin.compile(keras.optimizers.deserialize(config), "mse", run_eagerly=True)
    ready(twin)
    twin.set_weights(model.get_weights())
    for one in (model, twin):
        fit(one, 2)
    helpers.assert_equal(twin.get_weights(), model.get_weights())


@every_optimizer
@pytest.mark.few(1)
def test_compile_again_with_the_same_optimizer(make):
    again, plain = network(make), network(make)
    for model in (again, plain):
        fit(model)
    again.compile(again.optimizer, "mse", metrics=["mae"], run_eagerly=True)
    for model in (again, plain):
        fit(model)
    helpers.assert_equal(again.get_weights(), plain.get_weights())


@every_optimizer
@pytest.mark.few(1)
def test_callbacks_in_any_order(make, tmp_path):
    ends = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)):
        callbacks = [
            AnchorCallback(),
            keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=1.0),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        ]
        model = network(make)
        helpers.fit(model, 2, callbacks=[callbacks[i] for i in order])
        ends.append(model.get_weights())
    for end in ends[1:]:
        helpers.assert_equal(end, ends[0])


@every_optimizer
@pytest.mark.parametrize("by_callback", [True, False])
@pytest.mark.few(1)
def test_rates_that_callbacks_and_users_set(make, by_callback):
    """A rate that is set is the rate that the optimizer might have been made with."""
    config = make().get_config()
    made = ready(helpers.network(type(make()).from_config(with_rate(config, 0.25))))
    set_later = ready(helpers.network(make()))
    callbacks = []
    if by_callback:
        callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch: 0.25)]
    else:
        set_later.optimizer.learning_rate = 0.25
    fit(made, 2)
    fit(set_later, 2, *callbacks)
    assert float(set_later.optimizer.learning_rate) == 0.25
    helpers.assert_equal(set_later.get_weights(), made.get_weights())


def with_rate(config, rate):
    for wrapped in ("outer_optimizer", "inner_optimizer"):
        if wrapped in config:
            config[wrapped]["config"]["learning_rate"] = rate
            return config
    config["learning_rate"] = rate
    return config


@pytest.mark.few(1)
@every_optimizer
def test_weights_of_examples(make):
    model, plain = network(make), network(make)
    n = helpers.BATCH * helpers.STEPS_PER_EPOCH
    fit(model, 1, sample_weight=np.ones(n, "float32"))
    fit(plain)
    helpers.assert_close(model.get_weights(), plain.get_weights(), atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in TAKES_GRADIENTS])
def test_a_training_loop_of_ones_own(name):
    make = OPTIMIZERS[name]
    loop, plain = network(make), network(make)
    x, y = helpers.data()
    for step in range(helpers.STEPS_PER_EPOCH):
        at = slice(step * helpers.BATCH, (step + 1) * helpers.BATCH)
        with tf.GradientTape() as tape:
            loss = loop.compute_loss(x[at], y[at], loop(x[at], training=True))
        variables = loop.trainable_variables
        gradients = tape.gradient(loss, variables)
        if step % 2:
            loop.optimizer.apply(gradients, variables)
        else:
            loop.optimizer.apply_gradients(zip(gradients, variables, strict=True))
    with evaluate_at(loop):
        fit(plain)
        helpers.assert_close(loop.get_weights(), plain.get_weights(), atol=1e-6)


@every_optimizer
@pytest.mark.few(1)
def test_freezing(make):
    first, second = keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((4,)), first, second])
    model.compile(make(), "mse", run_eagerly=True)
    fit(ready(model))
    first.trainable = False
    model.compile(model.optimizer, "mse", run_eagerly=True)
    kept, moving = first.get_weights(), second.get_weights()
    fit(model, 2)
    helpers.assert_equal(first.get_weights(), kept)
    helpers.assert_differ(second.get_weights(), moving)


@pytest.mark.few(1)
@every_optimizer
def test_metrics_losses_and_layers_that_come_late(make, tmp_path):
    """A model that is built by its first minibatch."""
    model = keras.Sequential([keras.layers.Dense(3, "tanh")])
    model.compile(make(), "mse", metrics=["mae"], run_eagerly=True)
    history = fit(ready(model), 2)
    assert set(history.history) == {"loss", "mae"}
    assert history.history["loss"][1] < history.history["loss"][0] * 1.5


@every_optimizer
@pytest.mark.few(1)
def test_optimizer_state_by_hand(make):
    model, other = network(make), network(make)
    fit(model, 2)
    other.set_weights(model.get_weights())
    values = [v.numpy() for v in model.optimizer.variables]
    other.optimizer.set_weights(values)
    for one in (model, other):
        fit(one)
    helpers.assert_equal(other.get_weights(), model.get_weights())
