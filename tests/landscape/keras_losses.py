"""Every loss of Keras with what it takes, and what Keras computes of it.

The references are Keras' own: `model.evaluate` for values, and a plain tape through the model and
`model.compute_loss`, batch by batch, for gradients.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.losses import ALL_OBJECTS_DICT

from esgd_tf.landscape import FisherOperator, HessianOperator
from tests.landscape.problems import same_state, state

N, BATCH = 5, 3  # batches of 3 and 2


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


def weights_for(weighting, shape, n=N, seed=2, fitting=False):
    """Return sample weights; "each" is one for each step or pixel.

    With `fitting`, those of examples get axes of length 1 for steps and pixels: Keras takes no (n,)
    for losses (n, t).
    """
    rng = np.random.default_rng(seed)
    if weighting == "none":
        return ()
    whole = {"n": (n,), "n1": (n, 1), "zeros": (n,), "each": (n, *shape[:-1])}[weighting]
    weights = rng.uniform(0.2, 2.0, whole).astype("float32")
    if weighting == "zeros":
        weights[1::2] = 0.0
    if fitting and weighting in ("n", "n1", "zeros") and len(shape) > 1:
        weights = weights.reshape(n, *[1] * (len(shape) - 1))
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


def agrees(
    model, data, loss=None, batch_size=BATCH, kind=HessianOperator, rtol=2e-5, constant=False
):
    """Assert that a compiled model's loss and gradient are what Keras computes."""
    before = state(model)
    if kind is HessianOperator and "ctc" in str(getattr(model.loss, "name", model.loss)).lower():
        kind = FisherOperator  # there is no Hessian of this loss
    try:
        expected = keras_loss(model, data, batch_size)
    except tf.errors.InvalidArgumentError:
        # Shapes that Keras cannot weigh: in a sentence, then.
        with pytest.raises(ValueError, match="Keras cannot compute the loss of these data"):
            kind(model, loss, data, batch_size=batch_size)
        return
    slope = plain_gradient(model, data, batch_size)
    operator = kind(model, loss, data, batch_size=batch_size)
    assert np.isfinite(expected)
    assert constant or np.abs(slope).max() > 1e-6  # there is something to compare
    assert operator.loss() == pytest.approx(expected, rel=rtol, abs=1e-6)
    np.testing.assert_allclose(
        operator.gradient(),
        slope,
        rtol=20 * rtol,
        # Where the loss is constant both are rounding.
        atol=1e-6 if constant else 5 * rtol * np.abs(slope).max(),
    )
    assert same_state(before, state(model))
    return operator
