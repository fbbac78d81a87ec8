"""`predict`: classify image files with a run's network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["command_line", "main"]

_BATCH = 250


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "predict" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _predict)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "predict",
        "RUN IMAGE...",
        "Classifies image files (PNG, JPEG, BMP, GIF) with the network of a run, at the "
        "anchor. They are held upright (EXIF), converted to the data set's channels, resized to "
        "its size, shuffled if the run was trained with --corrupt pixel_shuffle, and "
        "preprocessed as in training; after --corrupt double a file has to show a pair of images.",
        ["runs/quickstart-entropy-sgd shirt.png boot.jpg", "RUN *.png --top 1 --json"],
        at_least=2,
        at_most=None,
    )
    line.integer("top", 1, 3, "classes to show for each image, the most probable first")
    line.switch("json", False, "print JSON, and nothing else, to the standard output")
    line.checkpoint_flags()
    line.data_flags()
    return line


def _predict(fv: Any, words: list[str]) -> None:
    run = StoredRun.open(words[0])
    checkpoint = run.checkpoint(fv.checkpoint)
    paths = [Path(expanded(word)) for word in words[1:]]
    start_tensorflow()
    import numpy as np

    from esgd_tf import data
    from esgd_tf.data.image_files import read_image
    from esgd_tf.runs.metrics import log_softmax
    from esgd_tf.runs.stored_network import load_stored_network, stored_corruptions

    network = load_stored_network(run, checkpoint, fv)
    names = network.images.label_names
    height, width, channels = network.images.train_images.shape[1:]
    # All files are read before the first is classified, so that a bad one is named at once.
    files = [read_image(path, (height, width, channels)) for path in paths]
    corruptions, seed = stored_corruptions(run.experiment)
    pixels = np.stack([file.pixels for file in files])
    pixels = data.corrupt_new_images(pixels, corruptions, seed=seed)
    logits = network.logits(pixels, _BATCH)
    if not np.isfinite(logits).all():
        raise ValueError(f"The outputs of {checkpoint} are not finite: take another checkpoint.")
    probabilities = np.exp(log_softmax(logits))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : fv.top]

    if fv.json:
        answers = [
            {
                "file": str(path),
                "size": [file.original[1], file.original[0]],
                "resized": file.resized,
                "top": [
                    {"label": int(k), "name": names[k], "probability": float(p[k])} for k in best
                ],
            }
            for path, file, p, best in zip(paths, files, probabilities, order, strict=True)
        ]
        print(json.dumps(answers, indent=2))
        return
    longest = max(map(len, names))
    for path, file, p, best in zip(paths, files, probabilities, order, strict=True):
        original = f"{file.original[1]}x{file.original[0]}"
        note = f"  (resized from {original} to {width}x{height})" if file.resized else ""
        print(f"{path}{note}")
        for k in best:
            print(f"  {100 * p[k]:6.2f} %  {names[k]:<{longest}}  (class {k})")
