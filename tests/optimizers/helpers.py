"""A plain reference loop, and small problems that every test file uses."""

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers import _kernels, langevin

SHAPES = ((4, 3), (3,), (2, 3))


def start_weights(dtype="float64", shapes=SHAPES):
    generator = np.random.default_rng(7)
    return [generator.normal(size=shape).astype(dtype) for shape in shapes]


def gradient(weights, step):
    """Gradient of a smooth function that changes with the step, as minibatches do."""
    return [0.5 * w + np.sin(3 * w + 0.7 * step + i) for i, w in enumerate(weights)]


def variables(weights):
    return [keras.Variable(w, dtype=w.dtype.name, name=f"w{i}") for i, w in enumerate(weights)]


def numpy(values):
    return [value.numpy() for value in values]


def run(optimizer, weights, steps, gradient=gradient):
    """Drive `optimizer.apply` eagerly; return what the variables hold after each step."""
    model = variables(weights)
    held = []
    for step in range(steps):
        grads = [tf.constant(g) for g in gradient(numpy(model), step)]
        optimizer.apply(grads, model)
        held.append(numpy(model))
    return held


def displacement(shape, dtype, seed, index, step, *, rate, noise):
    """Return the thermal displacement that the optimizer draws without XLA."""
    key = _kernels.noise_key(tf.constant(seed, tf.int64), tf.constant(step, tf.int64))
    normal = _kernels.standard_normal(tf.TensorShape(shape), tf.as_dtype(dtype), key, index)
    return np.sqrt(2 * rate) * noise * normal.numpy()


def reference(
    outer,
    weights,
    steps,
    gradient=gradient,
    *,
    langevin_steps,
    langevin_learning_rate=0.1,
    gamma=lambda t: 0.0,
    noise=0.0,
    averaging=0.75,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    gamma_in_outer_step=False,
    seed=0,
):
    """Run the pure rules around a plain Keras optimizer; return the weights after each step.

    Args:
        outer: A plain Keras optimizer, or a function of (x, x - mean) that returns the new x.
        weights: Where to start, a list of arrays.
        steps: Number of gradient evaluations.
        gradient: Function of (weights, step).
        gamma: Function of t, the number of the outer update.
        langevin_steps, langevin_learning_rate, noise, averaging, momentum, nesterov, weight_decay,
            gamma_in_outer_step, seed: As in LocalEntropy.

    Returns:
        For each step, a dict: `weights` (what the model holds after it), and, before the outer
        update if there was one, `anchor`, `state` (a LangevinState for each weight), `gradient`
        and `displacement`.
    """
    anchor, history = [np.array(w) for w in weights], []
    model = None if callable(outer) else variables(weights)
    for step in range(steps):
        t, phase = divmod(step, langevin_steps)
        if phase == 0:
            states = [langevin.start(x) for x in anchor]
        grads = gradient([state.weights for state in states], step)
        shifts = [
            displacement(
                x.shape, x.dtype.name, seed, i, step, rate=langevin_learning_rate, noise=noise
            )
            if noise
            else None
            for i, x in enumerate(anchor)
        ]
        states = [
            langevin.langevin_step(
                state,
                x,
                g,
                learning_rate=langevin_learning_rate,
                gamma=gamma(t + 1),
                averaging=averaging,
                momentum=momentum,
                nesterov=nesterov,
                weight_decay=weight_decay,
                displacement=shift,
            )
            for state, x, g, shift in zip(states, anchor, grads, shifts, strict=True)
        ]
        record = {"anchor": anchor, "state": states, "gradient": grads, "displacement": shifts}
        if phase < langevin_steps - 1:
            record["weights"] = [state.weights for state in states]
        else:
            factor = gamma(t + 1) if gamma_in_outer_step else None
            outer_grads = [
                langevin.outer_gradient(x, state.mean, factor)
                for x, state in zip(anchor, states, strict=True)
            ]
            if callable(outer):
                anchor = [outer(x, r) for x, r in zip(anchor, outer_grads, strict=True)]
            else:
                outer.apply([tf.constant(r) for r in outer_grads], model)
                anchor = numpy(model)
            record["weights"] = anchor
        history.append(record)
    return history


def assert_close(left, right, *, rtol=0.0, atol=1e-12):
    """Compare two lists of arrays."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_equal(left, right):
    """Compare two lists of arrays bit for bit."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def assert_differ(left, right):
    """Check that some array differs."""
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(left, right, strict=True))


# ---- a small network for `fit` ------------------------------------------------------------------

BATCH = 8
STEPS_PER_EPOCH = 5


def data(dtype="float32"):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(BATCH * STEPS_PER_EPOCH, 4)).astype(dtype)
    y = np.sin(x[:, :3] - 2 * x[:, 1:]).astype(dtype)
    return x, y


def network(optimizer, *, build_in_fit=False, **compile_options):
    """Return a compiled network of a kernel and a bias, always with the same start.

    Args:
        optimizer: A new optimizer.
        build_in_fit: Leave it to `fit` to build the optimizer, which traces everything twice.
        compile_options: Arguments of `compile`.
    """
    layer = keras.layers.Dense(3, "tanh", kernel_initializer=keras.initializers.GlorotUniform(1))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(optimizer=optimizer, loss="mse", **compile_options)
    if not build_in_fit:
        model.optimizer.build(model.trainable_variables)
    return model


def fit(model, epochs=1, **options):
    x, y = data(model.dtype_policy.variable_dtype)
    options.setdefault("batch_size", BATCH)
    return model.fit(x, y, epochs=epochs, shuffle=False, verbose=0, **options)


def train_on_batches(model, steps, start=0):
    """Train on single batches: `fit` would leave the model at the anchor at its end."""
    x, y = data(model.dtype_policy.variable_dtype)
    for step in range(start, start + steps):
        at = slice(step % STEPS_PER_EPOCH * BATCH, (step % STEPS_PER_EPOCH + 1) * BATCH)
        model.train_on_batch(x[at], y[at])


def network_gradient():
    """Return the gradient of the network's loss as a function of (weights, step)."""
    twin = network("sgd")
    x, y = (tf.constant(a) for a in data(twin.dtype_policy.variable_dtype))

    @tf.function
    def tape_gradient(x, y):
        with tf.GradientTape() as tape:
            loss = twin.compute_loss(x, y, twin(x, training=True))
        return tape.gradient(loss, [v.value for v in twin.trainable_variables])

    def gradient(weights, step):
        twin.set_weights(weights)
        at = step % STEPS_PER_EPOCH * BATCH
        return numpy(tape_gradient(x[at : at + BATCH], y[at : at + BATCH]))

    return twin.get_weights(), gradient


class Record(keras.callbacks.Callback):
    """Keep what the model holds after each batch, and something read from the optimizer."""

    def __init__(self, read=None):
        super().__init__()
        self.weights, self.read, self.values = [], read, []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())
        if self.read is not None:
            self.values.append(self.read(self.model.optimizer))
