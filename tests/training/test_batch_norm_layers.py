"""Re-estimation of BatchNormalization statistics, wherever Keras lets such a layer be.

Every expected number is NumPy's mean and variance of what arrives at the layer.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import reestimate_batch_norm
from esgd_tf.training.batch_norm import BatchNormAveraging, BatchNormReestimation

K = keras.layers
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype("float32")


def assert_has_statistics_of(norm, positions, rtol=1e-5):
    """Positions are [..., channels], in float64 or to be."""
    flat = np.concatenate([np.asarray(p, "float64").reshape(-1, p.shape[-1]) for p in positions])
    np.testing.assert_allclose(norm.moving_mean.numpy(), flat.mean(0), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.numpy(), flat.var(0), rtol=10 * rtol, atol=1e-6)


def others(model):
    return [v for v in model.variables if v.path.split("/")[-1] not in STATISTICS]


def values(variables):
    return [v.numpy() for v in variables]


def assert_same(before, variables):
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy(), err_msg=variable.path)


# Calls and positions


@pytest.mark.parametrize("kind", [K.BatchNormalization, esgd_tf.models.BatchNormalization])
def test_a_siamese_layer_counts_both_calls(kind):
    one, two = keras.Input((3,)), keras.Input((3,))
    norm = kind()
    model = keras.Model([one, two], K.Dense(1)(norm(one) - norm(two)))
    data = [((draw(n, 3, seed=n), 5 + draw(n, 3, seed=n + 1)), np.zeros(n)) for n in (6, 2)]
    assert reestimate_batch_norm(model, data) == 8
    assert_has_statistics_of(norm, [x for pair, _ in data for x in pair])


@pytest.mark.parametrize("steps", [4, None])
def test_time_distributed_counts_every_step(steps):
    norm = K.BatchNormalization()
    model = keras.Sequential([keras.Input((steps, 3)), K.TimeDistributed(norm)])
    ramp = np.arange(4, dtype="float32")[:, None]
    data = [draw(5, 4, 3) + ramp, draw(2, steps or 3, 3, seed=1) - ramp[: steps or 3]]
    reestimate_batch_norm(model, data)
    assert_has_statistics_of(norm, data)


def test_time_distributed_of_a_length_that_only_the_run_knows_is_refused():
    class Cut(K.Layer):
        def call(self, x):
            return tf.boolean_mask(x, tf.reduce_any(x > 0, [0, 2]), axis=1)

        def compute_output_shape(self, shape):
            return (shape[0], None, shape[2])

    model = keras.Sequential(
        [keras.Input((4, 3)), Cut(), K.TimeDistributed(K.BatchNormalization())]
    )
    with pytest.raises(ValueError, match="known number of time steps"):
        reestimate_batch_norm(model, [draw(5, 4, 3)])


def test_positions_weigh_alike_in_batches_of_other_lengths_and_masked_ones_do_not_count():
    norm = K.BatchNormalization()
    model = keras.Sequential([keras.Input((None, 3)), K.Masking(-7.0), norm])
    data = [draw(4, length, 3, seed=length) * length for length in (9, 2, 5)]
    seen = []
    for x in data[:2]:
        keep = np.arange(x.shape[1]) < np.array([1, 2, 1, 7])[:, None]
        x[~keep] = -7.0
        seen.append(x[keep])
    data[2][:] = -7.0  # nothing to see in this batch
    assert reestimate_batch_norm(model, data) == 12
    assert_has_statistics_of(norm, seen)


def test_a_mask_hides_nan_and_later_layers_see_what_training_shows_them():
    first, second = K.BatchNormalization(), K.BatchNormalization()
    inputs, mask = keras.Input((4, 2)), keras.Input((4,), dtype="bool")
    outputs = second(first(inputs, mask=mask), mask=mask)
    model = keras.Model([inputs, mask], outputs)
    x, keep = draw(6, 4, 2), np.random.default_rng(1).random((6, 4)) < 0.6
    normal = (x - x[keep].mean(0)) / np.sqrt(x[keep].var(0) + first.epsilon)
    x[~keep] = np.nan
    reestimate_batch_norm(model, [((x, keep),)])
    assert_has_statistics_of(first, [x[keep]])
    assert_has_statistics_of(second, [normal[keep]])


def test_images_of_other_sizes_with_channels_first():
    norm = K.BatchNormalization(axis=1)
    model = keras.Sequential([keras.Input((2, None, None)), norm])
    data = [draw(3, 2, 4, 5), 9 + draw(1, 2, 2, 2)]
    reestimate_batch_norm(model, data)
    assert_has_statistics_of(norm, [x.transpose(0, 2, 3, 1) for x in data])


def test_in_a_recurrent_cell_every_step_counts():
    norm = K.BatchNormalization()

    class Cell(K.Layer):
        state_size = output_size = 3

        def build(self, shape):
            self.norm = norm
            norm.build(shape)

        def call(self, x, states, training=None):
            y = self.norm(x, training=training)
            return y, [y]

    model = keras.Sequential([keras.Input((None, 3)), K.RNN(Cell())])
    data = [draw(5, 4, 3), draw(2, 7, 3, seed=1)]
    reestimate_batch_norm(model, data)
    # Keras tries its cell on the first step of a batch before the loop, in training too.
    assert_has_statistics_of(norm, [*data, *(x[:, 0] for x in data)])


def test_half_precision_sums_are_wider():
    model = keras.Sequential(
        [keras.Input((3,)), K.BatchNormalization(dtype="mixed_float16", name="norm")]
    )
    data = [(1000 * draw(64, 3, seed=n)).astype("float16") for n in range(3)]
    reestimate_batch_norm(model, data)  # a variance of 4e6 is infinite in float16
    assert_has_statistics_of(model.layers[0], data)


def test_a_mean_of_a_thousand_deviations():
    norm = K.BatchNormalization(dtype="float64")
    model = keras.Sequential([keras.Input((3,), dtype="float64"), norm])
    data = [2e3 + draw(50, 3, seed=n).astype("float64") for n in range(4)]
    reestimate_batch_norm(model, data)
    assert_has_statistics_of(norm, data, rtol=1e-10)


# What else is in the network


RANDOM = {
    "dropout": (K.Dropout(0.5), (4, 3)),
    "spatial dropout": (K.SpatialDropout1D(0.5), (4, 3)),
    "alpha dropout": (K.AlphaDropout(0.5), (4, 3)),
    "noise": (K.GaussianNoise(1.0), (4, 3)),
    "lstm": (K.LSTM(3, dropout=0.5, recurrent_dropout=0.5), (4, 3)),
    "gru": (K.Bidirectional(K.GRU(3, dropout=0.5)), (4, 3)),
    "attention": (lambda x: K.MultiHeadAttention(1, 3, dropout=0.5)(x, x), (4, 3)),
    "augmentation": (keras.Sequential([K.RandomFlip(), K.RandomRotation(0.4)]), (4, 4, 3)),
    "crop": (K.RandomCrop(2, 2), (4, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_nothing_is_random(name):
    layer, shape = RANDOM[name]
    inputs = keras.Input(shape)
    hidden = layer(inputs)
    norm = K.BatchNormalization()
    model = keras.Model(inputs, norm(hidden))
    before = values(others(model))
    x = draw(8, *shape)
    reestimate_batch_norm(model, [x])
    assert_same(before, others(model))
    expected = keras.Model(inputs, hidden)(x, training=False)
    assert_has_statistics_of(norm, [np.asarray(expected)], rtol=1e-4)


def test_state_of_other_layers_is_left_bit_for_bit():
    class Counts(K.Layer):
        def build(self, shape):
            self.calls = self.add_weight(trainable=False, initializer="zeros", name="calls")

        def call(self, x):
            self.calls.assign_add(1.0)
            self.add_loss(keras.ops.mean(x))
            return x

    model = keras.Sequential(
        [
            keras.Input((4, 3), batch_size=5),
            K.SpectralNormalization(K.Dense(3)),
            Counts(),
            K.LSTM(3, stateful=True, return_sequences=True),
            K.BatchNormalization(),
        ]
    )
    model(draw(5, 4, 3, seed=2))
    before = values(others(model))
    reestimate_batch_norm(model, [draw(5, 4, 3)])
    assert_same(before, others(model))
    assert np.isfinite(np.sum(model.losses))  # and no tensor of a graph is left among the losses


def test_statistics_that_are_nan_recover():
    model = keras.Sequential([keras.Input((3,)), K.BatchNormalization(), K.BatchNormalization()])
    for norm in model.layers:
        norm.moving_mean.assign([np.nan] * 3)
        norm.moving_variance.assign([np.inf] * 3)
    x = draw(20, 3)
    reestimate_batch_norm(model, [x])
    assert_has_statistics_of(model.layers[0], [x])
    assert np.isfinite(model.layers[1].moving_variance).all()


def test_frozen_layers_act_as_in_inference_and_may_be_frozen_between_two_passes():
    frozen, norm = K.BatchNormalization(), K.BatchNormalization()
    model = keras.Sequential([keras.Input((3,)), frozen, norm])
    estimate, x = BatchNormReestimation(model), draw(20, 3)
    estimate([x])
    before = values(frozen.variables)
    frozen.trainable = False
    estimate([10 * x])
    assert_same(before, frozen.variables)
    assert_has_statistics_of(norm, [np.asarray(frozen(10 * x))], rtol=1e-4)
    frozen.trainable = True
    estimate([10 * x])
    assert_has_statistics_of(frozen, [10 * x])


class Subclassed(keras.Model):
    """Layers in lists, a `call` without `training`, a branch on a tensor, a backbone held fixed."""

    def __init__(self):
        super().__init__()
        self.fixed = K.BatchNormalization(name="fixed")
        self.blocks = [[K.BatchNormalization()], [K.BatchNormalization()]]
        self.dropout = K.Dropout(0.5)

    def call(self, x):
        for (norm,) in self.blocks:
            x = norm(self.dropout(x))
        return self.fixed(x, training=False)


def test_subclassed_models_and_calls_in_inference():
    model = Subclassed()
    with pytest.raises(ValueError, match="has no weights yet"):
        reestimate_batch_norm(model, [draw(20, 3)])
    x = draw(20, 3)
    model(x)
    before = values(model.fixed.variables)
    reestimate_batch_norm(model, [x])
    assert_has_statistics_of(model.blocks[0][0], [x])
    assert not np.array_equal(model.blocks[1][0].moving_variance, np.ones(3))
    assert_same(before, model.fixed.variables)


def test_compiled_parts_and_branches_on_training_as_a_tensor():
    class Part(K.Layer):
        def __init__(self):
            super().__init__()
            self.norm = K.BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        @tf.function
        def call(self, x, training=False):
            x = tf.cond(tf.convert_to_tensor(training), lambda: x + 100.0, lambda: x)
            return self.norm(x, training=training)

    part = Part()
    model, x = keras.Sequential([keras.Input((3,)), part]), draw(20, 3)
    model(x, training=False)
    for _ in range(2):  # traces that others made are not used, nor is this one by others
        reestimate_batch_norm(model, [x])
        assert_has_statistics_of(part.norm, [x])
        mean, variance = part.norm.moving_mean.numpy(), part.norm.moving_variance.numpy()
        expected = (10 * x - mean) / np.sqrt(variance + part.norm.epsilon)
        np.testing.assert_allclose(model(10 * x, training=False), expected, rtol=1e-4, atol=1e-5)
        part.norm.moving_mean.assign([9.0] * 3)


def test_renormalising_layers_get_all_three_moving_statistics():
    norm = K.BatchNormalization(renorm=True)
    model, x = keras.Sequential([keras.Input((3,)), norm]), draw(20, 3)
    before = values([norm.renorm_mean, norm.renorm_stddev])
    reestimate_batch_norm(model, [x])
    assert_has_statistics_of(norm, [x])
    np.testing.assert_allclose(norm.moving_stddev, np.sqrt(x.var(0) + norm.epsilon), rtol=1e-5)
    assert_same(before, [norm.renorm_mean, norm.renorm_stddev])


class Doubled(K.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class Counting(Doubled):
    def build(self, shape):
        super().build(shape)
        self.steps = self.add_weight(trainable=False, initializer="zeros", name="steps")


class AlwaysTraining(K.BatchNormalization):
    def call(self, inputs):
        return super().call(inputs, training=True)


def test_subclasses_of_others_work_or_are_refused():
    x = draw(20, 3)
    model = keras.Sequential([keras.Input((3,)), Doubled(), K.BatchNormalization(epsilon=0.0)])
    reestimate_batch_norm(model, [x])
    assert_has_statistics_of(model.layers[0], [x])
    np.testing.assert_allclose(model.layers[1].moving_variance, [4.0] * 3, rtol=1e-2)
    for kind, why in [(Counting, "variables that"), (AlwaysTraining, "no argument `training`")]:
        norm = kind(name="own")
        model = keras.Sequential([keras.Input((3,)), norm])
        with pytest.raises(ValueError, match=rf"own' is a {kind.__name__}, .*{why}.*trainable"):
            reestimate_batch_norm(model, [x])
        norm.trainable = False
        assert reestimate_batch_norm(model, [x]) == 0


# Failure


class NanForFive(K.Layer):
    """NaN for a batch of five examples."""

    def call(self, x):
        return x + keras.ops.where(keras.ops.shape(x)[0] == 5, np.nan, 0.0)


def broken_in_the_middle():
    yield draw(4, 3)
    raise OSError("The disk is gone.")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([draw(4, 3), draw(5, 3)], ValueError, r"second' is not finite, so no statistic was ch"),
        ([draw(4, 3), draw(4, 2)], ValueError, "shape"),
        (broken_in_the_middle(), OSError, "disk"),
    ],
)
def test_a_pass_that_fails_in_the_middle_changes_nothing(data, error, message):
    first, second = K.BatchNormalization(), K.BatchNormalization(name="second")
    model = keras.Sequential([keras.Input((3,)), first, NanForFive(), second])
    estimate = BatchNormReestimation(model)
    estimate([draw(4, 3, seed=1)])
    before = values(model.variables)
    with pytest.raises(error, match=message):
        estimate.estimate(data)
    assert_same(before, model.variables)
    assert "call" not in vars(first)
    estimate([draw(4, 3, seed=2)])  # and the sums begin at zero again
    assert_has_statistics_of(first, [draw(4, 3, seed=2)])


# Strategies and speed


def deep():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            K.BatchNormalization(synchronized=True),
            K.Dense(4, activation="tanh"),
            K.BatchNormalization(),
            K.Dense(2),
        ]
    )


def test_batches_of_a_distributed_dataset_are_taken_whole(two_cpus):
    x = np.concatenate([draw(9, 3), 40 * draw(4, 3, seed=1)])  # the last batch: 1 example
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(13))).batch(4)
    with two_cpus.scope():
        mirrored = deep()
        assert reestimate_batch_norm(mirrored, two_cpus.experimental_distribute_dataset(data)) == 13
    single = deep()
    assert reestimate_batch_norm(single, data) == 13
    for a, b in zip(mirrored.variables, single.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-6, err_msg=a.path)


def test_it_is_traced_twice_for_lengths_that_vary():
    traces = []

    class Traced(K.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    model = keras.Sequential([keras.Input((None, 3)), Traced(), K.BatchNormalization()])
    traces.clear()
    estimate = BatchNormReestimation(model)
    for _ in range(2):
        estimate([draw(n, length, 3) for n, length in [(4, 2), (4, 3), (4, 9), (3, 5)]])
    assert len(traces) <= 3  # of one shape, of any length, of any length and number


def test_a_network_that_has_diverged_is_left_by_callbacks_and_refused_to_users():
    model = keras.Sequential([keras.Input((3,)), K.Dense(2), K.BatchNormalization()])
    model.layers[0].bias.assign([np.nan, 0.0])
    before = values(model.variables)
    with pytest.raises(ValueError, match="not finite"):
        reestimate_batch_norm(model, [draw(5, 3)])
    estimate = BatchNormReestimation(model)
    with pytest.warns(UserWarning, match="not finite") as caught:
        assert estimate([draw(5, 3)]) == estimate([draw(5, 3)]) == 0
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert_same(before, model.variables)
    model.layers[0].bias.assign([0.0, 0.0])
    with pytest.raises(ValueError, match="not finite"):
        reestimate_batch_norm(model, [np.nan * draw(5, 3)])


def test_averaging_takes_in_all_that_differs_and_what_was_released_meanwhile(two_cpus):
    with two_cpus.scope():
        frozen, norm = K.BatchNormalization(), K.BatchNormalization(renorm=True)
        model = keras.Sequential([keras.Input((3,)), frozen, norm])
    frozen.trainable = False
    average = BatchNormAveraging(model)

    def parts():
        variables = [v for layer in (frozen, norm) for v in layer.non_trainable_variables]
        return [[part.numpy() for part in v.value.values] for v in variables[-7:]]

    def train():
        values = two_cpus.experimental_distribute_values_from_function(
            lambda context: draw(8, 3, seed=context.replica_id_in_sync_group)
        )
        two_cpus.run(lambda x: model(x, training=True), args=(values,))

    average()
    frozen.trainable = True
    train()
    before = parts()
    assert all(not np.array_equal(one, two) for one, two in before)
    average()
    for (one, two), old in zip(parts(), before, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, np.mean(old, 0), rtol=1e-6)
