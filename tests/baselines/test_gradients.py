"""The training step that takes gradients elsewhere, and what it says where it cannot be had."""

import keras
import numpy as np
import pytest

import esgd_tf
from tests.baselines import rivals
from tests.optimizers import helpers

takes_gradients = pytest.mark.parametrize("name", ["SAM", "ASAM", "GSAM", "LPFSGD"])


@takes_gradients
def test_a_step_without_it_is_refused(name):
    model = helpers.network(rivals.MAKERS[name](), run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"call `esgd_tf.enable_minibatch_gradients\(model\)`"):
        helpers.fit(model)
    helpers.assert_equal(model.get_weights(), before)


def test_a_model_with_another_optimizer_is_returned_as_it_is():
    model = helpers.network("sgd")
    step = model.train_step
    assert esgd_tf.enable_minibatch_gradients(model) is model
    assert model.train_step == step


def test_twice_is_once():
    model = rivals.network(rivals.MAKERS["SAM"](), run_eagerly=True)
    esgd_tf.enable_minibatch_gradients(model)
    helpers.train_on_batches(model, 1)
    assert int(model.optimizer.iterations) == 1


def test_a_model_that_is_not_compiled():
    with pytest.raises(ValueError, match="has no optimizer"):
        esgd_tf.enable_minibatch_gradients(keras.Sequential([keras.Input((4,))]))


def test_a_model_with_a_step_of_its_own():
    class Own(keras.Sequential):
        def train_step(self, data):
            raise AssertionError

    model = Own([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(rivals.MAKERS["SAM"](), loss="mse")
    with pytest.raises(ValueError, match="has a `train_step` of its own"):
        esgd_tf.enable_minibatch_gradients(model)


def test_a_step_that_others_have_changed():
    model = helpers.network(rivals.MAKERS["SAM"](skip_nonfinite=True))
    esgd_tf.training.skip_nonfinite(model)
    with pytest.raises(ValueError, match="before other changes of the step"):
        esgd_tf.enable_minibatch_gradients(model)


class Rich(keras.Model):
    """Two inputs, two outputs, losses of layers, sample weights, an embedding, an unused weight."""

    def __init__(self):
        super().__init__()
        self.embed = keras.layers.Embedding(5, 3)
        self.dense = keras.layers.Dense(
            3, "tanh", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(0.1)
        )
        self.norm = keras.layers.BatchNormalization()
        self.unused = self.add_weight(shape=(2,), name="unused")

    def call(self, inputs, training=False):
        tokens, x = inputs
        h = self.dense(self.embed(tokens) + x)
        return {"a": self.norm(h, training=training), "b": keras.ops.sum(h, axis=-1, keepdims=True)}


def rich(optimizer, **options):
    keras.utils.set_random_seed(6)
    model = Rich()
    generator = np.random.default_rng(1)
    x = (generator.integers(0, 5, 12), generator.normal(size=(12, 3)).astype("float32"))
    y = {
        "a": generator.normal(size=(12, 3)).astype("float32"),
        "b": generator.normal(size=(12, 1)).astype("float32"),
    }
    model(x)
    model.compile(
        optimizer, loss={"a": "mse", "b": "mae"}, loss_weights={"a": 0.5, "b": 2.0},
        metrics={"a": ["mae"]}, **options,
    )  # fmt: skip
    weight = {"a": np.linspace(0.5, 1.5, 12), "b": np.linspace(1.5, 0.5, 12)}
    return esgd_tf.enable_minibatch_gradients(model), (x, y, weight)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", [n for n in rivals.PLAIN if n != "EMA"])
@pytest.mark.few(2)
def test_a_rich_model_is_trained_as_keras_trains_it(name):
    results = []
    for make in (rivals.sgd, rivals.PLAIN[name]):
        model, (x, y, weight) = rich(make())
        # Nine steps: the tenth would be where `SWA of one` has its one.
        logs = model.fit(
            x, y, sample_weight=weight, batch_size=4, epochs=3, verbose=0, shuffle=False
        ).history
        results.append((logs, model.get_weights()))
    (plain_logs, plain), (logs, tested) = results
    assert logs == plain_logs
    helpers.assert_equal(tested, plain)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_parts_of_a_rich_model(float64):
    """Cut in two, without noise: the means of the parts' losses, and all metrics."""
    results = []
    for make in (rivals.sgd(), esgd_tf.LPFSGD(rivals.sgd(), gamma=0.0, samples=2)):
        model, (x, y, weight) = rich(make, run_eagerly=True)
        model.norm.trainable = False  # it would normalise each part by itself,
        model.dense.activity_regularizer = None  # and this sums over examples
        logs = model.fit(
            x, y, sample_weight=weight, batch_size=4, epochs=2, verbose=0, shuffle=False
        ).history
        results.append((logs, model.get_weights()))
    (plain_logs, plain), (logs, tested) = results
    assert logs.keys() == plain_logs.keys()
    for key, values in logs.items():
        np.testing.assert_allclose(values, plain_logs[key], rtol=1e-6)
    helpers.assert_close(tested, plain, atol=1e-8)


@takes_gradients
@pytest.mark.few(2)
def test_loss_scaling_changes_nothing(name):
    """A scale that is a power of two, undone before the step: the same weights to the bit."""
    scaled = keras.optimizers.LossScaleOptimizer(rivals.MAKERS[name](), initial_scale=2.0**10)
    plain = rivals.network(rivals.MAKERS[name]())
    tested = rivals.network(scaled)
    for model in (plain, tested):
        helpers.fit(model)
    helpers.assert_close(tested.get_weights(), plain.get_weights(), rtol=2e-6, atol=1e-7)


@takes_gradients
@pytest.mark.few(1)
def test_half_precision(name):
    keras.config.set_dtype_policy("mixed_float16")
    model = rivals.with_state(rivals.MAKERS[name]())
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    losses = helpers.fit(model, epochs=6).history["loss"]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert int(model.optimizer.inner_optimizer.iterations) > 20


@takes_gradients
def test_clipping_acts_on_the_gradient_of_the_step(name, float64):
    """With plain SGD inside and a small bound, the step is as long as the bound says."""
    maker = {
        "SAM": esgd_tf.SAM, "ASAM": esgd_tf.ASAM, "GSAM": esgd_tf.GSAM, "LPFSGD": esgd_tf.LPFSGD
    }[name]  # fmt: skip
    model = rivals.network(maker(keras.optimizers.SGD(1.0), global_clipnorm=1e-3), run_eagerly=True)
    before = model.get_weights()
    helpers.train_on_batches(model, 1)
    moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
    assert rivals.norm(moved) == pytest.approx(1e-3, rel=1e-6)
