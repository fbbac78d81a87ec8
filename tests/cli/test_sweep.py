"""Every optimizer of train.py, on every kind of device and in every precision, in two parts.

A run of two steps that stops after the first and goes on, on two devices, is that on one.
"""

import functools

import numpy as np
import pytest

from esgd_tf.runs.checkpoints import load_model
from esgd_tf.runs.experiment import REPLICATED
from esgd_tf.training import strategies
from tests.cli.helpers import train
from tests.cli.test_training_run import history, state

OPTIMIZERS = ("entropy-sgd", "entropy-adam", "momentum", "sgd", "adam", *REPLICATED)
PRECISIONS = ("none", "bfloat16", "float16")
# All 1,750 test images are one batch, so that no limit takes any of them away.
SMALL = ("--preset", "quickstart", "-m", "lenet-2-3-8", "-b", "1750", "--dropout", "0")
OF_REPLICAS = ("--replicas", "2", "--monitor", "0")
INNER_LOOP = ("entropy-sgd", "entropy-adam", "parle")


# Each precision is tried with an inner loop, with replicas, and with neither; the rest is for
# `--every-combination`.
TRIED = {
    "none": OPTIMIZERS,
    "bfloat16": ("entropy-sgd", "adam", "rsgd"),
    "float16": ("entropy-adam", "momentum", "parle"),
}


def cases():
    """All (optimizer, precision)."""
    for precision in PRECISIONS:
        for optimizer in OPTIMIZERS:
            marks = [pytest.mark.slow]
            if optimizer not in TRIED[precision]:
                marks.append(pytest.mark.rare)
            yield pytest.param(optimizer, precision, marks=marks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_cpus):
    """What a run of so many parts, a step each, left in its folder."""

    @functools.cache
    def run(optimizer, precision, strategy, parts):
        logdir = tmp_path_factory.mktemp("sweep")
        replicas = 2 if optimizer in REPLICATED else 1
        # The inner loop is two steps: the second part ends it.
        flags = (*SMALL, "-opt", optimizer, "--mixed_precision", precision)
        flags += (OF_REPLICAS if replicas == 2 else ()) + (
            ("-L", "2") if optimizer in INNER_LOOP else ()
        )
        with pytest.MonkeyPatch.context() as patch:
            if strategy == "mirrored":
                # One strategy for all tests: see `two_cpus`.
                patch.setattr(strategies, "make_strategy", lambda *_, **__: two_cpus)
                flags += ("--strategy", "mirrored", "--devices", "CPU:0,CPU:1")
            place = ("--logdir", logdir, "-n", "run", "--limit_steps", replicas * 2 // parts)
            for start in (flags, ("-rl",))[:parts]:
                assert train(*start, *place) == 0
        row = {name: float(value) for name, value in history(logdir / "run")[-1].items() if value}
        last = logdir / "run" / "checkpoints" / "last.keras"
        assert state(last)[1]["batches"] == 2
        model = load_model(last)
        # Fingerprints are no state of training: they tell whether weights were set by hand.
        weights = [
            variable.numpy()
            for variable in model.weights + model.optimizer.variables
            if variable.name != "fingerprints"
        ]
        assert row["gradient_evaluations"] == 2 * replicas
        return row, weights

    return run


@pytest.mark.parametrize(("optimizer", "precision"), list(cases()))
def test_two_parts_on_two_devices_are_one_run_on_one(optimizer, precision, trained):
    one, _ = trained(optimizer, precision, "none", 1)
    two, _ = trained(optimizer, precision, "mirrored", 2)
    assert one.keys() == two.keys()
    tolerance = 1e-3 if precision == "none" else 5e-2
    for name in ("loss", "val_loss", "learning_rate", "outer_updates"):
        assert two[name] == pytest.approx(one[name], rel=tolerance), name
    # A few images are undecided where numbers are rounded otherwise.
    for name in ("accuracy", "val_accuracy"):
        assert two[name] == pytest.approx(one[name], abs=0.005 if precision == "none" else 0.05)


@pytest.mark.slow  # tests/cli/test_training_run.py has it for one
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_parts_are_one(optimizer, trained):
    row, weights = trained(optimizer, "none", "none", 2)
    whole, expected = trained(optimizer, "none", "none", 1)
    for name in ("loss", "val_loss", "val_accuracy"):
        assert row[name] == pytest.approx(whole[name], rel=1e-6), name
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
