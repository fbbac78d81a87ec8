"""Products with the Hessian through every layer of Keras, against differences of the gradient."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import GaussNewtonOperator, HessianOperator
from tests.landscape.layers import (
    ACTIVATIONS,
    AT_RANDOM,
    EXACT,
    LINE,
    NO_ACTIVATIONS,
    NOT_IN_A_NETWORK,
    NOT_TRIED,
    VARIANTS,
    Case,
)

K = keras.layers


def activation(name):
    """Return an activation, with the arguments that it needs."""
    function = getattr(keras.activations, name)
    return (lambda x: function(x, 0.1, 0.2)) if name == "threshold" else function


def as_layer(name):
    """Return a layer with an activation. `Activation` takes glu for one that keeps the shape."""
    if name == "glu":
        return K.Lambda(activation(name), output_shape=lambda shape: (*shape[:-1], shape[-1] // 2))
    return K.Activation(activation(name))


DOCUMENT = Path(__file__).parents[2] / "docs" / "landscape.md"
CASES = {
    **EXACT,
    **VARIANTS,
    **{
        f"activation {name}": Case(LINE, lambda name=name: as_layer(name))
        for name in sorted(ACTIVATIONS)
    },
}
# One of each kind of computation: those that TensorFlow gets wrong by itself, loops, tables, kinks.
QUICK = [
    "Embedding", "LayerNormalization", "LayerNormalization, two features",
    "GroupNormalization, one group", "BatchNormalization", "Resizing, bilinear", "Resizing, area",
    "Resizing, bicubic", "UpSampling2D", "SimpleRNN", "MultiHeadAttention", "MaxPooling2D",
    "AveragePooling3D", "activation softsign", "activation hard_sigmoid",
]  # fmt: skip


@pytest.fixture
def eagerly():
    """Let no graphs be traced: the sweep is of derivatives, and tracing is most of its time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def products_are_right(case):
    keras.config.set_floatx(case.dtype)
    keras.config.set_dtype_policy(case.dtype)
    model, data = case.model(), case.data()
    rng = np.random.default_rng(0)
    w = np.concatenate([np.ravel(v.numpy()) for v in model.trainable_variables])
    v, u = rng.normal(size=(2, w.size))
    hessian = HessianOperator(model, "mse", data)
    product = hessian @ v
    difference = (
        hessian.at(w + case.step * v).gradient() - hessian.at(w - case.step * v).gradient()
    ) / (2 * case.step)
    size = np.linalg.norm(product)
    assert size > 0.1
    assert np.linalg.norm(product - difference) < case.within * size
    assert abs(u @ product - v @ (hessian @ u)) < case.within * size * np.linalg.norm(u)
    if case.before:
        # The weights before the layer: what they do to the loss goes through it.
        through = np.linalg.norm(product[: case.shape[-1] * (case.shape[-1] + 1)])
        assert (through > 1e-3 * size) == case.through
    curvature = GaussNewtonOperator(model, "mse", data)
    forward = curvature @ v
    assert v @ forward > 0
    off = abs(u @ forward - v @ (curvature @ u))
    assert off < case.within * np.linalg.norm(forward) * np.linalg.norm(u)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.few(6)
@pytest.mark.few(2)
def test_some_products(name):
    products_are_right(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerNormalization", "Embedding", "Resizing, lanczos3"])
def test_some_products_of_graphs(name):
    products_are_right(CASES[name])


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_all_other_products(name):
    products_are_right(CASES[name])


def test_every_layer_is_in_one_table():
    """A layer that a new Keras brings has to be tried, and listed."""
    public = [name for name in dir(keras.layers) if not name.startswith("_")]
    listed = [*EXACT, *NOT_TRIED, *NOT_IN_A_NETWORK]
    assert len(listed) == len(set(listed))
    known = {id(getattr(keras.layers, name)) for name in listed}
    functions = {name.lower() for name in EXACT}
    missing = [
        name
        for name in public
        if id(getattr(keras.layers, name)) not in known and name not in functions
    ]
    assert missing == []
    assert set(listed) <= set(public)


def test_every_activation_is_listed():
    public = {name for name in dir(keras.activations) if not name.startswith("_")}
    known = {id(getattr(keras.activations, name)) for name in ACTIVATIONS}
    missing = {n for n in public - NO_ACTIVATIONS if id(getattr(keras.activations, n)) not in known}
    assert missing == set()
    assert public >= ACTIVATIONS


def rows_of_the_documents():
    """Return {name: (what, why)} of the tables of layers and of activations."""
    tables, table = {}, None
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith(("| layers |", "| activations |")):
            table = tables.setdefault(cells[0], {})
        elif not line.startswith("|"):
            table = None
        elif table is not None and not line.startswith("| ---"):
            for name in cells[0].split(", "):
                assert name.strip("`") not in table
                table[name.strip("`")] = (cells[1], cells[2])
    return tables


def test_the_documents_say_what_is_tried():
    tables = rows_of_the_documents()
    layers = tables["layers"]
    assert {n for n, (what, _) in layers.items() if what == "exact"} == set(EXACT)
    assert {n: w for n, (what, w) in layers.items() if what == "not tried"} == NOT_TRIED
    assert {n: w for n, (what, w) in layers.items() if what == "not in a network"} == (
        NOT_IN_A_NETWORK
    )
    off = {n for n, (_, why) in layers.items() if why.startswith("off")}
    assert off == set(AT_RANDOM)
    constant = {n for n, (_, why) in layers.items() if "no gradient goes through" in why}
    assert constant == {n for n, case in EXACT.items() if not case.through}
    assert set(tables["activations"]) == ACTIVATIONS
