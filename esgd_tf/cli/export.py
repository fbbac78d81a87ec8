"""`export`: save a run's network in forms that load without this library."""

from __future__ import annotations

import contextlib
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.runs.progress import MEMBER
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["command_line", "main"]

_BATCH = 250
# Files of a SavedModel folder beside its variables; its folder `assets` is empty.
_OF_SAVED_MODEL = {Path("saved_model.pb"), Path("fingerprint.pb")}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "export" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _export)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "export",
        "RUN OUT",
        "Writes the network of a run, at the anchor, in float32 and without its optimizer, "
        "as OUT.keras and as the SavedModel folder OUT. They load where esgd_tf is not "
        "installed: keras.models.load_model, keras.layers.TFSMLayer, tf.saved_model.load. "
        "By default they take pixels 0 ... 255 and return logits.",
        ["runs/quickstart-entropy-sgd fashion", "RUN OUT --format keras --softmax"],
        at_least=2,
        at_most=2,
    )
    line.choice("format", ("both", "keras", "saved_model"), "both", "what to write")
    line.switch("preprocessing", True, "whether the network contains the preprocessing of the "
                "training; without, it takes preprocessed images")  # fmt: skip
    line.switch("softmax", False, "return probabilities instead of logits")
    line.switch("overwrite", False, "replace what an earlier export wrote")
    line.switch("check", True, "whether to load what was written and to evaluate it on the test "
                "images")  # fmt: skip
    line.checkpoint_flags()
    line.data_flags()
    return line


def _export(fv: Any, words: list[str]) -> None:
    run = StoredRun.open(words[0])
    checkpoint = run.checkpoint(fv.checkpoint)
    out = Path(expanded(words[1].removesuffix(".keras")))
    if not out.name:
        raise FlagError(f"{words[1]!r} is no name to write to: give OUT, as in models/mine")
    targets = {"keras": out.with_name(f"{out.name}.keras"), "saved_model": out}
    if fv.format != "both":
        targets = {fv.format: targets[fv.format]}
    for kind, target in targets.items():
        _require_free(kind, target, overwrite=fv.overwrite)
    start_tensorflow()
    from esgd_tf._files import folder_when_whole, replaced_when_whole
    from esgd_tf.runs.plain_network import plain_network, with_preprocessing
    from esgd_tf.runs.stored_network import load_stored_network, stored_corruptions

    network = load_stored_network(run, checkpoint, fv)
    model = with_preprocessing(
        plain_network(network.model),
        network.preprocess if fv.preprocessing else None,
        softmax=fv.softmax,
    )
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as written:
        # No file gets its final name before all files are whole.
        if "keras" in targets:
            model.save(written.enter_context(replaced_when_whole(targets["keras"])))
        if "saved_model" in targets:
            folder = written.enter_context(folder_when_whole(targets["saved_model"]))
            model.export(folder, format="tf_saved_model", verbose=False)
    shape = model.input_shape[1:]
    takes = "pixels 0 to 255"
    if not fv.preprocessing:
        takes = f"images preprocessed by {run.experiment['preprocessing']}"
    returns = "probabilities" if fv.softmax else "logits"
    print(f"run        {run.name}, {checkpoint.name}, BatchNorm {network.statistics}")
    print(f"input      float32 [n, {', '.join(map(str, shape))}], {takes}")
    corruptions, seed = stored_corruptions(run.experiment)
    if changed := "+".join(str(c) for c in corruptions if c.all_images):
        print(f"           changed as in training, by --corrupt {changed} --corruption_seed {seed}")
    print(f"output     float32 [n, {model.output_shape[-1]}], {returns}, in the order of")
    names = ", ".join(network.images.label_names)
    print(textwrap.fill(names, 80, initial_indent=" " * 11, subsequent_indent=" " * 11))
    for kind, target in targets.items():
        size = sum(f.stat().st_size for f in [target, *target.rglob("*")] if f.is_file())
        print(f"written    {target}  ({kind}, {size / 2**20:.1f} MiB)")
    if fv.check:
        _check(fv, network, targets, run.split)
        policy = run.run.get("mixed_precision", "none")
        if policy != "none":
            print(f"  (the run computes in {policy}, what was written in float32)")


def _require_free(kind: str, target: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything, or with `overwrite` anything that is not an export."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already: give --overwrite or another OUT.")
    if not (_is_keras_file(target) if kind == "keras" else _is_saved_model(target)):
        what = "is no network that export wrote"
        if kind == "saved_model":
            what = "is no SavedModel folder, or holds other files too"
        raise FileExistsError(f"{target} {what}, so it is not overwritten: give another OUT.")


def _is_keras_file(path: Path) -> bool:
    """Return whether this is a file that Keras saved, and not a checkpoint of a run."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return {"config.json", "metadata.json"} <= names and MEMBER not in names


def _is_saved_model(path: Path) -> bool:
    """Return whether this is a SavedModel folder that holds nothing else."""
    if not (path / "saved_model.pb").is_file():
        return False
    files = {file.relative_to(path) for file in path.rglob("*") if not file.is_dir()}
    return all(
        file in _OF_SAVED_MODEL
        or (file.parent == Path("variables") and file.name.startswith("variables."))
        for file in files
    )


def _check(fv: Any, network: Any, targets: dict[str, Path], split: str) -> None:
    """Load what was written, and print its accuracy beside that of the run's own network."""
    import keras
    import numpy as np

    from esgd_tf.data.pipeline import evaluation_batches
    from esgd_tf.runs.metrics import classification_metrics, log_softmax

    images, labels = network.images.test_images, network.images.test_labels

    def raw(batch: Any) -> Any:
        return keras.ops.cast(batch, "float32")

    batches = evaluation_batches(
        images,
        labels,
        batch_size=_BATCH,
        preprocess=raw if fv.preprocessing else network.preprocess,
    )
    expected = network.logits(images, _BATCH)
    accuracy = classification_metrics(expected, labels).accuracy
    if fv.softmax:
        expected = np.exp(log_softmax(expected))
    print(f"\ncheck, on {len(labels):,} {split} images     accuracy   largest difference")
    print(f"  {'the run':<32} {100 * accuracy:6.2f} %")
    for kind, target in targets.items():
        if kind == "keras":
            model = keras.models.load_model(target, compile=False)
        else:
            layer = keras.layers.TFSMLayer(target, call_endpoint="serve")
            inputs = keras.Input(images.shape[1:])
            model = keras.Model(inputs, layer(inputs))
        outputs = model.predict(batches, verbose=0)
        share = float((outputs.argmax(axis=1) == labels).mean())
        difference = float(np.abs(outputs - expected).max())
        print(f"  {target.name:<32} {100 * share:6.2f} %   {difference:.1e}")
