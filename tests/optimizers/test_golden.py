"""Trajectories recorded from the original codes and from Algorithm 1, to 1e-10."""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import EntropySGD, LocalEntropy, langevin
from tests.optimizers import helpers

FOLDER = Path(__file__).parent / "golden"
INPUTS = dict(np.load(FOLDER / "inputs.npz"))
A, B, X0 = INPUTS["A"], INPUTS["b"], INPUTS["x0"]
RATE, AVERAGING = 0.1, 0.75
TOLERANCE = 1e-10
FAMILIES = ("paper", "lua", "torch")


def load():
    cases = []
    for family in FAMILIES:
        archive = np.load(FOLDER / f"{family}.npz")
        for i, case in enumerate(json.loads(str(archive["cases_json"]))):
            arrays = {k: archive[f"{i}_{k}"] for k in ("x", "xp", "g") if f"{i}_{k}" in archive}
            cases.append(case | arrays | {"family": family, "number": i})
    return cases


def name(case):
    keys = ("momentum", "nesterov", "wd", "gamma", "scoping", "noise", "lr")
    return "-".join([case["family"], case["group"], *(f"{key}={case[key]}" for key in keys)])


CASES = load()


class OriginalSGD(keras.optimizers.Optimizer):
    """Momentum and L2 term of the original codes.

    Keras' SGD rounds its momentum to float32, and keeps its decay out of the momentum.
    """

    def __init__(self, learning_rate, momentum, nesterov, l2):
        super().__init__(learning_rate=learning_rate)
        self.momentum, self.nesterov, self.l2 = momentum, nesterov, l2

    def build(self, variables):
        super().build(variables)
        self.buffers = self.add_optimizer_variables(variables, "buffer")

    def update_step(self, gradient, variable, learning_rate):
        gradient = gradient + self.l2 * variable
        buffer = self.buffers[self._get_variable_index(variable)]
        buffer.assign(self.momentum * buffer + gradient)
        step = gradient + self.momentum * buffer if self.nesterov else buffer
        variable.assign(variable - learning_rate * step)


def gradient(weights, step=None):
    return [A @ weights[0] - B]


def optimizer(case):
    """Return the public optimizer that ought to follow the recorded trajectory."""
    inner = {
        "langevin_steps": case["L"],
        "langevin_learning_rate": RATE,
        "gamma": case["gamma"],
        "scoping": 0.0 if case["family"] == "torch" else case["scoping"],
        "noise": 0.0,
        "averaging": AVERAGING,
        "momentum": case["momentum"],
        "nesterov": case["nesterov"],
        "weight_decay": case["wd"] if case["L"] else 0.0,
    }
    # The Lua code has outer momentum only for L = 0.
    outer_momentum = 0.0 if case["family"] == "lua" and case["L"] else case["momentum"]
    if outer_momentum or case["wd"]:
        outer = OriginalSGD(case["lr"], outer_momentum, case["nesterov"], case["wd"])
        return LocalEntropy(outer, **inner)
    return EntropySGD(case["lr"], **inner)


def start_buffer(optimizer, case):
    """The PyTorch code starts its outer momentum buffer at the gradient at x0."""
    if case["family"] == "torch" and case["momentum"]:
        optimizer.outer_optimizer.buffers[0].assign(gradient([X0])[0])


def assert_follows(held, case):
    steps = max(case["L"], 1)
    x = np.array([X0, *held[steps - 1 :: steps]])
    np.testing.assert_allclose(x, case["x"], rtol=0, atol=TOLERANCE)
    if case["L"] > 1:
        langevin_weights = np.reshape(held, (10, steps, 10))[:, :-1]
        np.testing.assert_allclose(langevin_weights, case["xp"][:, :-1], rtol=0, atol=TOLERANCE)


def test_inputs():
    loss = 0.5 * X0 @ A @ X0 - B @ X0
    np.testing.assert_allclose(loss, INPUTS["f_eval0"], rtol=1e-14)
    np.testing.assert_allclose(A @ X0 - B, INPUTS["grad_eval0"], rtol=1e-13)
    families = [(case["family"], case["L"]) for case in CASES]
    for family in FAMILIES:
        for steps in (1, 5, 20):
            assert (family, steps) in families


@pytest.mark.parametrize("case", [c for c in CASES if not c["noise"]], ids=name)
@pytest.mark.few(8)
def test_public_optimizer(float64, case):
    tested = optimizer(case)
    variable = keras.Variable(X0, dtype="float64")
    tested.build([variable])
    start_buffer(tested, case)

    def step():
        tested.apply([tf.linalg.matvec(A, variable) - B], [variable])

    if case["L"] == 20:
        step = tf.function(step)  # two hundred steps are worth a trace
    held = []
    for _ in range(10 * max(case["L"], 1)):
        step()
        held.append(variable.numpy())
    assert_follows(held, case)


class Quadratic(keras.Model):
    """The weights are one vector, the output is the loss."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(
            shape=X0.shape, initializer=lambda shape, dtype: tf.constant(X0, dtype), name="w"
        )

    def call(self, inputs):
        w = tf.convert_to_tensor(self.w)
        loss = 0.5 * tf.tensordot(w, tf.linalg.matvec(A, w), 1) - tf.tensordot(B, w, 1)
        return loss + 0.0 * inputs


def hardest(family):
    def key(case):
        return (case["L"] == 5, case["nesterov"], case["scoping"], case["gamma"])

    return max((c for c in CASES if c["family"] == family and not c["noise"]), key=key)


@pytest.mark.parametrize("case", [hardest(family) for family in FAMILIES], ids=name)
def test_fit(float64, case):
    model = Quadratic()
    model.compile(optimizer(case), loss=lambda _, loss: tf.reduce_mean(loss))
    model.build((1, 1))
    model.optimizer.build(model.trainable_variables)
    start_buffer(model.optimizer, case)
    record = helpers.Record()
    zeros = np.zeros((10 * case["L"], 1))
    model.fit(zeros, zeros, batch_size=1, verbose=0, callbacks=[record])
    assert_follows([weights for (weights,) in record.weights], case)


@pytest.mark.parametrize("case", [c for c in CASES if c["L"]], ids=name)
def test_pure_rules(case):
    m, lr = case["momentum"], case["lr"]
    x, buffer = X0, gradient([X0])[0]
    for t in range(10):
        gamma = case["gamma"]
        if case["family"] != "torch":
            gamma *= (1 + case["scoping"]) ** (t + 1)
        assert gamma == pytest.approx(case["g"][t], rel=1e-14)
        # The original codes subtract their noise, the algorithm adds it and prints another scale.
        noise_scale = math.sqrt(RATE) if case["family"] == "paper" else -math.sqrt(2 * RATE)
        state = langevin.start(x)
        for step in range(case["L"]):
            state = langevin.langevin_step(
                state,
                x,
                gradient([state.weights])[0],
                learning_rate=RATE,
                gamma=gamma,
                averaging=AVERAGING,
                momentum=m,
                nesterov=case["nesterov"],
                weight_decay=case["wd"],
                displacement=noise_scale * case["noise"] * INPUTS["noise_seq"][t, step],
            )
            np.testing.assert_allclose(state.weights, case["xp"][t, step], rtol=0, atol=TOLERANCE)
        r = langevin.outer_gradient(x, state.mean)
        if case["family"] == "torch":
            r = r + case["wd"] * x
            if m:
                buffer = m * buffer + r
                r = r + m * buffer
        x = x - lr * r
        np.testing.assert_allclose(x, case["x"][t + 1], rtol=0, atol=TOLERANCE)
