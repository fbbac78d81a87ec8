"""The loss that is measured is the loss that Keras trains: every built-in loss, every way in.

docs/landscape_losses.md lists the same rows.
"""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.losses import ALL_OBJECTS_DICT

from esgd_tf.landscape import FisherOperator, HessianOperator
from tests import tiers
from tests.landscape.keras_losses import (
    BATCH,
    BY_NAME,
    LOSSES,
    NO_LOSSES,
    SHAPE_NAMES,
    SHAPES,
    WEIGHTING_NAMES,
    WEIGHTINGS,
    Row,
    agrees,
    examples,
    keras_loss,
    network,
    plain_gradient,
    weights_for,
)

DOCS = Path(__file__).parents[2] / "docs"


def cases(rows):
    for row in rows:
        for options in ({}, *row.options):
            for shape in SHAPES[row.kind]:
                if options.get("axis") and shape in ("n", "n1"):
                    continue
                for weighting in WEIGHTINGS:
                    if weighting == "each" and len(SHAPES[row.kind][shape]) < 2:
                        continue  # the same as "n"
                    if row.kind == "ctc" and weighting == "each":
                        continue  # a value for each sequence, not for each step
                    name = "-".join([row.name, *map(str, options), shape, weighting])
                    yield pytest.param(row, options, shape, weighting, id=name)


def in_tiers(params):
    """Mark what is for later tiers.

    The default one shows each kind of loss, each shape and each weighting once; the slow one each
    pair of a loss with its settings, a shape and a weighting.
    """
    kinds, losses = [], []
    for param in params:
        row, options, shape, weighting = param.values
        kinds.append({"kind": row.kind, "shape": shape, "weighting": weighting})
        loss = (row.name, repr(options))
        losses.append({"loss": loss, "shape": shape, "weighting": weighting})
    quick, pairs = tiers.cover(kinds, 1), tiers.cover(losses, 2)
    for number, param in enumerate(params):
        marks = [] if number in quick else [pytest.mark.slow]
        if number not in (*quick, *pairs):
            marks.append(pytest.mark.rare)
        yield pytest.param(*param.values, id=param.id, marks=marks)


ALL = list(in_tiers(list(cases(LOSSES))))


def check(row, options, shape, weighting):
    whole = SHAPES[row.kind][shape]
    model = network(whole, row.kind, options)
    data = (*examples(whole, row.kind), *weights_for(weighting, whole))
    model.compile(loss=row.make(**options), run_eagerly=True)
    try:
        keras_loss(model, data)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        # What Keras cannot weigh, such as (n,) against losses (n, t), is refused.
        with pytest.raises(ValueError, match=r"[Ww]eight"):
            HessianOperator(model, data=data, batch_size=BATCH).gradient()
    else:
        # The cosine of two numbers is 1 or -1: there is nothing to differentiate.
        agrees(model, data, constant=row.name == "CosineSimilarity" and whole[-1:] in ((), (1,)))


class TestEveryLoss:
    def test_the_table_has_every_loss_of_keras(self):
        """A loss that is new in Keras fails here until it is swept."""
        public = {name for name in dir(keras.losses) if not name.startswith("_")} - NO_LOSSES
        assert public == {n for row in LOSSES for n in (row.name, row.function)}

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(("row", "options", "shape", "weighting"), ALL)
    @pytest.mark.few(5)
    def test_value_and_gradient(self, row, options, shape, weighting):
        check(row, options, shape, weighting)

    @pytest.mark.few(1)
    @pytest.mark.parametrize(
        ("name", "shape", "weighting"),
        [
            ("MeanSquaredError", "n", "n"),
            ("BinaryCrossentropy", "n1", "n1"),
            ("SparseCategoricalCrossentropy", "nhwc", "each"),
            ("Tversky", "nc", "zeros"),
            ("CTC", "ntc", "none"),
        ],
    )
    def test_in_graphs(self, name, shape, weighting):
        check(BY_NAME[name], {}, shape, weighting)

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize("reduction", ["sum", "mean", "mean_with_sample_weight", None])
    @pytest.mark.parametrize("name", ["MeanSquaredError", "SparseCategoricalCrossentropy"])
    @pytest.mark.parametrize("weighting", ["none", "zeros", "each"])
    def test_reductions(self, name, reduction, weighting):
        row = BY_NAME[name]
        model = network((2, 3), row.kind)
        data = (*examples((2, 3), row.kind), *weights_for(weighting, (2, 3), fitting=True))
        model.compile(loss=row.make(reduction=reduction), run_eagerly=True)
        if reduction is None:
            with pytest.raises(ValueError, match="give the loss a reduction"):
                HessianOperator(model, data=data, batch_size=BATCH)
        else:
            agrees(model, data)


class TestWaysToGiveALoss:
    """The model is compiled with something else: what is given counts."""

    def given(self, row, loss, shape="nc"):
        whole = SHAPES[row.kind].get(shape, (6, 4))
        data = (*examples(whole, row.kind), *weights_for("n", whole, fitting=row.name != "CTC"))
        model = network(whole, row.kind)
        model.compile(loss=loss, run_eagerly=True)
        expected, slope = keras_loss(model, data), plain_gradient(model, data)
        model.compile(loss=lambda y, p: 7.0 * tf.reduce_mean(tf.square(p)), run_eagerly=True)
        # There is no Hessian of CTC, but its value and gradient.
        kind = FisherOperator if row.name == "CTC" else HessianOperator
        operator = kind(model, loss, data, batch_size=BATCH)
        assert operator.loss() == pytest.approx(expected, rel=2e-5)
        np.testing.assert_allclose(
            operator.gradient(), slope, rtol=4e-4, atol=1e-4 * np.abs(slope).max()
        )

    @pytest.mark.few(2)
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        ("row", "name"),
        [pytest.param(row, name, id=name) for row in LOSSES for name in row.strings],
    )
    def test_strings(self, row, name):
        self.given(row, name)

    def test_every_string_that_keras_knows_is_tried(self):
        known = {name for name in ALL_OBJECTS_DICT if name not in ("Loss", "LossFunctionWrapper")}
        assert known <= {name for row in LOSSES for name in row.strings}

    @pytest.mark.parametrize("name", [name for row in LOSSES for name in row.no_strings])
    def test_names_that_keras_does_not_know(self, name):
        model, data = network((4,), "labels"), examples((4,), "labels")
        with pytest.raises(ValueError, match=f"Keras knows no loss named '{name}'"):
            HessianOperator(model, name, data)

    @pytest.mark.few(1)
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.function) for row in LOSSES if row.is_string]
    )
    def test_functions(self, row):
        self.given(row, getattr(keras.losses, row.function))

    @pytest.mark.few(1)
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in LOSSES])
    def test_objects(self, row):
        self.given(row, row.make())

    @pytest.mark.few(2)
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize("name", ["crossentropy", "ce"])
    @pytest.mark.parametrize(
        ("kind", "shape"),
        [("binary", "n1"), ("labels", "nc"), ("classes", "nc"), ("labels", "ntc")],
    )
    def test_crossentropy_is_chosen_by_the_shapes(self, name, kind, shape):
        self.given(Row(name, name, kind), name, shape)

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        "wrap", [lambda loss: [loss], lambda loss: {"answer": loss}], ids=["list", "dict"]
    )
    @pytest.mark.parametrize("loss", ["mse", "huber", "MeanAbsoluteError"])
    def test_a_list_or_dictionary_for_one_output(self, wrap, loss):
        self.given(BY_NAME["MeanSquaredError"], wrap(loss))

    @pytest.mark.usefixtures("eagerly")
    def test_a_class_is_made_an_object(self):
        self.given(BY_NAME["Huber"], keras.losses.Huber)


class TestDocs:
    def rows(self, title):
        text = (DOCS / "landscape_losses.md").read_text()
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]

    def test_the_page_lists_the_losses_of_the_sweep(self):
        listed = {row[0].strip("`"): row for row in self.rows("Losses")}
        assert set(listed) == set(BY_NAME)
        for name, (_, strings, outputs, cut) in listed.items():
            row = BY_NAME[name]
            assert set(re.findall("`(.+?)`", strings)) == set(row.strings) - {name}, name
            assert outputs == ", ".join(SHAPE_NAMES[s] for s in SHAPES[row.kind]), name
            assert (cut == "yes") == row.cuts, name

    def test_the_page_lists_the_weightings_of_the_sweep(self):
        listed = {row[0] for row in self.rows("Weightings")}
        assert set(WEIGHTING_NAMES.values()) <= listed
