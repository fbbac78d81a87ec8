"""docs/scaling.md: its formulas against tensors, traced graphs and the profiler; its tables."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from docs import _costs, scaling
from esgd_tf import models
from esgd_tf.optimizers import EntropySGD, LocalEntropy

OUTER = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "SGD, momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.1),
}


def size(shape):
    return math.prod(int(n) for n in shape)


def numbers(variables):
    return sum(size(v.shape) for v in variables)


# ---- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-4", "wrn-28-10"])
def test_the_network_is_counted_right(name):
    counted = _costs.wide_resnet(*(int(n) for n in name.split("-")[1:]))
    model = models.build(name, (32, 32, 3), 10)
    assert counted.weights == numbers(model.trainable_variables)
    norms = [v for v in model.layers if isinstance(v, keras.layers.BatchNormalization)]
    assert sorted(counted.norm_channels) == sorted(n.gamma.shape[0] for n in norms)
    relus = [layer for layer in model.layers if "relu" in layer.name]
    kept = sum(size(n.input.shape[1:]) for n in norms)
    kept += sum(size(r.output.shape[1:]) for r in relus)
    assert counted.activations == kept
    macs = sum(
        size(layer.kernel.shape) * size(layer.output.shape[1:-1])
        for layer in model.layers
        if hasattr(layer, "kernel")
    )
    assert counted.macs == macs


def test_flops_of_a_gradient_evaluation():
    counted, batch = _costs.wide_resnet(10, 1), 4
    model = models.build(counted.name, (32, 32, 3), 10)

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    graph = gradient.get_concrete_function(tf.TensorSpec([batch, 32, 32, 3])).graph
    # A product of matrices m x k and k x n has 2 m k n operations.
    flops = 0
    for op in graph.get_operations():
        filters, gradient_or_output = {
            "Conv2D": (op.inputs[1:2], op.outputs),
            "Conv2DBackpropInput": (op.inputs[1:2], op.inputs[2:3]),
            "Conv2DBackpropFilter": (op.outputs, op.inputs[2:3]),
        }.get(op.type, ([], []))
        for kernel, image in zip(filters, gradient_or_output, strict=True):
            flops += 2 * size(kernel.shape[:3]) * size(image.shape)
        if op.type == "MatMul":
            flops += 2 * math.isqrt(math.prod(size(t.shape) for t in [*op.inputs, *op.outputs]))
    assert flops == batch * counted.flops


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("langevin_steps", [0, 3])
@pytest.mark.parametrize("outer", list(OUTER))
def test_slots(outer, langevin_steps):
    model = models.build("mnistfc", (28, 28, 1), 10)
    for inner_momentum in (0.9, 0.0):
        optimizer = LocalEntropy(OUTER[outer](), langevin_steps, momentum=inner_momentum)
        optimizer.build(model.trainable_variables)
        measured = sum(v.numpy().nbytes for v in optimizer.variables)
        weights = numbers(model.trainable_variables)
        formula = _costs.slots(outer, langevin_steps, inner_momentum=inner_momentum > 0)
        # Beside the slots: counters, seed and rates; by tensor, whether it takes part (4 bytes), 16
        # numbers of what the last step left (128), and what tells who holds x' (16).
        small = 148 * len(model.trainable_variables) + 96
        assert 0 <= measured - weights * sum(formula.values()) <= small


def test_the_table_of_slots_covers_the_library():
    assert set(_costs.OUTER_SLOTS) == set(OUTER)


# ---- the update ---------------------------------------------------------------------------------

# Operations that change a variable in place: tensors read and written.
IN_PLACE = {"ResourceApplyKerasMomentum": 3 + 2, "ResourceApplyGradientDescent": 2 + 1}
# Operations that hand a buffer on as it is.
FREE = {"Placeholder", "ReadVariableOp", "Identity", "IdentityN", "Reshape"}


def test_passes_of_a_plain_step():
    n = 1000
    weights = keras.Variable(np.zeros(n, "float32"))
    optimizer = EntropySGD(langevin_steps=20, weight_decay=1e-3)
    optimizer.build([weights])

    @tf.function(autograph=False)
    def step(gradient):
        optimizer.apply([gradient], [weights])

    graph = step.get_concrete_function(tf.TensorSpec([n])).graph
    assert passes_in(graph, n) == sum(_costs.PASSES.values())


def passes_in(graph, n):
    """Numbers read and written by the operations of a graph, over n."""
    passes = 0
    for op in graph.get_operations():
        # A gather reads no more than it gives.
        touched = op.outputs if op.type == "GatherV2" else [*op.inputs, *op.outputs]
        sizes = [t.shape.num_elements() or 0 for t in touched]
        if op.type in IN_PLACE:
            passes += IN_PLACE[op.type]
        elif op.type.endswith("PartitionedCall"):
            # The drawing of the noise is a function of its own.
            passes += passes_in(graph._get_function(op.get_attr("f").name).graph, n)
        # The first and the last step are in branches: graphs of their own.
        elif op.type not in FREE and "If" not in op.type:
            passes += sum(size for size in sizes if size >= n // 2) / n
    return passes


# ---- communication ------------------------------------------------------------------------------


def reduced(strategy, make, shape):
    """Sizes of what enters an all-reduce on each device in one traced training step."""
    with strategy.scope():
        model = make()
        model.compile(
            EntropySGD(langevin_steps=3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        x, y = np.zeros((4, *shape), "float32"), np.zeros(4, "int64")
        model._symbolic_build(data_batch=(x, y))  # makes the variables of the metrics
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((x, y)))

    @tf.function(autograph=False)
    def step(batch):
        return strategy.run(model.train_step, args=(batch,))

    graph = step.get_concrete_function(next(iter(data))).graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    sizes = [
        size(d.size for d in node.attr["_output_shapes"].list.shape[0].dim)
        for node in nodes
        if node.op.startswith("Collective") or node.op.startswith("Nccl")
    ]
    assert sorted(sizes[::2]) == sorted(sizes[1::2])  # two devices
    return sorted(sizes)[::2]


@pytest.mark.slow
def test_all_gradients_travel_in_one_pack_and_nothing_else_does(two_cpus):
    counted = _costs.wide_resnet(10, 1)
    sizes = reduced(two_cpus, lambda: models.build(counted.name, (32, 32, 3), 10), (32, 32, 3))
    assert sizes == _costs.reduced_numbers(counted)


@pytest.mark.slow
def test_synchronised_batch_norm_reduces_five_times_a_layer(two_cpus):
    def make():
        layers = [keras.Input((8, 8, 3))]
        for channels in (5, 7):
            layers.append(keras.layers.Conv2D(channels, 3))
            layers.append(keras.layers.BatchNormalization(synchronized=True))
        layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
        return keras.Sequential(layers)

    weights = numbers(make().trainable_variables)
    counted = _costs.Network("two layers", weights, 0, (5, 7), 0)
    sizes = reduced(two_cpus, make, (8, 8, 3))
    assert sizes == sorted(_costs.reduced_numbers(counted, sync_bn=True))


def test_bytes_of_an_all_reduce():
    # Two devices exchange halves, twice; with many each sends its numbers about twice.
    assert _costs.all_reduce_bytes(10, 1) == 0
    assert _costs.all_reduce_bytes(10, 2) == 40
    assert _costs.all_reduce_bytes(1000, 1000) == pytest.approx(2 * 4000, rel=2e-3)


# ---- the document -------------------------------------------------------------------------------


@pytest.mark.parametrize("title", [title for title, _ in scaling.tables()])
def test_the_document_holds_the_tables(title):
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    assert dict(scaling.tables())[title] in text, "run python3 docs/scaling.py and paste the table"


def test_estimates_by_hand():
    net, cluster = _costs.wide_resnet(28, 10), scaling.Cluster()
    one = scaling.estimate(net, 1, 128, cluster)
    assert one.communication == 0
    assert one.gradient == pytest.approx(144 * net.flops / (0.35 * 989e12))
    assert one.evaluations == 78_125
    coupled = scaling.estimate(net, 64, 128, cluster, local_steps=20)
    parallel = scaling.estimate(net, 64, 128, cluster)
    assert coupled.communication == pytest.approx(parallel.communication / 20)
    # Two machines of one GPU each: all bytes cross the network.
    alone = scaling.Cluster(per_machine=1, hop=(0.0, 0.0))
    assert alone.all_reduce(10**9, 2) == pytest.approx(4e9 / (0.8 * 50e9))
