"""What is taken as data, and what is refused: in a sentence, and without hanging."""

import itertools

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from esgd_tf.landscape import HessianOperator, _data, local_energy
from tests.landscape.keras_losses import BATCH, examples, keras_loss, network, redraw, weights_for

layers = keras.layers
X, Y = examples((2,), n=8)


def mean_square(data, **options):
    """Return the loss of a small network over data."""
    return HessianOperator(network((2,)), "mse", data, **options).loss()


def expected():
    model = network((2,))
    model.compile(loss="mse", run_eagerly=True)
    return keras_loss(model, (X, Y))


class Batches(keras.utils.PyDataset):
    def __init__(self, shuffles=False, endless=False, **options):
        super().__init__(**options)
        self.shuffles, self.endless, self.order = shuffles, endless, np.random.default_rng(0)

    @property
    def num_batches(self):
        return None if self.endless else 2

    def __getitem__(self, k):
        rows = self.order.permutation(8)[:4] if self.shuffles else np.arange(4) + 4 * (k % 2)
        return X[rows], Y[rows]


class Loader:
    """Gives the same batches at each pass, as the data loaders of other libraries do."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([(X[:4], Y[:4]), (X[4:], Y[4:])])


class EndlessLoader:
    def __iter__(self):
        return itertools.repeat((X[:4], Y[:4]))


TAKEN = {
    "arrays": lambda: (X, Y),
    "list_of_arrays": lambda: [X, Y],
    "python_lists": lambda: (X.tolist(), Y.tolist()),
    "list_of_python_lists": lambda: [X.tolist(), Y.tolist()],
    "float64": lambda: (X.astype("float64"), Y.astype("float64")),
    "tensors": lambda: (tf.constant(X), tf.constant(Y)),
    "array_and_list": lambda: (X, Y.tolist()),
    "with_none": lambda: (X, Y, None),
    "weights_of_one": lambda: (X, Y, np.ones(8)),
    "list_of_weights": lambda: (X, Y, [1] * 8),
    "not_contiguous": lambda: (np.repeat(X, 2, 0)[::2], np.asfortranarray(Y)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
    "dataset_with_weights": lambda: tf.data.Dataset.from_tensor_slices(
        (X, Y, np.ones(8, "float32"))
    ).batch(3),
    "repeated_and_taken": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat().take(2)
    ),
    "shuffled_and_cached": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8).batch(4).cache()
    ),
    "unknown_length": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(4)
    ),
    "pydataset": Batches,
    "loader": Loader,
}


@pytest.mark.usefixtures("eagerly")
class TestTaken:
    @pytest.mark.few(3)
    @pytest.mark.parametrize("kind", TAKEN)
    def test_gives_the_loss_of_keras(self, kind):
        assert mean_square(TAKEN[kind]()) == pytest.approx(expected(), rel=1e-5)

    def test_a_dataset_with_none_for_weights(self):
        """Each batch (x, y, None), as generators of users give them."""

        class WithNone(Loader):
            def __iter__(self):
                return ((*batch, None) for batch in Loader())

        assert mean_square(WithNone()) == pytest.approx(expected(), rel=1e-5)

    def test_a_dataset_is_weighted_as_evaluate_weights_it(self):
        w = weights_for("n", (2,), n=8)[0]
        data = tf.data.Dataset.from_tensor_slices((X, Y, w)).batch(3)
        model = network((2,))
        model.compile(loss="mse", run_eagerly=True)
        found = HessianOperator(model, data=data).loss()
        assert found == pytest.approx(model.evaluate(data, verbose=0), rel=1e-5)

    def test_targets_as_a_column_of_a_list(self):
        model = network((1,))
        y = Y[:, 0]
        one = HessianOperator(model, "mse", (X.tolist(), y.tolist())).loss()
        assert one == pytest.approx(np.mean((model(X).numpy()[:, 0] - y) ** 2), rel=1e-5)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("many", [False, True])
    def test_sparse_arrays(self, many):
        model = network((2,))
        x = X * (np.abs(X) > 0.5)
        model.compile(loss="mse", run_eagerly=True)
        wanted = keras_loss(model, (x, Y))
        for matrix in (scipy.sparse.csr_matrix(x), scipy.sparse.coo_matrix(x)):
            found = HessianOperator(model, data=(matrix, Y), batch_size=BATCH if many else None)
            assert found.loss() == pytest.approx(wanted, rel=1e-5)
            assert np.abs(found.gradient()).max() > 1e-3

    def test_sparse_tensors(self):
        model = network((2,))
        x = X * (np.abs(X) > 0.5)
        model.compile(loss="mse", run_eagerly=True)
        wanted = keras_loss(model, (x, Y))
        sparse = tf.sparse.from_dense(x)
        found = HessianOperator(model, data=(sparse, Y), batch_size=BATCH).loss()
        assert found == pytest.approx(wanted, rel=1e-5)
        dataset = tf.data.Dataset.from_tensor_slices((sparse, Y)).batch(BATCH)
        assert HessianOperator(model, data=dataset).loss() == pytest.approx(wanted, rel=1e-5)


ROWS = [[1.0], [0.5, 2.0], [3.0, 0.1, 0.2], [1.5], [0.4, 0.6], [2.0], [1.0, 1.0], [0.3]]


class OfRagged(keras.Model):
    """Sums each row of a ragged batch, then a line."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        if isinstance(x, tf.RaggedTensor):
            x = x.to_tensor()
        return self.dense(tf.stack([tf.reduce_sum(x, 1), tf.reduce_max(x, 1)], 1))


@pytest.mark.usefixtures("eagerly")
class TestRagged:
    def model(self):
        model = OfRagged()
        model(tf.ones((1, 2)))
        redraw(model)
        return model

    def wanted(self, model):
        x = np.array([[sum(row), max(row)] for row in ROWS])
        return np.mean((model.dense(x).numpy() - Y) ** 2)

    def test_dataset(self):
        model = self.model()
        data = tf.data.Dataset.from_tensor_slices((tf.ragged.constant(ROWS), Y)).batch(3)
        found = HessianOperator(model, "mse", data)
        assert found.loss() == pytest.approx(self.wanted(model), rel=1e-5)
        assert np.abs(found.gradient()).max() > 1e-3

    def test_dataset_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        self.test_dataset()

    def test_tensor(self):
        model = self.model()
        found = HessianOperator(model, "mse", (tf.ragged.constant(ROWS), Y), batch_size=3)
        assert found.loss() == pytest.approx(self.wanted(model), rel=1e-5)

    def test_a_long_dataset_does_not_shuffle(self):
        rng = np.random.default_rng(0)
        rows = [rng.uniform(size=1 + k % 5).tolist() for k in range(1500)]
        data = tf.data.Dataset.from_tensor_slices(
            (tf.ragged.constant(rows), np.zeros((1500, 2), "float32"))
        ).batch(700)
        assert np.isfinite(HessianOperator(self.model(), "mse", data).loss())

    def test_a_list_of_lists_of_different_lengths_is_refused(self):
        with pytest.raises(ValueError, match="different lengths"):
            HessianOperator(self.model(), "mse", (ROWS, Y))


WORDS = ["one", "two", "three", "four"]


class TestStrings:
    """The memory addresses of strings are not the strings: larger sets "shuffled"."""

    def model(self, kind):
        x = keras.Input((1,) if kind == "lookup" else (), dtype="string")
        if kind == "lookup":
            layer = layers.StringLookup(vocabulary=WORDS, output_mode="one_hot")
        else:
            layer = layers.TextVectorization(vocabulary=WORDS, output_mode="multi_hot")
        model = keras.Model(x, layers.Dense(2)(layer(x)))
        redraw(model)
        return model

    def data(self, kind, n):
        rng = np.random.default_rng(0)
        x = rng.choice(WORDS, n)
        if kind == "text":
            x = np.char.add(np.char.add(x, " "), rng.choice(WORDS, n))
        return (x[:, None] if kind == "lookup" else x), rng.standard_normal((n, 2)).astype("f4")

    @pytest.mark.parametrize("kind", ["lookup", "text"])
    def test_of_more_than_one_batch(self, kind):
        model, (x, y) = self.model(kind), self.data(kind, 1200)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(500)
        wanted = np.mean((model(tf.constant(x)).numpy() - y) ** 2)
        found = HessianOperator(model, "mse", data)
        assert found.loss() == pytest.approx(wanted, rel=1e-5)
        model.compile(loss="mse")
        assert model.evaluate(data, verbose=0) == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.few(2)
    @pytest.mark.parametrize("kind", ["lookup", "text"])
    @pytest.mark.parametrize("form", ["array", "objects", "lists", "tensor"])
    def test_arrays(self, kind, form):
        model, (x, y) = self.model(kind), self.data(kind, 1200)
        wanted = np.mean((model(tf.constant(x)).numpy() - y) ** 2)
        forms = {
            "array": lambda: x,
            "objects": lambda: x.astype(object),
            "lists": x.tolist,
            "tensor": lambda: tf.constant(x),
        }
        found = HessianOperator(model, "mse", (forms[form](), y)).loss()
        assert found == pytest.approx(wanted, rel=1e-5)

    def test_a_dataset_of_strings_that_shuffles_is_seen(self):
        model, (x, y) = self.model("lookup"), self.data("lookup", 1200)
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1200).batch(500)
        with pytest.raises(ValueError, match="shuffles"):
            HessianOperator(model, "mse", data)


def generator():
    while True:
        yield X[:4], Y[:4]


def jitter(x):
    return x + np.random.standard_normal(x.shape).astype("float32")


REFUSED = {
    "endless_generator": (generator, "generator"),
    "generator": (lambda: (b for b in [(X, Y)]), "generator"),
    "iterator_of_a_dataset": (
        lambda: iter(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)),
        "generator",
    ),
    "endless_dataset": (
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(),
        "never ends",
    ),
    "endless_dataset_of_a_generator": (
        lambda: tf.data.Dataset.from_generator(
            generator, output_signature=(tf.TensorSpec((4, 3)), tf.TensorSpec((4, 2)))
        ),
        "never ends",
    ),
    "endless_pydataset": (lambda: Batches(endless=True), "never ends"),
    "endless_loader": (EndlessLoader, "never ends"),
    "shuffling": (
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8, seed=1).batch(4),
        "shuffles",
    ),
    "augmenting": (
        lambda: (
            tf.data.Dataset.from_tensor_slices((X, Y))
            .batch(4)
            .map(
                lambda x, y: (tf.ensure_shape(tf.numpy_function(jitter, [x], "float32"), (4, 3)), y)
            )
        ),
        "shuffles anew, or samples",
    ),
    "shuffling_pydataset": (lambda: Batches(shuffles=True), "shuffles"),
    "not_batched": (lambda: tf.data.Dataset.from_tensor_slices((X[:, 0], Y[:, 0])), "batch"),
    "empty": (lambda: (X[:0], Y[:0]), "no examples"),
    "empty_dataset": (
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0),
        "no examples",
    ),
    "empty_lists": (lambda: ([], []), "no examples"),
    "four_parts": (lambda: (X, Y, Y, Y), r"Data must be \(x, y\)"),
    "of_unequal_lengths": (lambda: (X, Y[:5]), "differ in their number"),
    "unequal_weights": (lambda: (X, Y, np.ones(7)), "differ in their number"),
    "words_for_numbers": (lambda: (X, 3.0), "."),
    "a_path": (lambda: "data.npz", "Data must be"),
    "nothing": (lambda: None, "no data"),
    "zero_weights": (lambda: (X, Y, np.zeros(8)), "weights are 0"),
    "ragged_lists": (lambda: ([[1.0], [1.0, 2.0]], Y[:2]), "different lengths"),
}


@pytest.mark.usefixtures("eagerly")
class TestRefused:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_in_a_sentence(self, kind, monkeypatch):
        # How many batches are awaited of what does not know its length: 10,000 take a minute.
        monkeypatch.setattr(_data, "_ENDLESS", 50)
        make, message = REFUSED[kind]
        with pytest.raises(ValueError, match=message) as caught:
            mean_square(make())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("kind", ["endless_generator", "endless_dataset", "shuffling"])
    def test_by_the_tools_too(self, kind):
        make, message = REFUSED[kind]
        with pytest.raises(ValueError, match=message):
            local_energy(network((2,)), make(), "loss", loss="mse", samples=2, sigmas=[0.1])

    def test_a_batch_size_for_what_comes_in_batches(self):
        with pytest.raises(ValueError, match="`batch_size` is for arrays"):
            mean_square(Batches(), batch_size=4)

    def test_a_generator_is_left_as_it_was(self):
        """It is refused before a batch is taken of it."""
        source = iter([(X, Y)])
        with pytest.raises(ValueError, match="generator"):
            mean_square(source)
        assert len(list(source)) == 1


class Draws(layers.Layer):
    """Draws in inference too, by TensorFlow's generator."""

    def call(self, x):
        return x + 0.1 * tf.random.normal(tf.shape(x))


class DrawsOfSeed(layers.Layer):
    """Draws the same at each call."""

    def call(self, x):
        return x + 0.1 * tf.random.stateless_normal(tf.shape(x), seed=[1, 2])


class TestLayersThatDraw:
    def model(self, layer):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layer, layers.Dense(2)])
        redraw(model)
        return model

    def test_are_told(self):
        with pytest.raises(ValueError, match="samples random numbers"):
            HessianOperator(self.model(Draws()), "mse", (X, Y))

    def test_are_told_by_the_tools_too(self):
        for metric in ("loss", lambda y, p: tf.reduce_mean(tf.square(y - p), -1)):
            with pytest.raises(ValueError, match="samples random numbers"):
                local_energy(self.model(Draws()), (X, Y), metric, loss="mse", samples=2)

    def test_dropout_and_noise_are_off(self):
        for layer in (layers.Dropout(0.5), layers.GaussianNoise(1.0), DrawsOfSeed()):
            assert np.isfinite(HessianOperator(self.model(layer), "mse", (X, Y)).loss())
