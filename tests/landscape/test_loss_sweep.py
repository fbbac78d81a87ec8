"""The loss that is measured is the loss that Keras trains: every built-in loss, every way in.

The references are Keras' own: `model.evaluate` for values, and a plain tape through the model and
`model.compute_loss`, batch by batch, for gradients. docs/landscape_losses.md lists the same rows.
"""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.losses import ALL_OBJECTS_DICT

from esgd_tf.landscape import FisherOperator, GaussNewtonOperator, HessianOperator
from tests.landscape.problems import same_state, state

DOCS = Path(__file__).parents[2] / "docs"
N, BATCH = 7, 3  # batches of 3, 3 and 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A loss, and on what it is tried.

    Attributes:
        name: Of the class in `keras.losses`.
        function: Of the function there.
        kind: Which outputs and targets it takes.
        names: What Keras takes for it as a string, beside the names of the class and the function.
        cuts: Whether its value depends on how the data are cut into batches.
        options: Other settings to try.
    """

    name: str
    function: str
    kind: str
    names: tuple[str, ...] = ()
    cuts: bool = False
    options: tuple[dict, ...] = ()

    @property
    def is_string(self):
        """Whether Keras knows it by its name."""
        return self.name in ALL_OBJECTS_DICT

    @property
    def strings(self):
        """What may be given as a string."""
        return (self.name, self.function, *self.names) if self.is_string else ()

    @property
    def no_strings(self):
        return () if self.is_string else (self.name, self.function)

    def make(self, **options):
        return getattr(keras.losses, self.name)(**options)


LOSSES = (
    Row("BinaryCrossentropy", "binary_crossentropy", "binary", ("bce", "BCE"),
        options=({"from_logits": True}, {"label_smoothing": 0.1})),
    Row("BinaryFocalCrossentropy", "binary_focal_crossentropy", "binary",
        options=({"from_logits": True, "apply_class_balancing": True}, {"gamma": 1.0})),
    Row("CTC", "ctc", "ctc", cuts=False),
    Row("CategoricalCrossentropy", "categorical_crossentropy", "classes",
        options=({"from_logits": True}, {"label_smoothing": 0.1})),
    Row("CategoricalFocalCrossentropy", "categorical_focal_crossentropy", "classes",
        options=({"from_logits": True, "alpha": 0.5},)),
    Row("CategoricalGeneralizedCrossEntropy", "categorical_generalized_cross_entropy", "labels",
        options=({"q": 0.3},)),
    Row("CategoricalHinge", "categorical_hinge", "classes"),
    Row("Circle", "circle", "embedding", cuts=True, options=({"margin": 0.2},)),
    Row("CosineSimilarity", "cosine_similarity", "real", options=({"axis": 1},)),
    Row("Dice", "dice", "overlap", cuts=True),
    Row("Hinge", "hinge", "sign"),
    Row("Huber", "huber", "real", options=({"delta": 0.3},)),
    Row("KLDivergence", "kl_divergence", "classes", ("kld", "KLD")),
    Row("LogCosh", "log_cosh", "real"),
    Row("MeanAbsoluteError", "mean_absolute_error", "real", ("mae", "MAE")),
    Row("MeanAbsolutePercentageError", "mean_absolute_percentage_error", "positive",
        ("mape", "MAPE")),
    Row("MeanSquaredError", "mean_squared_error", "real", ("mse", "MSE")),
    Row("MeanSquaredLogarithmicError", "mean_squared_logarithmic_error", "positive",
        ("msle", "MSLE")),
    Row("Poisson", "poisson", "positive"),
    Row("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy", "labels",
        options=({"from_logits": True},)),
    Row("SquaredHinge", "squared_hinge", "sign"),
    Row("Tversky", "tversky", "overlap", cuts=True, options=({"alpha": 0.3, "beta": 0.7},)),
)  # fmt: skip
BY_NAME = {row.name: row for row in LOSSES}

# What `keras.losses` has beside losses.
NO_LOSSES = {"Loss", "deserialize", "get", "serialize"}

# The shape of an output without the examples, by the kind of loss.
ANY_SHAPE = {"n": (), "n1": (1,), "nc": (4,), "ntc": (2, 3), "nhwc": (2, 2, 3)}
MANY_CLASSES = {"nc": (4,), "ntc": (2, 3), "nhwc": (2, 2, 3)}
SHAPES = {
    "real": ANY_SHAPE,
    "positive": ANY_SHAPE,
    "sign": ANY_SHAPE,
    "binary": ANY_SHAPE,
    "overlap": {"nc": (4,), "ntc": (2, 3), "nhwc": (2, 2, 3)},
    "classes": MANY_CLASSES,
    "labels": MANY_CLASSES,
    "embedding": {"nc": (4,)},
    "ctc": {"ntc": (6, 4)},
}
SHAPE_NAMES = {
    "n": "(n,)",
    "n1": "(n, 1)",
    "nc": "(n, c)",
    "ntc": "(n, t, c)",
    "nhwc": "(n, h, w, c)",
}
WEIGHTING_NAMES = {
    "none": "none",
    "n": "(n,)",
    "n1": "(n, 1)",
    "zeros": "zeros for some examples",
    "each": "one for each step or pixel",
}
WEIGHTINGS = ("none", "n", "n1", "zeros", "each")


@pytest.fixture
def eagerly():
    """Run graphs as they are written: much quicker for what runs three times."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def network(shape, kind="real", options=None):
    """Return a small network with outputs [n, *shape] that a loss of this kind takes."""
    logits = bool((options or {}).get("from_logits"))
    x = keras.Input((3,))
    y = keras.layers.Dense(4, "tanh")(x)
    y = keras.layers.Dense(int(np.prod(shape)))(y)
    y = keras.layers.Reshape(shape)(y)
    if kind in ("classes", "labels") and not logits:
        y = keras.layers.Softmax()(y)
    elif kind in ("binary", "overlap") and not logits:
        y = keras.layers.Activation("sigmoid")(y)
    elif kind == "positive":
        y = keras.layers.Activation("softplus")(y)
    elif kind == "embedding":
        y = keras.layers.UnitNormalization()(y)
    y = keras.layers.Identity(name="answer")(y)
    model = keras.Model(x, y)
    redraw(model)
    return model


def redraw(model, seed=5):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.8))


def examples(shape, kind="real", n=N, seed=1):
    """Return inputs [n, 3] and targets for outputs [n, *shape]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3)).astype("float32")
    whole = (n, *shape)
    if kind == "classes":
        return x, np.eye(shape[-1], dtype="float32")[rng.integers(0, shape[-1], whole[:-1])]
    if kind == "labels":
        return x, rng.integers(0, shape[-1], whole[:-1])
    if kind == "embedding":
        return x, rng.integers(0, 2, (n,))
    if kind == "ctc":
        return x, rng.integers(1, shape[-1], (n, 2))
    if kind in ("binary", "overlap"):
        return x, rng.integers(0, 2, whole).astype("float32")
    if kind == "sign":
        return x, rng.choice([-1.0, 1.0], whole).astype("float32")
    y = rng.standard_normal(whole).astype("float32")
    return x, np.abs(y) + 0.5 if kind == "positive" else y


def weights_for(weighting, shape, n=N, seed=2):
    """Return sample weights; "each" is one for each step or pixel."""
    rng = np.random.default_rng(seed)
    if weighting == "none":
        return ()
    whole = {"n": (n,), "n1": (n, 1), "zeros": (n,), "each": (n, *shape[:-1])}[weighting]
    weights = rng.uniform(0.2, 2.0, whole).astype("float32")
    if weighting == "zeros":
        weights[1::2] = 0.0
    return (weights,)


def batches(data, size):
    """Return (x, y, sample_weight) cut as Keras cuts arrays."""
    x, y, weight = (*data, None, None)[:3]
    n = len(keras.tree.flatten(x)[0])

    def cut(part, at):
        return keras.tree.map_structure(lambda a: tf.constant(a[at : at + size]), part)

    for at in range(0, n, size):
        yield tuple(None if p is None else cut(p, at) for p in (x, y, weight))


def plain_gradient(model, data, batch_size=BATCH):
    """Return the gradient of the loss of the compiled model: a tape, and nothing of ours."""
    total, count = 0.0, 0
    for x, y, weight in batches(data, batch_size):
        rows = len(keras.tree.flatten(x)[0])
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x, training=False), weight, training=False)
        slopes = tape.gradient(
            value, [v.value for v in model.trainable_variables], unconnected_gradients="zero"
        )
        slopes = [tf.convert_to_tensor(s) for s in slopes]
        total = total + rows * np.concatenate([s.numpy().ravel() for s in slopes]).astype(float)
        count += rows
    return total / count


def keras_loss(model, data, batch_size=BATCH):
    """Return what `evaluate` prints as the loss."""
    x, y, weight = (*data, None, None)[:3]
    options = {"batch_size": batch_size, "verbose": 0, "return_dict": True}
    return model.evaluate(x, y, sample_weight=weight, **options)["loss"]


def agrees(model, data, loss=None, batch_size=BATCH, kind=HessianOperator, rtol=2e-5):
    """Assert that a compiled model's loss and gradient are what Keras computes."""
    before = state(model)
    expected, slope = keras_loss(model, data, batch_size), plain_gradient(model, data, batch_size)
    operator = kind(model, loss, data, batch_size=batch_size)
    assert np.isfinite(expected) and np.abs(slope).max() > 1e-6  # there is something to compare
    assert operator.loss() == pytest.approx(expected, rel=rtol, abs=1e-6)
    np.testing.assert_allclose(
        operator.gradient(), slope, rtol=20 * rtol, atol=5 * rtol * np.abs(slope).max()
    )
    assert same_state(before, state(model))
    return operator


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


def quick(params):
    """Return of each loss the plain case, and one of every kind of each shape and weighting."""
    seen = set()
    for param in params:
        row, options, shape, weighting = param.values
        new = {(row.name, repr(options)), (row.kind, shape), (row.name, "w", weighting)}
        if not new <= seen:
            yield param
            seen |= new


ALL = list(cases(LOSSES))
QUICK = list(quick(ALL))


def check(row, options, shape, weighting):
    whole = SHAPES[row.kind][shape]
    model = network(whole, row.kind, options)
    data = (*examples(whole, row.kind), *weights_for(weighting, whole))
    model.compile(loss=row.make(**options), run_eagerly=True)
    agrees(model, data)


class TestEveryLoss:
    def test_the_table_has_every_loss_of_keras(self):
        """A loss that is new in Keras fails here until it is swept."""
        public = {name for name in dir(keras.losses) if not name.startswith("_")} - NO_LOSSES
        assert public == {n for row in LOSSES for n in (row.name, row.function)}

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(("row", "options", "shape", "weighting"), QUICK)
    def test_value_and_gradient(self, row, options, shape, weighting):
        check(row, options, shape, weighting)

    @pytest.mark.slow
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        ("row", "options", "shape", "weighting"), [p for p in ALL if p not in QUICK]
    )
    def test_value_and_gradient_of_all_the_others(self, row, options, shape, weighting):
        check(row, options, shape, weighting)

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
        data = (*examples((2, 3), row.kind), *weights_for(weighting, (2, 3)))
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
        data = (*examples(whole, row.kind), *weights_for("n", whole))
        model = network(whole, row.kind)
        model.compile(loss=loss, run_eagerly=True)
        expected, slope = keras_loss(model, data), plain_gradient(model, data)
        model.compile(loss=lambda y, p: 7.0 * tf.reduce_mean(tf.square(p)), run_eagerly=True)
        operator = HessianOperator(model, loss, data, batch_size=BATCH)
        assert operator.loss() == pytest.approx(expected, rel=2e-5)
        np.testing.assert_allclose(
            operator.gradient(), slope, rtol=4e-4, atol=1e-4 * np.abs(slope).max()
        )

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        ("row", "name"),
        [pytest.param(row, name, id=name) for row in LOSSES for name in row.strings],
    )
    def test_strings(self, row, name):
        self.given(row, name)

    def test_every_string_that_keras_knows_is_tried(self):
        known = {name for name in ALL_OBJECTS_DICT if name != "Loss"}
        assert known <= {name for row in LOSSES for name in row.strings}

    @pytest.mark.parametrize("name", [name for row in LOSSES for name in row.no_strings])
    def test_names_that_keras_does_not_know(self, name):
        model, data = network((4,), "labels"), examples((4,), "labels")
        with pytest.raises(ValueError, match=f"Keras knows no loss named '{name}'"):
            HessianOperator(model, name, data)

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.function) for row in LOSSES if row.is_string]
    )
    def test_functions(self, row):
        self.given(row, getattr(keras.losses, row.function))

    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in LOSSES])
    def test_objects(self, row):
        self.given(row, row.make())

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


def squared_examples(y, p):
    return tf.reduce_mean(tf.square(y - p), axis=tuple(range(1, len(p.shape))))


def squared_elements(y, p):
    return tf.square(y - p)


def squared_mean(y, p):
    return tf.reduce_mean(tf.square(y - p))


def absolute_first(y, p):
    """With Keras' operations, and of another dtype than that of the targets if not cast."""
    return keras.ops.mean(keras.ops.abs(p - keras.ops.cast(y, p.dtype)), axis=-1)


class Quartic(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean((y_true - y_pred) ** 4, axis=-1)


class LargestOfABatch(keras.losses.Loss):
    """Has a reduction of its own."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        values = tf.reduce_mean(tf.square(tf.cast(y_true, y_pred.dtype) - y_pred), axis=-1)
        if sample_weight is not None:
            values *= tf.cast(sample_weight, values.dtype)
        return tf.reduce_logsumexp(values)


class SpreadOfABatch(keras.losses.Loss):
    """Looks across the batch, and still gives a value for each example."""

    def call(self, y_true, y_pred):
        error = tf.reduce_mean(y_true - y_pred, axis=-1)
        return tf.square(error - tf.reduce_mean(error))


OWN = {
    "examples": squared_examples,
    "elements": squared_elements,
    "mean": squared_mean,
    "keras_operations": absolute_first,
    "subclass": Quartic(),
    "subclass_summed": Quartic(reduction="sum"),
    "own_call": LargestOfABatch(),
    "across": SpreadOfABatch(),
}


@pytest.mark.usefixtures("eagerly")
class TestOwnLosses:
    @pytest.mark.parametrize("name", OWN)
    @pytest.mark.parametrize("shape", ["n1", "nc", "ntc"])
    @pytest.mark.parametrize("weighting", ["none", "n"])
    def test_value_and_gradient(self, name, shape, weighting):
        whole = ANY_SHAPE[shape]
        model = network(whole)
        data = (*examples(whole), *weights_for(weighting, whole))
        model.compile(loss=OWN[name], run_eagerly=True)
        agrees(model, data)
        agrees(model, data, loss=OWN[name])

    @pytest.mark.parametrize("name", ["examples", "elements", "mean", "own_call"])
    def test_in_graphs(self, name):
        tf.config.run_functions_eagerly(False)
        model, data = network((2, 3)), examples((2, 3))
        model.compile(loss=OWN[name], run_eagerly=True)
        agrees(model, data)

    @pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64", "uint8", "bool"])
    @pytest.mark.parametrize(
        "loss", [squared_elements, absolute_first, "mse", "hinge", "poisson", "binary_crossentropy"]
    )
    def test_targets_of_any_dtype(self, loss, dtype):
        model, (x, _) = network((2,), "binary"), examples((2,))
        y = (np.arange(2 * N).reshape(N, 2) % 3 == 0).astype(dtype)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    @pytest.mark.parametrize(
        "loss", [squared_elements, squared_examples, "mse", "hinge", "poisson", "bce", "mape"]
    )
    @pytest.mark.parametrize(
        ("shape", "targets"),
        [((1,), (N,)), ((), (N, 1)), ((2, 1), (N, 2)), ((2,), (N, 2, 1)), ((2, 2, 1), (N, 2, 2))],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_targets_with_and_without_a_last_axis(self, loss, shape, targets, dtype):
        """(n,) against (n, 1) is not (n, n)."""
        model, (x, y) = network(shape, "positive"), examples(shape, "binary")
        y = y.reshape(targets).astype(dtype)
        if loss == "bce":
            model = network(shape, "binary")
        if loss == "mape":
            y = y + 0.5
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    @pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 3)], ids=str)
    @pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
    def test_sparse_targets_with_a_last_axis(self, shape, dtype):
        model, (x, y) = network(shape, "labels"), examples(shape, "labels")
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        one = agrees(model, (x, y.astype(dtype)))
        other = agrees(model, (x, y[..., None].astype(dtype)))
        assert one.loss() == other.loss()

    def test_a_loss_that_gives_neither_is_refused(self):
        model, data = network((4,)), examples((4,))
        with pytest.raises(ValueError, match="must be a Keras loss"):
            HessianOperator(model, 3.0, data)


class WithMask(keras.layers.Layer):
    """Gives a mask of its own to what comes after it: inputs below 0 do not count."""

    def __init__(self, per_step=True):
        super().__init__()
        self.supports_masking, self._per_step = True, per_step

    def call(self, x):
        return x

    def compute_mask(self, x, mask=None):
        return x[..., 0] > 0


def reader(masking, outputs=3, sequences=False, kind="labels"):
    """Return a network of sequences [n, 5] of words, 0 for none."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,), dtype="int32")])
    model.add(layers.Embedding(6, 3, mask_zero=masking != "none"))
    if masking == "lstm" or not sequences:
        model.add(layers.LSTM(4, return_sequences=sequences))
    else:
        model.add(layers.Dense(4, "tanh"))
    model.add(layers.Dense(outputs, "softmax" if kind == "labels" else None))
    redraw(model)
    return model


def sentences(n=N, outputs=3, sequences=False, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (n, 5))
    for i, row in enumerate(x):
        row[1 + i % 4 :] = 0
    return x.astype("int32"), rng.integers(0, outputs, (n, 5) if sequences else (n,))


@pytest.mark.usefixtures("eagerly")
class TestMasks:
    @pytest.mark.parametrize("masking", ["lstm", "dense"])
    @pytest.mark.parametrize("weighting", ["none", "n", "n1", "zeros", "each"])
    @pytest.mark.parametrize("batch_size", [3, 7])
    def test_of_each_step(self, masking, weighting, batch_size):
        model = reader(masking, sequences=True)
        data = sentences(sequences=True)
        data += weights_for(weighting, (5, 3))
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data, batch_size=batch_size)

    def test_is_seen_in_the_value(self):
        """The mask is what the sweep tests: without it the loss is another."""
        data = sentences(sequences=True)
        values = []
        for masking in ("dense", "none"):
            model = reader(masking, sequences=True) if masking == "dense" else unmasked_reader()
            model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
            values.append(agrees(model, data).loss())
        assert abs(values[0] - values[1]) > 0.01

    @pytest.mark.parametrize("masking", ["lstm", "none"])
    def test_that_end_before_the_output(self, masking):
        model, data = reader(masking), sentences()
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data)

    def test_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        model, data = reader("lstm", sequences=True), sentences(sequences=True)
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data)

    @pytest.mark.parametrize("layer", ["Masking", "own"])
    @pytest.mark.parametrize("recurrent", [True, False])
    @pytest.mark.parametrize("loss", ["mse", "huber", squared_elements])
    @pytest.mark.parametrize("weighting", ["none", "each"])
    def test_masks_of_real_inputs(self, layer, recurrent, loss, weighting):
        layers = keras.layers
        mask = layers.Masking(0.0) if layer == "Masking" else WithMask()
        inner = layers.GRU(3, return_sequences=True) if recurrent else layers.Dense(3, "tanh")
        model = keras.Sequential([keras.Input((4, 2)), mask, inner, layers.Dense(2)])
        redraw(model)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N, 4, 2)).astype("float32")
        x[::2, 2:] = 0.0
        x[:, 0] = np.abs(x[:, 0]) + 0.1  # a first step that counts
        y = rng.standard_normal((N, 4, 2)).astype("float32")
        model.compile(loss=loss, run_eagerly=True)
        if loss is squared_elements and weighting == "each":
            pytest.skip("Keras cannot broadcast a weight for each step to elements")
        agrees(model, (x, y, *weights_for(weighting, (4, 2))))

    @pytest.mark.parametrize("shape", ["nc", "ntc", "nhwc"])
    @pytest.mark.parametrize("weighting", ["none", "n", "zeros", "each"])
    @pytest.mark.parametrize("ignored", [0, -1, 255])
    def test_ignore_class(self, shape, weighting, ignored):
        whole = MANY_CLASSES[shape]
        model = network(whole, "labels")
        x, y = examples(whole, "labels")
        y.flat[::3] = ignored
        if weighting == "each" and len(whole) < 2:
            weighting = "n1"
        data = (x, y, *weights_for(weighting, whole))
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, data)

    def test_ignore_class_on_a_mask(self):
        model, (x, y) = reader("lstm", sequences=True), sentences(sequences=True)
        y[:, 0] = np.where(np.arange(N) % 2, y[:, 0], 2)
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=2)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    def test_ignored_examples_leave_the_average_of_their_batch(self):
        """A value by hand: of four examples two count, and Keras divides by these."""
        model, (x, _) = network((4,), "labels"), examples((4,), "labels", n=4)
        y = np.array([1, 255, 255, 2])
        p = model(x).numpy()
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
        h = HessianOperator(model, loss, (x, y))
        assert h.loss() == pytest.approx(-(np.log(p[0, 1]) + np.log(p[3, 2])) / 2, rel=1e-5)


def unmasked_reader():
    """Return `reader("dense", sequences=True)` without a mask."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(6, 3)])
    model.add(layers.Dense(4, "tanh"))
    model.add(layers.Dense(3, "softmax"))
    redraw(model)
    return model


@pytest.mark.usefixtures("eagerly")
class TestHowDataAreCut:
    """`batch_size=None` is Keras' 32 where the cut matters, and of no account where it does not."""

    @pytest.mark.parametrize(
        "loss",
        [
            keras.losses.MeanSquaredError(reduction="sum"), LargestOfABatch(), SpreadOfABatch(),
            squared_mean, "mse", keras.losses.Tversky(),
        ],
        ids=["sum", "own_call", "across", "mean", "mse", "tversky"],
    )  # fmt: skip
    @pytest.mark.parametrize("weighting", ["none", "n"])
    def test_default(self, loss, weighting):
        model = network((4,), "binary")
        data = (*examples((4,), "binary", n=75), *weights_for(weighting, (4,), n=75))
        model.compile(loss=loss, run_eagerly=True)
        expected = keras_loss(model, data, None)
        slope = plain_gradient(model, data, 32)
        h = HessianOperator(model, data=data)
        assert h.loss() == pytest.approx(expected, rel=2e-5)
        np.testing.assert_allclose(h.gradient(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())

    def test_default_with_masks(self):
        model, data = reader("lstm", sequences=True), sentences(n=75, sequences=True)
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        h = HessianOperator(model, data=data)
        assert h.loss() == pytest.approx(keras_loss(model, data, None), rel=2e-5)

    def test_default_with_ignored_classes_that_come_late(self):
        """The first examples have none, so nothing shows in them."""
        model, (x, y) = network((4,), "labels"), examples((4,), "labels", n=75)
        y[70:] = 255
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
        model.compile(loss=loss, run_eagerly=True)
        h = HessianOperator(model, data=(x, y))
        assert h.loss() == pytest.approx(keras_loss(model, (x, y), None), rel=2e-5)

    def test_of_whole_batches_depends_on_the_cut(self):
        model, data = network((4,), "binary"), examples((4,), "binary")
        one = HessianOperator(model, "tversky", data, batch_size=3).loss()
        other = HessianOperator(model, "tversky", data, batch_size=7).loss()
        assert abs(one - other) > 1e-3

    def test_of_examples_does_not(self):
        model, data = network((4,), "binary"), examples((4,), "binary")
        one = HessianOperator(model, "mse", data, batch_size=3)
        other = HessianOperator(model, "mse", data, batch_size=7)
        assert one.loss() == pytest.approx(other.loss(), rel=1e-6)


def matrix(operator):
    return operator @ np.eye(operator.shape[0])


@pytest.mark.usefixtures("float64")
class TestOptimaAreStationary:
    @pytest.mark.parametrize("weighting", ["none", "n", "n1", "zeros"])
    def test_weighted_linear_regression(self, weighting):
        """The minimum in closed form, and the Hessian there: 2/N Σ w x x' (not divided by Σ w)."""
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        weights = weights_for(weighting, (1,), n=20)
        s = weights[0].astype(float).ravel() if weights else np.ones(20)
        ones = np.concatenate([x, np.ones((20, 1))], 1)
        best = np.linalg.solve((ones * s[:, None]).T @ ones, (ones * s[:, None]).T @ y)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.set_weights([best[:3], best[3]])
        model.compile(loss="mse")
        h = HessianOperator(model, data=(x, y, *weights), batch_size=6)
        assert np.abs(h.gradient()).max() < 1e-6
        residual = (s * (ones @ best - y)[:, 0] ** 2).sum() / 20
        assert h.loss() == pytest.approx(residual, rel=1e-6)
        np.testing.assert_allclose(matrix(h), 2 * (ones * s[:, None]).T @ ones / 20, rtol=1e-6)
        g = GaussNewtonOperator(model, data=(x, y, *weights), batch_size=6)
        np.testing.assert_allclose(matrix(g), matrix(h), rtol=1e-6, atol=1e-12)

    def test_fisher_of_weighted_regression(self):
        """F = 1/N Σ w g g' with g = 2 r x."""
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        s = weights_for("n", (1,), n=20)[0]
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
        g = 2 * (x @ model.get_weights()[0] - y) * x
        f = FisherOperator(model, "mse", (x, y, s), batch_size=6)
        np.testing.assert_allclose(matrix(f), (g * s[:, None]).T @ g / 20, rtol=1e-5, atol=1e-9)

    def test_ridge_regression(self):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        s = weights_for("n", (1,), n=20)[0].astype(float)
        best = np.linalg.solve(
            (x * s[:, None]).T @ x / 20 + 0.1 * np.eye(3), (x * s[:, None]).T @ y / 20
        )
        layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1))
        model = keras.Sequential([keras.Input((3,)), layer])
        model.set_weights([best])
        model.compile(loss="mse")
        assert np.abs(HessianOperator(model, data=(x, y, s), batch_size=6).gradient()).max() < 1e-6


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
            assert outputs.split(", ") == [SHAPE_NAMES[s] for s in SHAPES[row.kind]], name
            assert (cut == "yes") == row.cuts, name

    def test_the_page_lists_the_weightings_of_the_sweep(self):
        listed = {row[0] for row in self.rows("Weightings")}
        assert set(WEIGHTING_NAMES.values()) <= listed
