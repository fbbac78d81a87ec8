"""`evaluate`: measure a run's network on its data set or on records of the user's own."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.command_line import CommandLine, output_path
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.cli.tables import place_of
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["command_line", "main"]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "evaluate" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _evaluate)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "evaluate",
        "RUN",
        "Evaluates the network of a run, at the anchor: accuracy, loss, negative log "
        "likelihood, expected calibration error (15 bins; Guo et al. 2017).",
        ["runs/quickstart-entropy-sgd", "RUN --checkpoint best --json best.json",
         "RUN -i 'mine/*.tfrecord'"],
    )  # fmt: skip
    line.choice("split", ("test", "train"), "test", "images of the run's data set")
    line.texts("input", "instead of a split: TFRecord file, or pattern in quotes, whose records "
               "have `image` (encoded bytes) and `label`, as TFDS writes them; may be given "
               "several times", "i")  # fmt: skip
    line.checkpoint_flags()
    line.integer("batch_size", 1, 250, "images at a time: speed and memory, not the result", "b")
    line.path("json", None, "write the numbers to this file too")
    line.data_flags()
    return line


def _evaluate(fv: Any, words: list[str]) -> None:
    if fv.input and fv["split"].present:
        raise FlagError("--split and --input exclude each other")
    run = StoredRun.open(words[0])
    checkpoint = run.checkpoint(fv.checkpoint)
    out = None if fv.json is None else output_path("--json", fv.json)
    start_tensorflow()
    import keras

    from esgd_tf import data
    from esgd_tf._files import replaced_when_whole
    from esgd_tf.data.records import read_records
    from esgd_tf.runs.metrics import ECE_BINS, classification_metrics
    from esgd_tf.runs.stored_network import (
        load_stored_network,
        stored_corruptions,
        stored_input_corruption,
    )

    network = load_stored_network(run, checkpoint, fv)
    source = network.images
    is_training_split = fv.split == "train" and not fv.input
    if fv.input:
        images, labels = read_records(
            [expanded(each) for each in fv.input], source.train_images.shape[1:], source.label_names
        )
        corruptions, seed = stored_corruptions(run.experiment)
        images = data.corrupt_new_images(images, corruptions, seed=seed)
        what = f"{len(labels):,} images of {', '.join(fv.input)}"
    elif fv.split == "train":
        images, labels = source.train_images, source.train_labels
        what = f"{source.name}, {len(labels):,} training images, not augmented"
    else:
        images, labels = source.test_images, source.test_labels
        # The noise that training added to its inputs after preprocessing.
        what = f"{source.name}, {len(labels):,} {run.split} images"
    noise = stored_input_corruption(run.experiment) if is_training_split else None
    logits = network.logits(images, fv.batch_size, corrupt=noise)
    found = classification_metrics(logits, labels)
    loss = float(keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits))
    low, high = found.accuracy_interval
    print(
        _description(run, checkpoint, network, what)
        + f"""
  {"accuracy, at the " + place_of(run):<26}  {100 * found.accuracy:.2f} %  (95% interval \
{100 * low:.2f} to {100 * high:.2f} %)
  error                       {100 * found.error:.2f} %
  loss, as in training        {loss:.4f}
  negative log likelihood     {found.nll:.4f} nats an image
  calibration error           {100 * found.ece:.2f} %  ({ECE_BINS} bins)"""
    )
    if out is not None:
        numbers = {
            "run": str(run.folder.path),
            "checkpoint": str(checkpoint),
            "data": fv.input or f"{source.name}/{'train' if fv.split == 'train' else run.split}",
            "images": found.images,
            "accuracy": found.accuracy,
            "accuracy_interval_95": [low, high],
            "error": found.error,
            "loss": loss,
            "nll": found.nll,
            "ece": found.ece,
            "ece_bins": ECE_BINS,
            "gradient_evaluations": network.batches,
            "epochs": network.epochs,
            "bn_reestimated_from": network.reestimated,
        }
        with replaced_when_whole(out) as partial:
            partial.write_text(json.dumps(numbers, indent=2) + "\n")
        print(f"\nwritten: {out}")


def _description(run: StoredRun, checkpoint: Path, network: Any, what: str) -> str:
    """Return a description of what is evaluated, in lines of at most 80 columns.

    Args:
        run: StoredRun. The run.
        checkpoint: Path. The checkpoint of the run.
        network: StoredNetwork. The network of the checkpoint.
        what: str. A description of the images.
    """
    e = run.experiment
    inner = f", L = {e['langevin_steps']}" if e["langevin_steps"] else ""
    rows = {
        "run": f"{run.name}: {e['model']} on {e['dataset']}, {e['optimizer']}{inner}",
        "checkpoint": f"{checkpoint.name}, after {network.batches:,} gradient evaluations "
        f"({network.epochs:g} effective epochs)",
        "BatchNorm": network.statistics,
        "data": what,
    }
    return "\n".join(
        line
        for name, value in rows.items()
        for line in textwrap.wrap(
            f"{name:<12}{value}", 80, subsequent_indent=" " * 12, break_on_hyphens=False
        )
    ) + "\n"  # fmt: skip
