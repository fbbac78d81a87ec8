"""A training that says where it is: `victim.py FLAGS OF train.py...`.

Before each step, each checkpoint, and each validation it writes a line such as "@step" to standard
output, so that whoever watches can kill it there. It changes nothing else.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import config  # noqa: E402
from esgd_tf.cli import train, training_run  # noqa: E402
from esgd_tf.training import callbacks  # noqa: E402


def say(what):
    print(f"@{what}", flush=True)


def announced(function, what):
    def wrapped(*arguments, **keywords):
        say(what)
        return function(*arguments, **keywords)

    return wrapped


if __name__ == "__main__":
    callbacks.save_checkpoint = announced(callbacks.save_checkpoint, "checkpoint")
    callbacks.Recorder.on_test_begin = lambda self, logs=None: say("validation")
    callbacks.Recorder.on_train_batch_begin = lambda self, batch, logs=None: say("step")
    training_run.data.load = announced(training_run.data.load, "data")
    sys.exit(train.main(config.PRESETS, ["train.py", *sys.argv[1:]]))
