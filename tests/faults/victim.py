"""A training that says where it is: `victim.py FLAGS OF train.py...`.

Before it builds records, before each step, each checkpoint and each validation it writes a line
such as "@step" to standard output, so that whoever watches can stop it there. Data sets are a
handful of images, and no picture is drawn; nothing else is changed.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

import archive_maker  # noqa: E402

import config  # noqa: E402
from esgd_tf.cli import train  # noqa: E402
from esgd_tf.data import catalog, storage  # noqa: E402
from esgd_tf.runs import recorder, report, training_run  # noqa: E402


def say(what):
    print(f"@{what}", flush=True)


def announced(function, what):
    def wrapped(*arguments, **keywords):
        say(what)
        return function(*arguments, **keywords)

    return wrapped


class Announcing(recorder.Recorder):
    def on_train_batch_begin(self, batch, logs=None):
        say("step")

    def on_test_begin(self, logs=None):
        say("validation")


if __name__ == "__main__":
    say(f"pid {os.getpid()}")
    catalog.ENTRIES.update(archive_maker.tiny_entries())
    storage.write = announced(storage.write, "records")
    recorder.save_checkpoint = announced(recorder.save_checkpoint, "checkpoint")
    training_run.Recorder = Announcing
    report.plot_history = lambda *_: None
    sys.exit(train.main(config.PRESETS, ["train.py", *sys.argv[1:]]))
