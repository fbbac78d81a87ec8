"""From the command to the first training step: where the seconds go.

Command:   python3 benchmarks/startup.py                 (the figures to report)
           python3 benchmarks/startup.py --runs 1 --no-cold
Expected:  about 5 minutes on 2 quiet CPU cores. Nothing else should run.
Result:    no aim of its own. Importing TensorFlow (which imports Keras) takes longest for the
           quickstart, tracing the step for wrn-28-10; esgd_tf itself adds less than half a second.

A child process takes the steps of train.py one after the other, with a clock between them: the
quickstart preset with its data, and wrn-28-10 with random images in the shape of CIFAR-10 (whose
data are not in the repository). "Cold" is the first child after the page cache was dropped; where
that is not permitted, it is the first child of all, and the report says so. "Warm" is the median of
the children after it.

`-X importtime` says which imports take the time of the two import parts:

    python3 -X importtime -c "import esgd_tf.runs.training_run" 2> imports.txt
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = """
import os, sys, time
marks = [("start of the interpreter", time.time())]
def mark(name):
    marks.append((name, time.time()))
sys.path.insert(0, {root!r})
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["KERAS_BACKEND"] = "tensorflow"
from config import PRESETS
from esgd_tf.cli.flags import define_flags, parse
from esgd_tf.cli.settings import make_settings
fv = define_flags()
parse(fv, ["train.py", *{flags!r}])
settings = make_settings(fv, PRESETS)
mark("flags and settings")
import numpy
mark("import numpy")
import tensorflow as tf
mark("import tensorflow")
import keras
mark("import keras")
from esgd_tf import data, models
from esgd_tf.runs.components import make_optimizer
mark("import esgd_tf")
tf.config.list_logical_devices()
e = settings.experiment
keras.utils.set_random_seed(42)
if {synthetic!r}:
    rng = numpy.random.default_rng(0)
    images = rng.normal(size=(512, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, 512)
    pipeline = tf.data.Dataset.from_tensor_slices((images, labels)).batch(e.batch_size).repeat()
    mark("synthetic data")
else:
    loaded = data.load(e.dataset, data_dir="tfrecords")
    images, labels = loaded.train_images, loaded.train_labels
    pipeline = data.training_batches(
        images, labels, batch_size=e.batch_size, seed=42, augmentation=e.augmentation,
        preprocess=data.preprocessor(e.preprocessing, loaded),
    )
    mark("data")
model = models.build(e.model, images.shape[1:], 10, dropout=e.dropout, seed=42)
model.compile(
    optimizer=make_optimizer(e, data.steps_per_epoch(len(labels), e.batch_size), 42),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False,
    metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
)
model.optimizer.build(model.trainable_variables)
mark("model and slots")
iterator = iter(pipeline)
mark("pipeline")
model.make_train_function()
float(model.train_function(iterator)["loss"])
mark("first step, with its tracing")
float(model.train_function(iterator)["loss"])
mark("second step")
import json
print(json.dumps(marks))
"""
_CASES = {
    "quickstart": (["--preset", "quickstart"], False),
    "wrn-28-10": (["--preset", "wrn-cifar10", "-b", "8"], True),
}


def child(case: str) -> dict[str, float]:
    """Run one child; return seconds by part."""
    flags, synthetic = _CASES[case]
    script = _SCRIPT.format(root=str(_ROOT), flags=flags, synthetic=synthetic)
    last = time.time()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=_ROOT
    )
    if done.returncode:
        raise RuntimeError(f"The child for {case} failed:\n{done.stderr}")
    parts = {}
    for name, at in json.loads(done.stdout.splitlines()[-1]):
        parts[name], last = at - last, at
    # A step without its tracing is not start-up; it stands there to compare.
    parts["to the end of the first step"] = sum(parts.values()) - parts["second step"]
    return parts


def whole_command() -> float:
    """Seconds of `train.py --preset quickstart --limit_steps 1`, evaluation and files too."""
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--preset", "quickstart", "--limit_steps", "1"]
        start = time.perf_counter()
        subprocess.run([*command, "--logdir", folder], capture_output=True, check=True, cwd=_ROOT)
        return time.perf_counter() - start


def drop_page_cache() -> bool:
    """Drop the system's cache of files; whether that was permitted."""
    with contextlib.suppress(OSError):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(_CASES), default=list(_CASES))
    parser.add_argument("--runs", type=int, default=3, help="warm ones")
    parser.add_argument(
        "--cold", action=argparse.BooleanOptionalAction, default=True, help="a cold one first"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    flags = parser.parse_args()
    results = {}
    for case in flags.cases:
        cold = None
        if flags.cold:
            dropped = drop_page_cache()
            print(f"{case}: page cache {'dropped' if dropped else 'not dropped: first run'}")
            cold = child(case)
        warm = [child(case) for _ in range(flags.runs)]
        print(f"\n| {case}, seconds | cold | warm |\n|---|---|---|")
        for part in warm[0]:
            median = statistics.median(parts[part] for parts in warm)
            print(f"| {part} | {'' if cold is None else f'{cold[part]:.2f}'} | {median:.2f} |")
        results[case] = {"cold": cold, "warm": warm}
        print(flush=True)
    command = [whole_command() for _ in range(flags.runs)]
    print(f"train.py --preset quickstart --limit_steps 1: {statistics.median(command):.1f} s, warm")
    if flags.json:
        flags.json.write_text(json.dumps({**results, "command": command}, indent=2))


if __name__ == "__main__":
    main()
