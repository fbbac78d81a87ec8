"""A job of two workers, one of which is killed: both end, and the job goes on to the same bits."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.faults import harness
from tests.faults.harness import Job


def launched(job):
    """Start the job's two workers."""
    script = harness.command(*job.flags)[1:]
    return subprocess.Popen(
        [sys.executable, "-m", "esgd_tf", "launch", "--workers", "2", "--", *script],
        cwd=harness.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # three jobs of two processes, a minute and a half; tests/distribute has others
def test_one_of_two_workers_is_killed(tmp_path):
    job = Job(tmp_path, "killed", 1)
    with launched(job) as launcher:
        watchdog = threading.Timer(harness.TIMEOUT, launcher.kill)
        watchdog.start()
        steps, pid = 0, None
        for line in launcher.stdout:
            if line.startswith("[1] @pid"):
                pid = int(line.split()[-1])
            steps += line == "[1] @step\n"
            if steps == 4:
                os.kill(pid, signal.SIGKILL)
                break
        _, errors = launcher.communicate()
        watchdog.cancel()
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "esgd_tf launch: worker 1 was killed by SIGKILL. The others were stopped." in errors
    harness.assert_nothing_torn(job.run_folder)

    whole = Job(tmp_path, "whole", 1)
    for each in (job, whole):
        with launched(each) as launcher:
            output, errors = launcher.communicate(timeout=harness.TIMEOUT)
        assert launcher.returncode == 0, errors
        # The chief alone reports.
        assert "[0] " in output
        assert not [x for x in output.splitlines() if x.startswith("[1] ") and "@" not in x]
    harness.assert_equal_runs(job.run_folder, whole.run_folder)
    # TensorBoard's files carry the number of the process that wrote them: one, the chief.
    events = [file.name for file in whole.run_folder.rglob("events.out.tfevents.*")]
    assert len(events) >= 2
    assert len({name.split(".")[-3] for name in events}) == 1, events
