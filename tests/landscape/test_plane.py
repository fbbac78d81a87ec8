"""Planes through a network, against direct evaluation and trajectories in a known plane."""

from types import SimpleNamespace

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

import esgd_tf
from esgd_tf.landscape import plane
from esgd_tf.landscape.plane import normalized_direction
from tests.landscape.problems import (
    cross_entropy,
    examples,
    flat,
    mlp,
    mlp_loss,
    quadratic,
    same_state,
    state,
    symmetric,
)

RNG = np.random.default_rng(0)
MATRIX, SLOPE = symmetric(np.linspace(-1, 3, 9)), np.linspace(0, 1, 9)
CENTER = RNG.standard_normal(9)
E1, E2 = RNG.standard_normal((2, 9))


def f(w):
    return 0.5 * w @ MATRIX @ w + SLOPE @ w


def bowl(**options):
    weights, loss = quadratic(MATRIX, SLOPE)
    options = {"center": CENTER, "directions": [E1, E2], "points": 5, **options}
    return plane(weights, loss=loss, **options)


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


class TestValues:
    def test_on_a_plane_are_those_at_w_plus_a_d1_plus_b_d2(self):
        found = bowl(extent=(0.5, 2.0))
        first, second = found.grids
        np.testing.assert_allclose(first, [-0.5, -0.25, 0, 0.25, 0.5])
        np.testing.assert_allclose(second, [-2, -1, 0, 1, 2])
        expected = [[f(CENTER + a * E1 + b * E2) for b in second] for a in first]
        np.testing.assert_allclose(found.values["data"]["loss"], expected, rtol=1e-12)
        np.testing.assert_array_equal(found.directions, [E1, E2])
        assert found.normalization is None
        assert found.trajectory is None
        assert found.explained is None

    @pytest.mark.parametrize("directions", [[E1], E1[None], [[E1[:4].reshape(2, 2), E1[4:]]]])
    def test_on_a_line(self, directions):
        found = bowl(directions=directions, points=4, extent=3.0)
        assert len(found.grids) == 1
        expected = [f(CENTER + a * E1) for a in (-3, -1, 1, 3)]
        np.testing.assert_allclose(found.values["data"]["loss"], expected, rtol=1e-12)

    def test_directions_as_one_array(self):
        np.testing.assert_array_equal(
            bowl(directions=np.stack([E1, E2])).values["data"]["loss"],
            bowl().values["data"]["loss"],
        )

    def test_center_is_the_network(self):
        assert bowl().values["data"]["loss"][2, 2] == pytest.approx(f(CENTER), rel=1e-12)
        np.testing.assert_allclose(
            bowl(center=None).values["data"]["loss"][3, 2], f(0.5 * E1), rtol=1e-12
        )

    @pytest.mark.usefixtures("float64")
    def test_of_a_network(self):
        model, train, test = mlp(), examples(), examples(30, seed=1)
        found = plane(
            model, loss=cross_entropy(), data={"train": train, "test": test}, points=3, seed=4
        )
        w = flat([v.numpy() for v in model.trainable_variables])
        d1, d2 = found.directions
        for split, (x, y) in (("train", train), ("test", test)):
            expected = [[mlp_loss(w + a * d1 + b * d2, x, y) for b in (-1, 0, 1)]
                        for a in (-1, 0, 1)]  # fmt: skip
            np.testing.assert_allclose(found.values[split]["loss"], expected, rtol=1e-12)
            error = np.mean(model(x).numpy().argmax(1) != y)
            assert found.values[split]["error"][1, 1] == pytest.approx(error)

    def test_center_brings_its_statistics(self):
        model, other = (mlp(batch_norm=True, seed=s) for s in (0, 1))
        x, y = examples(dtype="float32")
        for center in (other, other.get_weights()):
            found = plane(model, center, loss=cross_entropy(), data=(x, y), points=3, dimensions=1)
            expected = float(cross_entropy()(y, other(x)))
            assert found.values["data"]["loss"][1] == pytest.approx(expected, rel=1e-5)

    def test_reestimate_at_each_point_on_a_copy(self):
        model, (x, y) = mlp(batch_norm=True), examples(dtype="float32")
        model.layers[0].trainable = False
        before = state(model)
        found = plane(
            model, loss=cross_entropy(), data=(x, y), points=3, dimensions=1,
            reestimate=lambda m: esgd_tf.reestimate_batch_norm(m, [(x, y)]),
        )  # fmt: skip
        assert same_state(before, state(model))
        start = flat([v.numpy() for v in model.trainable_variables])
        for k, a in enumerate((-1, 0, 1)):
            point, at = start + a * found.directions[0], 0
            for v in model.trainable_variables:
                size = int(np.prod(v.shape))
                v.assign(point[at : at + size].reshape(v.shape))
                at += size
            esgd_tf.reestimate_batch_norm(model, [(x, y)])
            expected = float(cross_entropy()(y, model(x)))
            assert found.values["data"]["loss"][k] == pytest.approx(expected, rel=1e-5)


class TestNormalization:
    def conv(self):
        model = keras.Sequential([
            keras.Input((6, 6, 2)), keras.layers.Conv2D(3, (2, 4)), keras.layers.Flatten(),
            keras.layers.Dense(4),
        ])  # fmt: skip
        rng = np.random.default_rng(0)
        for v in model.weights:
            v.assign(rng.normal(size=v.shape, scale=rng.uniform(0.1, 3, v.shape[-1:])))
        data = rng.standard_normal((5, 6, 6, 2)).astype("float32"), np.arange(5) % 4
        return model, data

    def directions(self, **options):
        model, data = self.conv()
        found = plane(model, loss=cross_entropy(), data=data, points=2, **options)
        parts = []
        for row in found.directions:
            at, arrays = 0, []
            for v in model.trainable_variables:
                size = int(np.prod(v.shape))
                arrays.append(row[at : at + size].reshape(v.shape))
                at += size
            parts.append(arrays)
        return found, [v.numpy() for v in model.trainable_variables], parts

    def test_filter_is_a_slice_along_the_last_axis(self):
        found, weights, directions = self.directions()
        assert found.normalization == "filter"
        for kernel, bias, dense, other_bias in directions:
            for d, w in ((kernel, weights[0]), (dense, weights[2])):
                for k in range(d.shape[-1]):
                    assert np.linalg.norm(d[..., k]) == pytest.approx(np.linalg.norm(w[..., k]))
            assert not bias.any()
            assert not other_bias.any()
        # Within a filter the direction is as it was drawn.
        drawn = np.random.default_rng(0).standard_normal((2, found.directions.shape[1]))
        for row, arrays in zip(drawn, directions, strict=True):
            raw = row[:48].reshape(2, 4, 2, 3)
            ratio = arrays[0] / raw
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0, 0], raw.shape))
            assert (ratio > 0).all()

    def test_layer(self):
        found, weights, directions = self.directions(normalization="layer")
        assert found.normalization == "layer"
        for kernel, bias, dense, _ in directions:
            for d, w in ((kernel, weights[0]), (dense, weights[2])):
                assert np.linalg.norm(d) == pytest.approx(np.linalg.norm(w))
            assert np.linalg.norm(kernel[..., 0]) != pytest.approx(
                np.linalg.norm(weights[0][..., 0]), rel=1e-2
            )
            assert not bias.any()

    def test_none_leaves_directions_as_they_are(self):
        found, _, _ = self.directions(normalization=None, seed=3)
        drawn = np.random.default_rng(3).standard_normal(found.directions.shape)
        np.testing.assert_array_equal(found.directions, drawn)
        assert found.normalization is None

    def test_given_directions_only_if_asked(self):
        center = [CENTER[:4].reshape(2, 2), CENTER[4:]]
        np.testing.assert_array_equal(bowl(center=center).directions, [E1, E2])
        found = bowl(center=center, normalization="filter").directions
        assert found[0, 0] == pytest.approx(E1[0] * np.hypot(*CENTER[:4:2]) / np.hypot(*E1[:4:2]))
        assert not found[:, 4:].any()

    def test_filters_of_length_zero(self):
        shapes = SimpleNamespace(shapes=[(2, 2)])
        with np.errstate(all="raise"):
            found = normalized_direction(
                shapes, [0.0, 3.0, 0.0, 4.0], [1.0, 0.0, 1.0, 2.0], "filter"
            )
        np.testing.assert_allclose(found, [0, 1.2, 0, 1.6])
        found = normalized_direction(shapes, [1.0, 3.0, 1.0, 4.0], [0.0, 0.0, 0.0, 2.0], "filter")
        np.testing.assert_allclose(found, [0, 1.2, 0, 1.6])


class TestTrajectory:
    def setup_method(self):
        """A path in the plane of two orthonormal vectors around the center, mostly along one."""
        self.u, self.v = np.linalg.qr(np.random.default_rng(5).standard_normal((9, 2)))[0].T
        t = np.arange(6)
        self.along, self.across = 5.0 - t, 0.5 * np.sin(2 * t + 1)
        self.path = CENTER + np.outer(self.along, self.u) + np.outer(self.across, self.v)

    def test_pca_finds_its_plane(self):
        found = bowl(directions="pca", trajectory=list(self.path))
        assert found.explained.sum() == pytest.approx(1, abs=1e-12)
        assert found.explained[0] > 0.9
        d = found.directions
        np.testing.assert_allclose(d @ d.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(CENTER + found.trajectory @ d, self.path, atol=1e-12)
        singular = np.linalg.svd(self.path - CENTER, compute_uv=False)
        np.testing.assert_allclose(found.explained, singular[:2] ** 2 / (singular**2).sum())
        assert found.normalization is None

    @pytest.mark.parametrize("dimensions", [1, 2])
    def test_sign_is_fixed(self, dimensions):
        """The trajectory leaves the center to the right, even if it begins at the center."""
        for path in (self.path, 2 * CENTER - self.path):
            for first in ([], [CENTER]):
                found = bowl(
                    directions="pca", trajectory=[*first, *path], dimensions=dimensions, points=2
                )
                assert (found.trajectory[len(first)] > 0).all()
                assert found.trajectory.shape == (6 + len(first), dimensions)

    def test_grid_is_widened_to_hold_it(self):
        found = bowl(directions="pca", trajectory=self.path, extent=2.0, points=3)
        reach = np.abs(found.trajectory).max(axis=0)
        assert reach[0] > 2 > 1.1 * reach[1]
        np.testing.assert_allclose([g[-1] for g in found.grids], [1.1 * reach[0], 2])
        np.testing.assert_allclose([g[0] for g in found.grids], [-1.1 * reach[0], -2])
        first, second = found.grids
        expected = [[f(CENTER + a * found.directions[0] + b * found.directions[1])
                     for b in second] for a in first]  # fmt: skip
        np.testing.assert_allclose(found.values["data"]["loss"], expected, rtol=1e-12)

    def test_given_directions_are_not_widened_and_need_not_be_orthogonal(self):
        d1, d2 = 2 * self.u, self.u + self.v
        found = bowl(directions=[d1, d2], trajectory=self.path)
        assert [g[-1] for g in found.grids] == [1, 1]
        np.testing.assert_allclose(
            found.trajectory, np.stack([(self.along - self.across) / 2, self.across], 1), atol=1e-12
        )
        total = (self.along**2 + self.across**2).sum()
        expected = [(self.along**2).sum(), ((self.along + self.across) ** 2).sum() / 2]
        np.testing.assert_allclose(found.explained, np.array(expected) / total)

    def test_is_projected(self):
        normal = np.linalg.svd(np.stack([self.u, self.v]))[2][-1]
        found = bowl(directions=[self.u, self.v], trajectory=self.path + 3 * normal)
        np.testing.assert_allclose(
            found.trajectory, np.stack([self.along, self.across], 1), atol=1e-12
        )
        variance = (self.along**2).sum(), (self.across**2).sum()
        np.testing.assert_allclose(
            found.explained, np.array(variance) / (sum(variance) + 6 * 9), rtol=1e-9
        )

    def test_of_networks(self):
        model, data = mlp(batch_norm=True), examples(dtype="float32")
        others = [mlp(batch_norm=True, seed=s) for s in (1, 2)]
        path = [others[0], others[1].get_weights()]
        found = plane(
            model, loss=cross_entropy(), data=data, directions="pca", trajectory=path, points=2
        )
        w = flat([v.numpy() for v in model.trainable_variables])
        for point, other in zip(found.trajectory, others, strict=True):
            expected = flat([v.numpy() for v in other.trainable_variables])
            np.testing.assert_allclose(w + point @ found.directions, expected, atol=1e-5)

    def test_that_stays_at_the_center(self):
        found = bowl(trajectory=[CENTER])
        np.testing.assert_array_equal(found.trajectory, [[0, 0]])
        assert found.explained is None


class TestResult:
    def test_contours(self):
        """The first direction is the horizontal one."""
        found = bowl(directions=[E1, E2], extent=(1.0, 2.0), trajectory=[CENTER + E1, CENTER])
        ax = found.plot()
        assert ax.get_xlim() == (-1, 1)
        assert ax.get_ylim() == (-2, 2)
        assert ax.get_xlabel().startswith("direction 1 (")
        path = next(line for line in ax.get_lines() if line.get_label() == "trajectory")
        np.testing.assert_allclose(path.get_xydata(), [[1, 0], [0, 0]], atol=1e-12)
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["trajectory"]
        filled = ax.collections[0]
        loss = found.values["data"]["loss"]
        assert filled.levels[0] == loss.min()
        assert filled.levels[-1] == pytest.approx(loss.max())
        assert np.all(np.diff(filled.levels, 2) > 0)  # closer at the bottom
        assert ax.figure.axes[1].get_ylabel() == "loss"

    @pytest.mark.parametrize("kind", ["contourf", "plot_surface"])
    def test_a_slope_along_the_first_direction_rises_to_the_right(self, kind, monkeypatch):
        weights, loss = quadratic(np.zeros((8, 8)), np.eye(8)[0])
        found = plane(weights, loss=loss, directions=np.eye(8)[:2], points=3)
        ax = plt.figure().add_subplot(projection="3d" if kind == "plot_surface" else None)
        real, seen = getattr(ax, kind), []

        def drawn(*arguments, **options):
            seen.extend(arguments[:3])
            return real(*arguments, **options)

        monkeypatch.setattr(ax, kind, drawn)
        (found.plot if kind == "contourf" else found.plot_surface)(ax)
        x, y, z = np.broadcast_arrays(*seen)
        np.testing.assert_allclose(z, x if x.ndim == 2 else np.meshgrid(x, y)[0], atol=1e-12)
        assert np.ptp(z) == pytest.approx(2)

    @pytest.mark.parametrize("level", [0.0, 0.9, 1e5])
    def test_contours_of_what_is_flat(self, level):
        weights, _ = quadratic(np.eye(8))
        found = plane(
            weights, loss=lambda w: 0 * w[0][0, 0] + level, directions=[np.eye(8)[0], np.eye(8)[1]]
        )
        figure = found.plot().figure
        figure.canvas.draw()
        assert len(figure.axes) == 2  # contours and their colorbar

    def test_contours_with_holes(self):
        weights, _ = quadratic(np.eye(8))
        found = plane(
            weights,
            loss=lambda w: keras.ops.log(w[0][0, 0] + 0.5),
            directions=np.eye(8)[:2],
            points=5,
        )
        assert np.isnan(found.values["data"]["loss"]).any()
        found.plot().figure.canvas.draw()

    def test_of_nothing_finite(self):
        weights, _ = quadratic(np.eye(8))
        found = plane(
            weights, loss=lambda w: 0 * w[0][0, 0] + np.nan, directions=np.eye(8)[:2], points=3
        )
        with pytest.raises(ValueError, match="nothing to draw"):
            found.plot()

    def test_line(self):
        found = bowl(directions=[E1])
        line = found.plot().get_lines()[0]
        np.testing.assert_array_equal(line.get_ydata(), found.values["data"]["loss"])
        np.testing.assert_array_equal(line.get_xdata(), found.grids[0])
        with pytest.raises(ValueError, match="A line has no surface"):
            found.plot_surface()

    def test_surface(self):
        found = bowl(extent=(1.0, 2.0))
        ax = found.plot_surface()
        assert ax.name == "3d"
        np.testing.assert_allclose(ax.xy_dataLim.intervalx, [-1, 1])
        np.testing.assert_allclose(ax.xy_dataLim.intervaly, [-2, 2])
        assert ax.get_zlabel() == "loss"
        assert found.plot_surface(ax) is ax

    def test_metric_by_name(self):
        model = mlp()
        found = plane(model, loss=cross_entropy(), data=examples(dtype="float32"), points=3)
        assert found.plot(metric="error").figure.axes[1].get_ylabel() == "error"
        with pytest.raises(ValueError, match="'accuracy' was not measured; there is loss, error"):
            found.plot(metric="accuracy")
