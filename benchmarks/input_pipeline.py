"""Images per second of every input pipeline, over what training consumes. Aim: 5x or more.

    python3 -m benchmarks.input_pipeline
    python3 -m benchmarks.input_pipeline -d cifar10 -m wrn-16-4 --raw_dir DIR

takes about two minutes with the embedded data and LeNet. In each of the rounds it measures, one
after the other in one process, the training of the model on one batch that lies ready in memory
(SGD with Nesterov momentum, through `fit`), then every pipeline with nothing else running; it
prints the median of the rounds. A pipeline above 1x could keep up if it had the machine to
itself; the margin is there because training takes most of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from esgd_tf.data import (
    AUGMENTATIONS,
    DATASETS,
    PREPROCESSINGS,
    DataError,
    load,
    preprocessor,
    training_batches,
)
from esgd_tf.models import build

_AIM = 5.0
_WARM_UP = 5


def main() -> None:
    """Read the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-d", "--dataset", default="fashion_mnist_small", choices=DATASETS)
    parser.add_argument("-m", "--model", default="mnistconv", help="a name of esgd_tf.models")
    parser.add_argument("-b", "--batch_size", type=int, default=128)
    parser.add_argument("--data_dir", default="tfrecords")
    parser.add_argument("--raw_dir", default=None)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    try:
        data = load(arguments.dataset, data_dir=arguments.data_dir, raw_dir=arguments.raw_dir)
    except DataError as error:
        sys.exit(str(error))

    size = arguments.batch_size
    pipelines = {
        (kind, augmentation): iter(
            training_batches(
                data.train_images,
                data.train_labels,
                batch_size=size,
                seed=0,
                preprocess=preprocess,
                augmentation=augmentation,
            )
        )
        for kind, preprocess in ((kind, preprocessor(kind, data)) for kind in PREPROCESSINGS)
        for augmentation in AUGMENTATIONS
    }
    model = build(arguments.model, data.train_images.shape[1:], data.num_classes)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ready = tf.data.Dataset.from_tensors(next(pipelines["scale", "none"])).repeat()
    steps = max(3, round(arguments.seconds / _consumed(model, ready, 5)))

    consumption: list[float] = []
    supply: dict[tuple[str, str], list[float]] = {key: [] for key in pipelines}
    for _ in range(arguments.rounds):
        consumption.append(size / _consumed(model, ready, steps))
        for key, batches in pipelines.items():
            supply[key].append(size / _supplied(batches, arguments.seconds))

    needed = statistics.median(consumption)
    print(f"{arguments.dataset}, {arguments.model}, batch {size}, {os.cpu_count()} CPU cores")
    print(f"training consumes {needed:,.0f} images/s ({_spread(consumption)})\n")
    print("| preprocessing | augmentation | images/s | over consumption | aim 5x |")
    print("|---|---|---|---|---|")
    for (kind, augmentation), values in supply.items():
        rate = statistics.median(values)
        verdict = "reached" if rate >= _AIM * needed else "missed"
        print(f"| {kind} | {augmentation} | {rate:,.0f} | {rate / needed:.1f}x | {verdict} |")


class _Clock(keras.callbacks.Callback):
    """Starts when the first steps are over: neither tracing nor the start of `fit` counts."""

    begin = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the time."""
        if batch == _WARM_UP - 1:
            self.begin = time.perf_counter()


def _consumed(model: keras.Model, ready: Any, steps: int) -> float:
    """Return seconds per training step."""
    clock = _Clock()
    model.fit(
        ready,
        steps_per_epoch=_WARM_UP + steps,
        epochs=1,
        verbose=0,
        shuffle=False,
        callbacks=[clock],
    )
    return (time.perf_counter() - clock.begin) / steps


def _supplied(batches: Iterator[Any], seconds: float) -> float:
    """Return seconds per batch."""
    # What was prefetched while others were measured does not count.
    for _ in range(20):
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or count < 5:
        next(batches)
        count += 1
    return (time.perf_counter() - begin) / count


def _spread(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f} in {len(values)} rounds"


if __name__ == "__main__":
    main()
