"""A tiny experiment, and the doors through which the tests go."""

import signal

import config
from esgd_tf.cli.commands import main
from esgd_tf.cli.train import main as train_main
from esgd_tf.runs.recorder import Recorder

# 8,750 images in batches of 1,750 are 5 steps an epoch; 5 mod 3 = 2 is inside an inner loop.
SMALL = ("--preset", "quickstart", "-m", "mnistfc", "-b", "1750", "-L", "3", "-e", "2",
         "--augmentation", "flip_crop", "--dropout", "0.3", "--bn_reestimate", "1")  # fmt: skip
STEPS = 5


def train(*flags):
    return train_main(config.PRESETS, ["train.py", *map(str, flags)])


def esgd_tf(*words):
    return main(["esgd_tf", *map(str, words)])


def interrupted_at(monkeypatch, batch, number=signal.SIGINT):
    """Let a signal come after so many minibatches."""
    count = Recorder.on_train_batch_end

    def count_and_signal(self, *arguments, **keywords):
        count(self, *arguments, **keywords)
        if self.progress.batches == batch:
            signal.raise_signal(number)

    monkeypatch.setattr(Recorder, "on_train_batch_end", count_and_signal)
