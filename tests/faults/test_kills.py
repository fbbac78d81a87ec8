"""kill -9 at seeded random moments, and SIGTERM: the run that goes on ends with the same bits."""

import signal

import numpy as np
import pytest

from tests.faults import harness

# 8,750 images in batches of 1,750 are 5 steps an epoch; saved within inner loops too.
FLAGS = (
    "--preset", "quickstart", "-m", "mnistfc", "-b", 1750, "-L", 3, "--dropout", 0.3,
    "--augmentation", "flip_crop", "--bn_reestimate", 1, "--checkpoint_steps", 2,
)  # fmt: skip
# Of each moment: how often it may come before the kill, and how long it takes.
MOMENTS = {"step": (4, 0.3), "checkpoint": (2, 0.4), "validation": (1, 0.3), "data": (1, 2.0)}


def start(logdir, epochs, name):
    return (*FLAGS, "-e", epochs, "--logdir", logdir, "-n", name)


def go_on(logdir, name):
    return ("-rl", "--logdir", logdir, "-n", name)


def killed_again_and_again(logdir, epochs, moments, generator):
    """Kill a run at each moment in turn, then let it end; return how many kills it took."""
    run, kills = logdir / "killed", 0
    for moment in moments:
        most, length = MOMENTS[moment]
        flags = go_on(logdir, "killed") if (run / "config.json").exists() else start(
            logdir, epochs, "killed"
        )  # fmt: skip
        count = int(generator.integers(1, most + 1))
        status = harness.stop_at(moment, count, generator.uniform(0, length), *flags)
        if run.exists():
            harness.assert_nothing_torn(run)
        if status is None:
            break  # it came to its end first
        assert status == -signal.SIGKILL
        kills += 1
    result = harness.run(*go_on(logdir, "killed"))
    assert result.returncode == 0, result.stderr
    return kills


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    result = harness.run(*start(logdir, 2, "whole"))
    assert result.returncode == 0, result.stderr
    return logdir / "whole"


def test_kill_at_each_moment(uninterrupted, tmp_path):
    generator = np.random.default_rng(20161104)
    moments = ["checkpoint", "validation", "step", "checkpoint"]
    kills = killed_again_and_again(tmp_path, 2, moments, generator)
    assert kills >= 3
    harness.assert_equal_runs(tmp_path / "killed", uninterrupted)


def test_sigterm_saves_and_says_so(uninterrupted, tmp_path):
    """A preemption notice costs nothing: the run goes on from the very step."""
    flags = start(tmp_path, 2, "told")
    status = harness.stop_at("step", 3, 0.05, *flags, number=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    _, extra = harness.state(tmp_path / "told" / "checkpoints" / "last.keras")
    assert extra["batches"] in (2, 3)
    assert harness.run(*go_on(tmp_path, "told")).returncode == 0
    harness.assert_equal_runs(tmp_path / "told", uninterrupted)


@pytest.mark.slow
def test_thirty_kills_in_one_run(tmp_path):
    """About 15 minutes."""
    epochs = 8
    whole = harness.run(*start(tmp_path, epochs, "whole"))
    assert whole.returncode == 0, whole.stderr
    generator = np.random.default_rng(7)
    # A step is gained per two kills at least, so the run cannot end before the thirtieth.
    moments = generator.choice(["step", "checkpoint", "validation", "data"], size=30)
    assert killed_again_and_again(tmp_path, epochs, moments, generator) == 30
    harness.assert_equal_runs(tmp_path / "killed", tmp_path / "whole")
