"""What all rivals have in common: limits, modes, saving, configuration, weights left alone."""

import json

import keras
import numpy as np
import pytest

import esgd_tf
from tests.baselines import rivals
from tests.optimizers import helpers

every_rival = pytest.mark.parametrize("name", rivals.MAKERS)
# Files are saved in the middle on purpose here.
pytestmark = pytest.mark.filterwarnings("ignore:The model is", "ignore:This file was saved at")


class TestLimits:
    """With these arguments each is its inner optimizer, bit for bit."""

    @pytest.mark.parametrize("name", rivals.PLAIN)
    @pytest.mark.few(4)
    def test_on_one_device(self, name):
        plain, tested = (rivals.with_state(make()) for make in (rivals.sgd, rivals.PLAIN[name]))
        logs = [helpers.fit(model, epochs=2).history for model in (plain, tested)]
        assert logs[0] == logs[1]
        helpers.assert_equal(plain.get_weights(), tested.get_weights())

    @pytest.mark.parametrize("name", rivals.PLAIN)
    @pytest.mark.few(1)
    def test_on_two_devices(self, name, two_cpus):
        with two_cpus.scope():
            plain, tested = (rivals.with_state(make()) for make in (rivals.sgd, rivals.PLAIN[name]))
            for model in (plain, tested):
                helpers.fit(model, epochs=2)
        helpers.assert_equal(plain.get_weights(), tested.get_weights())


EAGER = {}


def eager_weights(name):
    """Train eagerly once for all modes."""
    if name not in EAGER:
        EAGER[name] = state_after(name, run_eagerly=True)
    return EAGER[name]


def state_after(name, **options):
    """Train for ten steps; return all there is."""
    model = rivals.network(rivals.MAKERS[name](weight_decay=0.01, clipnorm=2.0), **options)
    helpers.fit(model, epochs=2)
    fingerprints = getattr(model.optimizer._swap, "_fingerprints", None)
    variables = [v for v in model.optimizer.variables if v is not fingerprints]
    return helpers.numpy([*model.trainable_variables, *variables])


@every_rival
@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}, {"steps_per_execution": 3}],
    ids=["graph", "xla", "steps_per_execution"],
)
def test_mode(float64, name, options):
    helpers.assert_close(state_after(name, **options), eager_weights(name), rtol=1e-6, atol=1e-10)


@every_rival
def test_resume_in_the_middle(name, tmp_path):
    model = rivals.network(rivals.MAKERS[name](), run_eagerly=True)
    helpers.train_on_batches(model, 4)
    model.save(tmp_path / "model.keras")
    other = esgd_tf.enable_minibatch_gradients(keras.models.load_model(tmp_path / "model.keras"))
    other.run_eagerly = True
    for trained in (model, other):
        helpers.train_on_batches(trained, 6, start=4)
    left, right = (helpers.numpy([*m.variables, *m.optimizer.variables]) for m in (model, other))
    helpers.assert_equal(left, right)


@every_rival
def test_config_round_trip(name):
    optimizer = rivals.MAKERS[name](
        weight_decay=0.01, skip_nonfinite=True, learning_rate_multipliers={"kernel": 2.0},
        clipvalue=1.5,
    )  # fmt: skip
    config = optimizer.get_config()
    restored = keras.optimizers.deserialize(
        json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    )
    assert type(restored) is type(optimizer)
    assert restored.get_config() == config
    assert {
        "weight_decay": 0.01,
        "skip_nonfinite": True,
        "clipvalue": 1.5,
    }.items() <= config.items()
    assert float(restored.learning_rate) == 0.125


@every_rival
@pytest.mark.few(2)
def test_a_restored_optimizer_takes_the_same_steps(name):
    optimizer = rivals.MAKERS[name](weight_decay=0.01)
    restored = type(optimizer).from_config(optimizer.get_config())
    results = [rivals.recorded(o, run_eagerly=True)[1].get_weights() for o in (optimizer, restored)]
    helpers.assert_equal(*results)


@every_rival
def test_weight_decay_is_a_term_of_the_gradient(name, float64):
    """At a point without a gradient of its own, w ← w - lr weight_decay w; excluded ones stay."""
    model = rivals.network(rivals.MAKERS[name](weight_decay=0.5), run_eagerly=True)
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    twin = rivals.network(rivals.MAKERS[name](), run_eagerly=True)
    for one in (model, twin):
        helpers.train_on_batches(one, 1)
    start = helpers.network("sgd").get_weights()
    kernel, bias = (a - b for a, b in zip(model.get_weights(), twin.get_weights(), strict=True))
    np.testing.assert_allclose(kernel, -0.125 * 0.5 * start[0], atol=1e-12)
    np.testing.assert_array_equal(bias, 0.0)


@every_rival
@pytest.mark.few(3)
def test_a_minibatch_of_nan_is_left_out(name):
    x, y = helpers.data()
    poisoned = x.copy()
    poisoned[10, 0] = np.nan  # the second of five minibatches
    model = rivals.network(rivals.MAKERS[name](skip_nonfinite=True))
    esgd_tf.training.skip_nonfinite(model)
    history = model.fit(poisoned, y, batch_size=8, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.optimizer.skipped == 1
    assert int(model.optimizer.outer_iterations) == 4
    clean = rivals.network(rivals.MAKERS[name](skip_nonfinite=True))
    keep = np.r_[0:8, 16:40]
    clean.fit(x[keep], y[keep], batch_size=8, shuffle=False, verbose=0)
    helpers.assert_equal(model.get_weights(), clean.get_weights())


@every_rival
@pytest.mark.few(4)
def test_frozen_layers_stay(name):
    model = rivals.with_state(rivals.MAKERS[name](), run_eagerly=True)
    helpers.train_on_batches(model, 1)
    with esgd_tf.evaluate_at(model):
        expected = model.layers[0].get_weights()
    model.layers[0].trainable = False
    helpers.fit(model)
    helpers.assert_equal(model.layers[0].get_weights(), expected)


@every_rival
def test_arguments_are_part_of_the_traced_step(name):
    optimizer = rivals.MAKERS[name]()
    for argument in optimizer._arguments():
        attribute = {"momentum": None}.get(argument, argument)
        if attribute is not None:
            with pytest.raises(AttributeError, match="cannot be changed"):
                setattr(optimizer, attribute, 1)
    optimizer.learning_rate = 0.5
    assert float(optimizer.learning_rate) == 0.5


@every_rival
def test_what_cannot_be_inside(name):
    make = type(rivals.MAKERS[name]())
    needed = {"start": 1, "every": 1} if name == "SWA" else {}
    with pytest.raises(ValueError, match=f"inner optimizer cannot be a .*wrap {name} in it"):
        make(keras.optimizers.LossScaleOptimizer(rivals.sgd()), **needed)
    with pytest.raises(ValueError, match="cannot be an EntropySGD"):
        make(esgd_tf.EntropySGD(), **needed)
    with pytest.raises(ValueError, match=f"set it on {name}"):
        make(keras.optimizers.SGD(global_clipnorm=1.0), **needed)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: esgd_tf.SAM("sgd", rho=-1), "`rho` must be"),
        (lambda: esgd_tf.ASAM("sgd", eta=np.nan), "`eta` must be"),
        (lambda: esgd_tf.GSAM("sgd", alpha="much"), "`alpha` must be"),
        (lambda: esgd_tf.LPFSGD("sgd", samples=0), "`samples` must be"),
        (lambda: esgd_tf.LPFSGD("sgd", growth=0.5), "`growth`"),
        (lambda: esgd_tf.SWA("sgd", start=-1, every=1), "`start` must be"),
        (lambda: esgd_tf.SWA("sgd", start=1, every=0), "`every` must be"),
        (lambda: esgd_tf.EMA("sgd", momentum=1.0), "`momentum` must be"),
        (lambda: esgd_tf.Lookahead("sgd", steps=0), "`steps` must be"),
        (lambda: esgd_tf.Lookahead("sgd", alpha=1.5), "`alpha` must be"),
        (lambda: esgd_tf.SAM("sgd", learning_rate=0.1), "belongs to the inner optimizer"),
    ],
)  # fmt: skip
def test_bad_arguments(make, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)
