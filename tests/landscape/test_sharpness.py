"""Sharpness against closed forms and plain loops."""

import json

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import sharpness
from tests.landscape.problems import (
    cross_entropy,
    examples,
    mlp,
    quadratic,
    same_state,
    state,
    symmetric,
)

A = symmetric(np.linspace(-0.5, 3.0, 12))
B = np.linspace(-1.0, 0.7, 12)
W = np.linspace(-1, 2, 12)


def around(at, matrix=A, slope=B):
    """Return 1/2 w'A w + b'w around a point, as f, its gradient, and what `sharpness` takes."""
    weights, loss = quadratic(matrix, slope)
    cut = weights[0].size
    start = [at[:cut].reshape(weights[0].shape), at[cut:]]
    f = lambda w: w @ matrix @ w / 2 + slope @ w  # noqa: E731
    return f, lambda w: matrix @ w + slope, (start, loss)


class TestAscent:
    def climb(self, gradient, at, rate, distance, steps):
        delta = np.zeros_like(at)
        for step in range(1, steps + 1):
            delta = delta + rate * gradient(at + delta)
            if np.sqrt((delta**2).sum()) > distance:
                return delta, step, "distance"
        return delta, steps, "steps"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"radius": 0.5, "step_size": 0.01, "max_steps": 100}, "distance"),
            ({"radius": 0.5, "step_size": 0.01, "max_steps": 7}, "steps"),
        ],
    )
    def test_against_a_plain_loop(self, options, expected):
        f, gradient, problem = around(W)
        delta, steps, why = self.climb(
            gradient, W, options["step_size"], options["radius"], options["max_steps"]
        )
        found = sharpness(*problem, **options)
        assert found.stopped_by == why == expected
        assert found.steps == found.gradient_evaluations == steps > 4
        assert found.distance == pytest.approx(np.linalg.norm(delta), rel=1e-12)
        assert found.loss == pytest.approx(f(W), rel=1e-12)
        assert found.perturbed_loss == pytest.approx(f(W + delta), rel=1e-12)
        value = 100 * (f(W + delta) - f(W)) / (1 + f(W))
        assert found.value == pytest.approx(value, rel=1e-10)
        assert found.radius == 0.5

    def test_defaults(self):
        _, gradient, problem = around(W)
        delta, steps, _ = self.climb(gradient, W, 1e-4, 0.01, 1000)
        found = sharpness(*problem)
        assert found.kind == "ascent"
        assert (found.steps, found.radius, found.stopped_by) == (steps, 0.01, "distance")
        assert found.distance == pytest.approx(np.linalg.norm(delta), rel=1e-12)
        # A thousand steps where the gradient is small.
        flat = sharpness(*around(W, 1e-4 * A, 1e-4 * B)[2])
        assert (flat.steps, flat.stopped_by) == (1000, "steps")

    def test_steps_below_the_spacing_of_float32_add_up(self):
        weights = [np.full(4, 100.0, "float32")]
        loss = lambda w: tf.reduce_sum(w[0])  # noqa: E731
        found = sharpness(weights, loss, radius=1.0, step_size=1e-6, max_steps=200)
        assert found.distance == pytest.approx(2 * 200e-6)
        # At 100 the spacing is 7.6e-6: no single step would get anywhere.
        assert found.perturbed_loss - found.loss == pytest.approx(4 * 200e-6, rel=0.1)

    def test_a_gradient_that_is_not_finite(self):
        loss = lambda w: -tf.reduce_sum(tf.sqrt(1 - w[0]))  # noqa: E731
        with pytest.raises(ValueError, match="not finite after 1 steps"):
            sharpness([np.zeros(3)], loss, radius=100.0, step_size=4.0, max_steps=5)


class TestEpsilon:
    @pytest.mark.parametrize("size", [1.0, 1e-9])
    @pytest.mark.parametrize("epsilon", [1e-3, 1e-7])
    def test_linear_loss(self, size, epsilon):
        """The corner of the box, however small the slope and the box are."""
        slope = size * np.concatenate([B[:6], 1e-2 * B[6:]])
        f, _, problem = around(W, np.zeros((12, 12)), slope)
        box = epsilon * (np.abs(W) + 1)
        found = sharpness(*problem, kind="epsilon", radius=epsilon)
        rise = np.abs(slope) @ box
        assert found.perturbed_loss - found.loss == pytest.approx(rise, rel=1e-3)
        assert found.value == pytest.approx(100 * rise / (1 + f(W)), rel=1e-3)
        assert found.distance == pytest.approx(np.linalg.norm(box), rel=1e-6)

    def test_diagonal_quadratic(self):
        """Rising weights stop at the side of the box, and concave ones at their maximum inside."""
        curvature, epsilon = np.where(np.arange(12) % 2, 3.0, -2.0), 0.1
        slope = np.where(np.arange(12) % 3, 0.5, 0.05) - curvature * W
        f, gradient, problem = around(W, np.diag(curvature), slope)
        g, box = gradient(W), epsilon * (np.abs(W) + 1)
        inside = np.clip(-g / curvature, -box, box)
        best = np.where(curvature > 0, np.sign(g) * box, inside)
        assert (np.abs(best) < box - 1e-3).any()
        assert (np.abs(best) == box).any()
        found = sharpness(*problem, kind="epsilon", radius=epsilon, max_steps=50)
        rise = f(W + best) - f(W)
        assert found.value == pytest.approx(100 * rise / (1 + f(W)), rel=1e-6)
        assert found.distance == pytest.approx(np.linalg.norm(best), rel=1e-4)
        assert found.stopped_by == "optimizer"
        assert found.steps < 50
        assert found.gradient_evaluations > found.steps

    def test_of_a_network_beats_the_corner_of_the_gradient(self):
        """Where the loss is nearly linear, the corner is nearly the maximum."""
        model, data = mlp(), examples(dtype="float32")
        before = state(model)
        w = [v.numpy() for v in model.trainable_variables]
        value = lambda: float(cross_entropy()(data[1], model(data[0])))  # noqa: E731
        with tf.GradientTape() as tape:
            loss = cross_entropy()(data[1], model(data[0]))
        slopes = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found = sharpness(model, cross_entropy(), data, kind="epsilon", radius=5e-3)
        for variable, start, slope in zip(model.trainable_variables, w, slopes, strict=True):
            variable.assign(start + 5e-3 * (np.abs(start) + 1) * np.sign(slope))
        corner = value()
        for variable, start in zip(model.trainable_variables, w, strict=True):
            variable.assign(start)
        assert same_state(before, state(model))
        assert found.perturbed_loss >= corner - 1e-6
        assert found.perturbed_loss == pytest.approx(corner, rel=0.02)
        assert corner > float(loss) + 0.01

    def test_steps_run_out(self):
        found = sharpness(*around(W)[2], kind="epsilon", radius=2.0, max_steps=1)
        assert (found.steps, found.stopped_by) == (1, "steps")


class TestFormulas:
    def test_sam(self):
        f, gradient, problem = around(W)
        g = gradient(W)
        found = sharpness(*problem, kind="sam", radius=0.3)
        rise = f(W + 0.3 * g / np.linalg.norm(g)) - f(W)
        assert found.value == pytest.approx(rise, rel=1e-12)
        assert found.distance == pytest.approx(0.3)
        assert (found.steps, found.gradient_evaluations, found.stopped_by) == (1, 1, "formula")
        assert sharpness(*problem, kind="sam").radius == 0.05

    def test_asam(self):
        f, gradient, problem = around(W)
        g, scale = gradient(W), np.abs(W) + 0.02
        delta = 0.4 * scale**2 * g / np.sqrt(((scale * g) ** 2).sum())
        found = sharpness(*problem, kind="asam", radius=0.4, eta=0.02)
        assert found.value == pytest.approx(f(W + delta) - f(W), rel=1e-12)
        assert found.distance == pytest.approx(np.linalg.norm(delta), rel=1e-12)
        default = sharpness(*problem, kind="asam")
        assert default.radius == 0.5
        scale = np.abs(W) + 0.01
        delta = 0.5 * scale**2 * g / np.sqrt(((scale * g) ** 2).sum())
        assert default.value == pytest.approx(f(W + delta) - f(W), rel=1e-12)

    def test_asam_does_not_see_the_scale_of_the_weights(self):
        """f(w/10) around 10 w, with eta 0."""
        one = sharpness(*around(W)[2], kind="asam", eta=0.0)
        other = sharpness(*around(10 * W, A / 100, B / 10)[2], kind="asam", eta=0.0)
        assert other.value == pytest.approx(one.value, rel=1e-12)
        assert other.distance == pytest.approx(10 * one.distance, rel=1e-12)


class TestAll:
    @pytest.mark.few(2)
    @pytest.mark.parametrize("kind", ["ascent", "epsilon", "sam", "asam"])
    def test_network(self, kind):
        """The same δ on other data; batches do not matter; the model stays as it was."""
        model, (x, y) = mlp(batch_norm=True), examples(dtype="float32")
        model.layers[0].trainable = False
        model.compile("sgd", cross_entropy())
        before = state(model)
        options = {"kind": kind, "step_size": 0.1, "radius": 0.05}
        parts = {"same": (x, y), "half": (x[:20], y[:20]), "rest": (x[20:], y[20:])}
        found = sharpness(model, None, (x, y), evaluate_on=parts, **options)
        assert same_state(before, state(model))
        assert found.value > 0
        assert found.elsewhere["same"] == pytest.approx(found.value, abs=1e-6)
        # Halves of the losses, before and after, add up; the measures are of them.
        half, rest = (self.loss(model, parts[k]) for k in ("half", "rest"))
        per = 1 if kind in ("sam", "asam") else 100
        norm = (lambda c: 1) if kind in ("sam", "asam") else (lambda c: 1 + c)
        rises = [found.elsewhere[k] * norm(c) / per for k, c in (("half", half), ("rest", rest))]
        assert np.mean(rises) == pytest.approx(found.perturbed_loss - found.loss, abs=1e-6)
        assert abs(rises[0] - rises[1]) > 1e-4
        again = sharpness(model, None, (x, y), batch_size=16, evaluate_on=(x, y), **options)
        assert again.value == pytest.approx(found.value, rel=1e-3)
        assert list(again.elsewhere) == ["data"]

    def loss(self, model, data):
        return float(cross_entropy()(data[1], model(data[0], training=False)))

    def test_only_the_chosen_weights(self):
        f, gradient, (weights, loss) = around(W)
        found = sharpness(weights, loss, kind="sam", radius=0.3, variables=[1])
        g = np.where(np.arange(12) < 6, 0, gradient(W))
        assert found.value == pytest.approx(f(W + 0.3 * g / np.linalg.norm(g)) - f(W), rel=1e-12)

    def test_result(self):
        found = sharpness(*around(W)[2], kind="sam")
        assert json.loads(json.dumps(found.to_dict()))["value"] == found.value
        ax = found.plot()
        assert ax.get_ylabel() == "loss"
        assert [bar.get_height() for bar in ax.patches] == [found.loss, found.perturbed_loss]
        assert found.to_dict() == sharpness(*around(W)[2], kind="sam").to_dict()


def at_zero(matrix, slope=None):
    """Return 1/2 w'A w + b'w at w = 0, as `sharpness` takes it: no slope without b."""
    return quadratic(matrix, slope)


class TestWithoutSlope:
    """No first-order rise does not mean flat."""

    @pytest.mark.parametrize("eigenvalues", [np.linspace(0, 3, 12), np.linspace(-9, 3, 12)])
    def test_sam_goes_where_the_loss_curves_up_most(self, eigenvalues):
        """At a minimum, and at a saddle that curves down more than up."""
        found = sharpness(*at_zero(symmetric(eigenvalues)), kind="sam", radius=0.2)
        assert found.value == pytest.approx(3 / 2 * 0.2**2, rel=0.03)
        assert found.distance == pytest.approx(0.2)
        assert found.stopped_by == "stationary"
        assert found.gradient_evaluations > 1

    def test_asam_measures_distances_by_the_weights(self):
        """At w the distance of a weight is in units of |w|: the top of T A T with T = diag |w|."""
        curvature = np.array([1.0, 4.0, 2.0, 0.5])
        w = np.array([3.0, 0.5, 1.0, 2.0])
        start, loss = quadratic(np.diag(curvature), -curvature * w)
        start = [w[:2].reshape(start[0].shape), w[2:]]
        found = sharpness(start, loss, kind="asam", radius=0.1, eta=0.0)
        assert found.value == pytest.approx(0.1**2 / 2 * (curvature * w**2).max(), rel=0.01)

    def test_an_ascent_leaves_the_point(self):
        options = {"radius": 0.5, "step_size": 0.1, "max_steps": 100}
        found = sharpness(*at_zero(symmetric(np.linspace(0, 3, 12))), **options)
        assert found.distance > 0.5
        assert found.value == pytest.approx(100 * 3 / 2 * found.distance**2, rel=0.03)
        assert found.stopped_by == "stationary"
        assert 1 < found.steps < 100

    @pytest.mark.parametrize("seed", range(4))
    def test_epsilon_of_a_minimum_is_in_a_corner(self, seed):
        """A convex loss is largest in one of the 256 corners: try all."""
        matrix = symmetric(np.random.default_rng(seed).exponential(size=8), seed)
        corners = 0.1 * np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
        largest = np.einsum("ik,ij,jk->k", corners, matrix, corners).max() / 2
        found = sharpness(*at_zero(matrix), kind="epsilon", radius=0.1, max_steps=50)
        assert 0.85 * largest < found.value / 100 <= largest * (1 + 1e-9)
        assert found.stopped_by == "stationary"

    def test_epsilon_of_a_saddle(self):
        curvature = np.array([3.0, -3.0, 1.0, -1.0])
        found = sharpness(*at_zero(np.diag(curvature)), kind="epsilon", radius=0.5, max_steps=50)
        assert found.value == pytest.approx(100 * (3 + 1) / 2 * 0.5**2, rel=1e-6)

    def test_epsilon_where_the_slope_is_next_to_nothing(self):
        """As where training has converged: the slope alone would tell of a tiny rise."""
        slope = np.array([1e-9] + [0.0] * 7)
        found = sharpness(*at_zero(np.eye(8), slope), kind="epsilon", radius=0.5, max_steps=50)
        assert found.value == pytest.approx(100 * 8 / 2 * 0.5**2, rel=1e-6)

    def test_a_downward_slope_does_not_win_by_its_size(self):
        """In two dimensions, with one direction up: SAM's is that one."""
        found = sharpness(*at_zero(np.diag([-100.0, 1.0, -100.0, -100.0])), kind="sam", radius=0.1)
        assert found.value == pytest.approx(0.1**2 / 2, rel=0.05)

    @pytest.mark.parametrize("kind", ["ascent", "epsilon", "sam", "asam"])
    @pytest.mark.parametrize("curvature", [0.0, -1.0])
    def test_flat_and_maximum(self, kind, curvature):
        """Where the loss rises nowhere the sharpness is 0, and the result says what it knows."""
        found = sharpness(*at_zero(curvature * np.eye(8)), kind=kind, max_steps=5)
        assert found.value == 0
        assert found.distance == 0
        assert found.stopped_by == "stationary"


class TestNotFinite:
    @pytest.mark.parametrize("kind", ["ascent", "epsilon", "sam", "asam"])
    def test_a_gradient_that_is_not_a_number(self, kind):
        """A finite loss whose gradient is 0/0: that of a norm at 0."""
        loss = lambda w: tf.norm(w[0])  # noqa: E731
        with pytest.raises(ValueError, match="gradient is not finite at the weights"):
            sharpness([np.zeros(4)], loss, kind=kind)

    def test_a_perturbed_loss_that_is_not_a_number(self):
        loss = lambda w: tf.reduce_sum(tf.sqrt(1.0 + w[0]))  # noqa: E731
        with pytest.raises(ValueError, match="loss is NaN at the perturbed weights"):
            sharpness([np.full(4, -0.9)], lambda w: -loss(w), kind="sam", radius=1.0)

    def test_on_other_data(self):
        x = np.ones((2, 1))
        loss = lambda w, x, y: -tf.sqrt(y + w[0] * x)  # noqa: E731
        with pytest.raises(ValueError, match="loss on other is NaN"):
            sharpness(
                [np.ones(1)], loss, (x, 9 * x), kind="sam", radius=1.0,
                evaluate_on={"other": (x, -0.5 * x)},
            )  # fmt: skip

    def test_asam_where_all_weights_with_a_gradient_are_zero(self):
        """With eta 0 they have no distance to move by."""
        with pytest.raises(ValueError, match="take a positive `eta`"):
            sharpness([np.zeros(3)], lambda w: tf.reduce_sum(w[0]), kind="asam", eta=0.0)
