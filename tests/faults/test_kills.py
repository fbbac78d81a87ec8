"""kill -9 at seeded random moments, and SIGTERM: the run that goes on ends with the same bits."""

import shutil
import signal

import numpy as np
import pytest

from tests.faults import harness
from tests.faults.harness import Job

# Of each moment: how often it may come before the kill, and within what time after it.
MOMENTS = {"records": (1, 0.1), "step": (4, 0.3), "checkpoint": (2, 0.4), "validation": (1, 0.3)}


def stopped_again_and_again(job, stops, generator):
    """Stop a training at each (moment, signal) in turn, then let it end.

    Returns:
        How many stops it took before it came to its end.
    """
    taken = 0
    for moment, number in stops:
        if moment == "records":
            shutil.rmtree(job.data_dir, ignore_errors=True)  # or there is nothing to build
        most, length = MOMENTS[moment]
        count = int(generator.integers(1, most + 1))
        status = harness.stop_at(
            moment, count, generator.uniform(0, length), *job.flags, number=number
        )
        harness.assert_nothing_torn(job.run_folder)
        if status is None:
            break
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
        taken += 1
    assert harness.run_here(*job.flags) == 0
    return taken


def finished(job):
    assert harness.run_here(*job.flags) == 0
    return job.run_folder


@pytest.mark.slow
def test_stop_at_each_moment(tmp_path):
    generator = np.random.default_rng(20161104)
    job = Job(tmp_path, "stopped", 2)
    stops = [
        ("records", signal.SIGKILL),
        ("checkpoint", signal.SIGKILL),
        ("validation", signal.SIGKILL),
        ("step", signal.SIGTERM),
    ]
    assert stopped_again_and_again(job, stops, generator) == len(stops)
    harness.assert_equal_runs(job.run_folder, finished(Job(tmp_path, "whole", 2)))


@pytest.mark.slow
def test_sigterm_loses_no_step(tmp_path):
    job = Job(tmp_path, "told", 2)
    status = harness.stop_at("step", 4, 0.0, *job.flags, number=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    _, extra = harness.state(job.run_folder / "checkpoints" / "last.keras")
    # The fourth step was under way; 2 is the last multiple of --checkpoint_steps.
    assert extra["batches"] in (3, 4)


@pytest.mark.slow
def test_fifteen_kills_in_one_run(tmp_path):
    """About five minutes."""
    generator = np.random.default_rng(7)
    job = Job(tmp_path, "killed", 12)
    moments = generator.choice(list(MOMENTS), size=15)
    stops = [(moment, signal.SIGKILL) for moment in moments]
    assert stopped_again_and_again(job, stops, generator) == 15
    harness.assert_equal_runs(job.run_folder, finished(Job(tmp_path, "whole", 12)))
