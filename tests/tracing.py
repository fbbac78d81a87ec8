"""Against tracing everything twice."""

import tensorflow as tf


def build_before_fit(model, x, y):
    """Make the variables of the optimizer and the metrics that `fit` would make in its first trace.

    It would then trace a second time. Under a strategy Keras does this by itself.
    """
    if isinstance(model.distribute_strategy, type(tf.distribute.get_strategy())):
        model._symbolic_build(data_batch=(tf.constant(x[:1]), tf.constant(y[:1])))
    return model
