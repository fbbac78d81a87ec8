"""The sharpness of groups, against a loop in NumPy and against that of all the data."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import m_sharpness, sharpness
from esgd_tf.landscape._vectors import student_factor
from tests.landscape.problems import cross_entropy, examples, mlp

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(23, 4)), RNG.normal(size=23)
W = np.array([0.5, -1.0, 0.0, 2.0])


def squares(w, x, y):
    return tf.square(tf.linalg.matvec(x, w[0]) - y) / 2


def by_hand(m, kind, radius, eta=0.01, seed=0):
    """Return the sharpness and the loss of each group of linear regression."""
    order, values, losses = np.random.default_rng(seed).permutation(23), [], []
    scale = np.abs(W) + eta if kind == "asam" else np.ones(4)
    for k in range(23 // m):
        x, y = X[order[k * m : (k + 1) * m]], Y[order[k * m : (k + 1) * m]]
        f = lambda w: np.mean((x @ w - y) ** 2) / 2  # noqa: E731, B023
        g = x.T @ (x @ W - y) / m
        delta = radius * scale**2 * g / np.linalg.norm(scale * g)
        losses.append(f(W))
        values.append(f(W + delta) - f(W))
    return np.array(values), np.array(losses)


@pytest.mark.parametrize(("kind", "radius"), [("sam", 0.05), ("asam", 0.5)])
@pytest.mark.parametrize("m", [1, 5, 23])
def test_against_a_loop(kind, radius, m):
    found = m_sharpness([W], squares, (X, Y), m=m, kind=kind)
    values, losses = by_hand(m, kind, radius)
    np.testing.assert_allclose(found.values, values, rtol=1e-9)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
    assert found.mean == pytest.approx(values.mean())
    assert found.worst == pytest.approx(values.max())
    assert (found.m, found.radius, found.kind) == (m, radius, kind)
    assert found.gradient_evaluations == len(values) == 23 // m
    if m == 23:
        assert np.isnan(found.standard_error)
    else:
        spread = np.std(values, ddof=1) / np.sqrt(len(values)) * student_factor(len(values))
        assert found.standard_error == pytest.approx(spread)


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_of_all_examples_it_is_the_sharpness(kind):
    model, data = mlp(), examples(dtype="float32")
    whole = sharpness(model, cross_entropy(), data, kind=kind)
    found = m_sharpness(model, cross_entropy(), data, m=40, kind=kind)
    assert found.mean == found.worst == whole.value
    assert found.losses[0] == whole.loss
    # However they are cut into batches.
    small = m_sharpness(model, cross_entropy(), data, m=40, kind=kind, batch_size=7)
    assert small.mean == pytest.approx(whole.value, rel=1e-4)


def test_a_group_of_weighted_examples_is_like_data_of_its_own():
    model, (x, y) = mlp(), examples(dtype="float32")
    weight = np.linspace(0.2, 1.8, 40).astype("float32")
    found = m_sharpness(model, cross_entropy(), ({"a": x}["a"], y, weight), m=15, seed=4)
    for k, group in enumerate(np.random.default_rng(4).permutation(40)[:30].reshape(2, 15)):
        group.sort()
        alone = sharpness(model, cross_entropy(), (x[group], y[group], weight[group]), kind="sam")
        assert found.values[k] == pytest.approx(alone.value, rel=1e-5)


def test_only_some_groups():
    found = m_sharpness([W], squares, (X, Y), m=4, groups=3)
    np.testing.assert_allclose(found.values, by_hand(4, "sam", 0.05)[0][:3], rtol=1e-9)
    assert len(m_sharpness([W], squares, (X, Y), m=4, groups=99).values) == 5


def test_tensors_and_structures_are_cut_too():
    expected = m_sharpness([W], squares, (X, Y), m=5).values
    loss = lambda w, x, y: squares(w, x["in"], y)  # noqa: E731
    data = ({"in": tf.constant(X)}, tf.constant(Y))
    np.testing.assert_array_equal(m_sharpness([W], loss, data, m=5).values, expected)


def test_data_that_cannot_be_cut():
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(ValueError, match="cuts the data into groups: give arrays"):
        m_sharpness([W], squares, batches, m=4)
    with pytest.raises(ValueError, match="cuts the data into groups: give arrays"):
        m_sharpness([W], lambda w: tf.reduce_sum(w[0]))


def test_a_step_that_goes_too_far():
    loss = lambda w, x, y: -tf.math.log(1 - w[0][0] * x)  # noqa: E731
    with pytest.raises(ValueError, match="a group is not finite at the perturbed weights"):
        m_sharpness([np.zeros(1)], loss, (np.ones(4), np.ones(4)), m=2, radius=3.0)
