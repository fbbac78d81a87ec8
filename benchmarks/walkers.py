"""What walkers cost: n in one process against n times one, and a default run from start to end.

Command:   python3 benchmarks/walkers.py            (the figures to report)
           python3 benchmarks/walkers.py --quick    (few periods)
Expected:  about 8 minutes on 2 CPU cores, 2 with --quick. Nothing else should run.
Result:    a step of eight workers of nn-100-2 takes at most 0.8 of eight steps of one.

Steps are those of `fit` as an experiment calls it, callbacks and input included, on 1,000 examples
of noise in the shape of MNIST in minibatches of 100: the steps of n workers over n times the steps
of one, contenders taking turns in one process. Worker 0 stands still here: its full-batch step is
that of an experiment of one worker too. "default run" is `walkers` with its default flags on the
embedded images, in a process of its own: start, training, measuring, writing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np

from benchmarks._measure import Stepper, hardware, measure, report_ratio
from esgd_tf.walkers import Problem, Settings
from esgd_tf.walkers.workers import Workers

_N = 8
_ROOT = Path(__file__).resolve().parents[1]


class _Counts(keras.callbacks.Callback):
    """Does what the experiment's callback does for worker 0, which is to count, and no more."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self._workers = workers

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count."""
        self._workers._steps += 1


def noise() -> Problem:
    """1,000 examples and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, 1000)
    return Problem.from_labels((x, y), (x[:10], y[:10]), 10)


def stepper(count: int, alpha: float) -> Stepper:
    """So many workers."""
    workers = Workers(Settings(n_workers=count, alpha=alpha), noise())
    model = workers.model
    assert model is not None

    def step(steps: int) -> None:
        model.fit(
            workers.minibatches(), steps_per_epoch=steps, callbacks=[_Counts(workers)], verbose=0
        )

    return step


def steps(periods: int) -> list[dict[str, Any]]:
    """Compare eight workers, independent and coupled, with eight times one."""
    one = stepper(1, 0.0)
    steppers: dict[str, Stepper] = {
        f"{_N} times one": lambda count: one(_N * count),
        f"{_N} workers": stepper(_N, 0.0),
        f"{_N} coupled workers": stepper(_N, 0.1),
    }
    for contender in steppers.values():
        contender(5)
    found = measure(steppers, turn=100, turns=1, periods=periods, at_most=3 * periods)
    for name, taken in found.items():
        print(f"  {name:22s} {1000 * np.median(taken[:, 0]):8.2f} ms per step")
    return [
        report_ratio(found, name, f"{_N} times one", "0.8 or less") for name in list(steppers)[1:]
    ]


def default_run() -> float:
    """Seconds of a run with the default flags, on the images that come with the repository."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "esgd_tf", "walkers", "--dataset", "fashion_mnist_small",
            "--logdir", folder, "-n", "default",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three periods")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    flags = parser.parse_args()
    machine = hardware()
    print(machine, flush=True)
    keras.utils.set_random_seed(0)
    found: dict[str, Any] = {"steps": steps(3 if flags.quick else 20)}
    found["default_run_seconds"] = default_run()
    print(f"  a default run takes {found['default_run_seconds']:.1f} s, start to end")
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": machine, **found}, indent=2))


if __name__ == "__main__":
    main()
