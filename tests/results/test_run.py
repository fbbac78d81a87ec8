"""`results/run.py`: a tiny plan that is cut goes on; signals; words that are wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from results._summaries import write_summary
from results._trainings import Children, FailedError, StoppedError
from results.run import main
from tests.results.plans import CHOOSING, TINY, job, summary

ROOT = Path(__file__).resolve().parents[2]
PLANS = {"tiny": TINY, "choosing": CHOOSING}
# Says that it is there, waits for the signal, and ends as train.py does.
SAVES = """
import pathlib, signal, sys
def save(number, frame):
    pathlib.Path(sys.argv[1]).write_text(f"saved after {number}")
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nope"], "There is no plan 'nope': choose one of tiny, choosing."),
        (["tiny", "--only", "adam"], "--only adam: the plan has no such training or method; see "
         "--list."),
        (["tiny", "--until", "soon"], "--until soon: give a time of day such as 15:30."),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_sentence(words, sentence, tmp_path):
    with pytest.raises(SystemExit) as error:
        main([*words, "--out", str(tmp_path)], PLANS)
    assert str(error.value) == f"run.py: {sentence}"


def test_the_list_says_what_is_done_and_how_long_the_rest_takes(tmp_path, capsys):
    # 10 s for 20 gradient evaluations are 5 s for 10.
    write_summary(tmp_path / "tiny" / "summaries", summary(job(TINY, "sgd-s1"), 12.5))
    assert main(["tiny", "--list", "--out", str(tmp_path)], PLANS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["done", "sgd-s1", "12.50", "%"]
    assert lines[4].split() == ["pending", "entropy-s1", "about", "5", "s"]
    assert lines[-1] == (
        "1 of 2 trainings are done, 0 wait for others; those that can be trained now take about 5 "
        "s."
    )


def test_it_starts_without_tensorflow(tmp_path):
    program = (
        "import sys; from results.run import main; main(['lenet', '--list']); "
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_what_has_ended_is_waited_for(number, tmp_path):
    log, saved = tmp_path / "log", tmp_path / "saved"

    def send():
        while "ready" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    before = signal.getsignal(number)
    with Children(None, 1) as children:
        sender.start()
        with pytest.raises(StoppedError, match=signal.Signals(number).name) as stopped:
            children.run([sys.executable, "-c", SAVES, str(saved)], log)
        # Nothing else is begun.
        with pytest.raises(StoppedError):
            children.run([sys.executable, "-c", "raise SystemExit('begun')"], log)
    sender.join()
    assert stopped.value.status == 128 + number
    assert saved.read_text() == f"saved after {number}"
    assert "begun" not in log.read_text()
    assert signal.getsignal(number) == before


def test_when_the_time_is_over_a_command_is_asked_to_end(tmp_path):
    with Children(time.time() + 1.0, 1) as children, pytest.raises(StoppedError) as stopped:
        children.run([sys.executable, "-c", SAVES, str(tmp_path / "saved")], tmp_path / "log")
    assert (str(stopped.value), stopped.value.status) == ("the time is over", 0)
    assert (tmp_path / "saved").read_text() == f"saved after {signal.SIGTERM}"


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path):
    program = "print('one'); raise SystemExit('The disk is full.')"
    with (
        Children(None, 1) as children,
        pytest.raises(FailedError, match=r"status 1: The disk is full\. \(see .*log\)"),
    ):
        children.run([sys.executable, "-c", program], tmp_path / "log")


def run(tmp_path, *words):
    """Start the command on the tiny plan, as a process."""
    program = (
        "import sys; from results.run import main; from tests.results.plans import TINY; "
        "sys.exit(main(sys.argv[1:], {'tiny': TINY}))"
    )
    words = ["tiny", *words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_plan_that_is_cut_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    """The first training is cut after its first epoch; then all goes on to the end."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with run(whole, "--only", "sgd") as first:
        assert first.wait() == 0
    with run(cut, "--only", "sgd") as second:
        while not list(cut.glob("runs/tiny/*/history.csv")):
            time.sleep(0.05)
            assert second.poll() is None
        second.send_signal(signal.SIGTERM)
        out, _ = second.communicate()
    # It may have been at its end by then; what there is must be whole.
    if second.returncode == 128 + signal.SIGTERM:
        assert out.splitlines()[-1] == "Stopped (SIGTERM). The same command goes on."
        assert not list((cut / "tiny").glob("summaries/*"))
    with run(cut) as third:
        out, _ = third.communicate()
    assert third.returncode == 0
    assert out.splitlines()[-1].startswith("2 of 2 trainings are done")
    found = [
        json.loads((folder / "tiny" / "summaries" / "sgd-s1.json").read_text())
        for folder in (whole, cut)
    ]
    for one in found:
        one["curve"].pop("seconds"), one["final"].pop("seconds")
    assert found[0] == found[1]
    assert set(found[0]["measures"]) >= {"local_energy", "spectrum"}
    assert found[0]["curve"]["epoch"] == [1.0, 2.0]
    assert (cut / "tiny" / "summaries" / "entropy-s1.json").exists()
    with run(cut) as again:  # what is done is not done again
        out, _ = again.communicate()
    assert len(out.splitlines()) == 1
