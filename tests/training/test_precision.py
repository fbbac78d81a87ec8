"""set_precision: what it sets, what it undoes, and that training stays what it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from esgd_tf import models
from esgd_tf.models.batch_norm import BatchNormalization
from esgd_tf.optimizers import EntropySGD, LocalEntropy
from esgd_tf.training import precision
from tests.tracing import build_before_fit

L = 3
STEPS = 7  # two outer updates, and one step of the third inner loop


@pytest.fixture(autouse=True)
def undone():
    yield
    precision.set_precision("none")


@pytest.fixture
def needs_bfloat16():
    if "oneDNN" not in precision.set_precision("bfloat16"):
        pytest.skip("needs a CPU that multiplies bfloat16")
    precision.set_precision("none")


def entropy_sgd(**options):
    defaults = {"langevin_learning_rate": 0.1, "noise": 1e-4, "weight_decay": 5e-4, "gamma": 0.01}
    return EntropySGD(langevin_steps=L, seed=1, **{**defaults, **options})


def small_network():
    """Whatever a wide residual network is made of, once or twice."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    for strides in (1, 2):
        y = keras.layers.Activation("relu")(BatchNormalization()(x))
        y = keras.layers.Conv2D(8, 3, strides, padding="same", use_bias=False)(y)
        x = y + x if strides == 1 else y
    x = keras.layers.GlobalAveragePooling2D()(BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def network(optimizer, name="small", **compile_options):
    model = small_network() if name == "small" else models.build(name, (32, 32, 3), 10, seed=0)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **compile_options},
    )
    return build_before_fit(model, *batch(2))


def batch(size):
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, 32, 32, 3)).astype("float32"), rng.integers(0, 10, size)


def losses(model, steps=STEPS, size=16):
    """Train through `fit` on one batch over and over; the loss of each step."""
    seen = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seen.append(logs))
    data = tf.data.Dataset.from_tensors(batch(size)).repeat()
    for _ in range(steps):  # `fit` shows the mean since its beginning
        model.fit(data, steps_per_epoch=1, verbose=0, shuffle=False, callbacks=[note])
        local = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        local._swap.place("langevin")  # `fit` ends at the anchor
    return np.array([logs["loss"] for logs in seen])


def nodes_by_dtype(model, size=16):
    """Operations of one optimized training step: {op: dtypes it computes in}."""
    model.make_train_function()
    iterator = iter(tf.data.Dataset.from_tensors(batch(size)).repeat())
    context.enable_run_metadata()
    model.train_function(iterator)
    metadata = context.export_run_metadata()
    context.disable_run_metadata()
    found = {}
    for graphs in metadata.function_graphs:
        for graph in graphs.partition_graphs:
            nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
            for node in nodes:
                dtype = node.attr["T"].type or node.attr["dtype"].type
                if dtype:
                    found.setdefault(node.op, set()).add((tf.as_dtype(dtype).name, node.name))
    return found


def dtypes(found, *parts):
    return {dtype for op, seen in found.items() if any(p in op for p in parts) for dtype, _ in seen}


def option():
    return tf.config.optimizer.get_experimental_options().get(precision._REWRITER, False)


# ---- what is set --------------------------------------------------------------------------------


def test_names():
    assert precision.set_precision("none") == "float32"
    assert keras.config.dtype_policy().name == "float32"
    assert "loss scaling" in precision.set_precision("float16")
    assert keras.config.dtype_policy().name == "mixed_float16"
    with pytest.raises(ValueError, match=r"'half' is unknown: choose one of none, bfloat16, float"):
        precision.set_precision("half")


def test_bfloat16_on_the_cpu_is_the_rewriter_and_is_undone(needs_bfloat16):
    description = precision.set_precision("bfloat16")
    assert description == "bfloat16 by oneDNN's automatic mixed precision"
    assert option()
    assert keras.config.dtype_policy().name == "float32"
    for other, policy in (("float16", "mixed_float16"), ("none", "float32")):
        precision.set_precision("bfloat16")
        precision.set_precision(other)
        assert not option()
        assert keras.config.dtype_policy().name == policy


def test_without_instructions_for_it_bfloat16_is_float32(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: False)
    assert precision.set_precision("bfloat16").startswith("float32 instead of bfloat16: this CPU")
    assert not option()
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: True)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert "TF_ENABLE_ONEDNN_OPTS=0" in precision.set_precision("bfloat16")
    assert not option()


@pytest.mark.parametrize("kind", ["GPU", "TPU"])
def test_bfloat16_on_an_accelerator_is_the_policy(monkeypatch, kind):
    there = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda k: there if k == kind else [])
    assert kind in precision.set_precision("bfloat16")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert not option()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse2 avx512f amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512_bf16", True),
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("model name\t: amx_bf16", False),
    ],
)
def test_flags_of_the_cpu(tmp_path, line, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert precision._cpu_multiplies_bfloat16(cpuinfo) is expected
    assert not precision._cpu_multiplies_bfloat16(tmp_path / "missing")


# ---- where the rewriter reaches -----------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: entropy_sgd(statistics=True, clipnorm=1.0),
        lambda: LocalEntropy(
            keras.optimizers.Adam(0.01, clipnorm=1.0), L, weight_decay=5e-4, global_clipnorm=9.0
        ),
        lambda: LocalEntropy(keras.optimizers.Adam(0.01, clipvalue=1.0), 0, weight_decay=5e-4),
    ],
    ids=["entropy_sgd", "around_adam", "no_inner_loop"],
)
def test_the_network_is_bfloat16_and_the_optimizer_is_not(needs_bfloat16, make):
    precision.set_precision("bfloat16")
    optimizer = make()
    found = nodes_by_dtype(network(optimizer))
    assert dtypes(found, "Conv2D") == {"bfloat16"}  # forward, and both gradients
    assert dtypes(found, "FusedBatchNorm") == {"bfloat16"}
    assert sum("Conv2DBackprop" in op for op in found) == 2
    # Whatever has an optimizer's name, or is known to be its: not one operation in bfloat16.
    names = (f"{optimizer.name}/", f"{optimizer.outer_optimizer.name}/")
    assert "bfloat16" not in dtypes(
        found, "ResourceApply", "Assign", "StatelessRandom", "Log", "Sqrt", "Cos", "Sin"
    )
    assert "float32" in dtypes(found, "ResourceApply", "Assign")
    rounded = {
        name
        for op, seen in found.items()
        for dtype, name in seen
        if dtype == "bfloat16" and op != "Cast" and any(n in name for n in names)
    }
    assert not rounded
    assert {v.dtype for v in optimizer.variables}.isdisjoint({"bfloat16", "float16"})


@pytest.mark.slow
def test_without_it_nothing_is_bfloat16():
    assert "bfloat16" not in {
        dtype for seen in nodes_by_dtype(network(entropy_sgd())).values() for dtype, _ in seen
    }


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.slow  # float16 is emulated on CPUs
def test_training_agrees_with_float32():
    precision.set_precision("none")
    expected = losses(network(entropy_sgd(), "wrn-10-1"))
    assert expected[-1] < 0.95 * expected[0]  # it learns
    for name, steps in (("bfloat16", STEPS), ("float16", L + 1)):
        description = precision.set_precision(name)
        model = network(entropy_sgd(), "wrn-10-1")
        tested = losses(model, steps)
        # bfloat16 has eight bits, and the mean over a batch hides most of its rounding.
        np.testing.assert_allclose(tested, expected[:steps], rtol=2e-3, err_msg=description)
        local = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        assert int(local.outer_iterations.numpy()) == steps // L
        assert {v.dtype for v in model.weights} == {"float32"}


def test_an_overflow_under_float16_changes_nothing():
    precision.set_precision("float16")
    model = network(entropy_sgd())
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = batch(2)
    for _ in range(2):  # the next step would be the last of its inner loop
        model.train_on_batch(x, y)
    inner = model.optimizer.inner_optimizer
    model.optimizer.dynamic_scale.assign(1e30)  # float16 ends at 65504
    state = [*model.trainable_variables, *inner.variables]
    before = [v.numpy() for v in state]
    model.train_on_batch(x, y)
    for old, variable in zip(before, state, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old, err_msg=variable.path)
    assert int(inner.outer_iterations.numpy()) == 0
    assert float(model.optimizer.dynamic_scale.numpy()) == pytest.approx(5e29)
    model.optimizer.dynamic_scale.assign(1024.0)
    model.train_on_batch(x, y)
    assert int(inner.outer_iterations.numpy()) == 1


# ---- XLA ----------------------------------------------------------------------------------------


def compiled_and_not(name, size, **options):
    """Losses over an inner loop and the step after it, with XLA and without; no noise."""
    return [
        losses(network(entropy_sgd(noise=0.0, **options), name, jit_compile=jit), L + 1, size)
        for jit in (True, False)
    ]


@pytest.mark.slow  # what XLA computes: tests/models and tests/optimizers
@pytest.mark.parametrize("name", ["small", "wrn-10-1"])
def test_xla_compiles_the_whole_step(name):
    tested, expected = compiled_and_not(name, 16)
    np.testing.assert_allclose(tested, expected, rtol=1e-4)


@pytest.mark.slow
def test_xla_compiles_the_whole_step_of_wrn_28_10():
    # On two images BatchNorm enlarges rounding from step to step: with the paper's rate of 0.1, and
    # with a tenth of it, the losses differ by 1e-3 after two steps.
    tested, expected = compiled_and_not("wrn-28-10", 2, langevin_learning_rate=1e-3)
    assert expected[-1] < expected[0] - 0.05
    np.testing.assert_allclose(tested, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_xla_leaves_float32_as_it_is_under_bfloat16(needs_bfloat16):
    def trained():
        keras.utils.set_random_seed(1)
        layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(10)])
        model.compile(
            entropy_sgd(noise=0.0, clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )
        return losses(build_before_fit(model, *batch(2)), 2)

    expected = trained()
    precision.set_precision("bfloat16")
    np.testing.assert_allclose(trained(), expected, rtol=1e-6)
