"""`train.py`: train a model with Entropy-SGD or its baselines, from flags to final table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf.cli.flags import FlagError, define_flags, help_text, parse
from esgd_tf.cli.settings import (
    Settings,
    choose_preset,
    make_settings,
    resume_settings,
    settings_table,
    stretched,
)
from esgd_tf.cli.startup import one_sentence, without_startup_messages
from esgd_tf.training.errors import CheckpointError, RunFolderError, StrategyError

__all__ = ["main"]

_BAD_FLAGS, _FAILED = 2, 1


def main(presets: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None) -> int:
    """Run train.py.

    Args:
        presets: Experiments by name and optimizer: `PRESETS` of config.py.
        argv: The command line; None for that of the process.

    Returns:
        The exit status: 0; 2 for bad flags; 1 for anything else that failed; 128 + the signal's
        number for a run stopped by a signal, after its state was saved.
    """
    argv = sys.argv if argv is None else argv
    fv = define_flags()
    try:
        if {"-h", "-help", "--help"} & set(argv[1:]):
            parse(fv, argv[:1])
            print(help_text(fv, vars(presets[choose_preset(fv, presets)][fv.optimizer])))
            return 0
        parse(fv, argv)
        if fv.presets:
            print(_preset_table(presets))
            return 0
        return _train(fv, presets)
    except FlagError as error:
        print(f"train.py: {error}. See train.py --help.", file=sys.stderr)
        return _BAD_FLAGS


def _train(fv: Any, presets: Mapping[str, Mapping[str, Any]]) -> int:
    from esgd_tf.training.cluster import ClusterError, read_task

    try:
        task = read_task(os.environ) if fv.strategy in ("auto", "multi_worker") else None
        is_chief = task is None or task.is_chief
        path, checkpoint, settings = _what_to_run(fv, presets, is_chief=is_chief)
    except (ClusterError, RunFolderError) as error:
        return _fail(str(error))
    if is_chief and (unwritable := _unwritable(path)):
        return _fail(
            f"Cannot write to {unwritable} (permissions, or a file system that is read-only): "
            "name another folder by --logdir."
        )
    if is_chief:
        print(settings_table(settings), flush=True)
    # From here on TensorFlow is needed.
    try:
        with without_startup_messages():
            strategy = _strategy(settings.run)

            from esgd_tf.cli import training_run  # noqa: F401 - has messages of its own
    except StrategyError as error:
        return _fail(str(error))
    return _run(fv, path, checkpoint, settings, strategy)


def _run(fv: Any, path: Path, checkpoint: Path | None, settings: Settings, strategy: Any) -> int:
    """Train, and turn what goes wrong into a sentence and an exit status."""
    import tensorflow as tf

    from esgd_tf.cli.training_run import run_training
    from esgd_tf.data import DataError
    from esgd_tf.training.callbacks import Interrupted, NotFiniteError
    from esgd_tf.training.multi_worker import is_multi_worker

    try:
        return run_training(
            settings,
            path,
            checkpoint,
            strategy,
            checkpoint_dir=None if fv.checkpoint_dir is None else Path(fv.checkpoint_dir),
            data_dir=fv.data_dir,
            raw_dir=fv.raw_dir,
            download=fv.download,
            verbose=fv.verbose,
        )
    except Interrupted as stopped:
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return _fail("Stopped at once. The checkpoint of the last full epoch is kept.", 130)
    except (DataError, RunFolderError, CheckpointError, NotFiniteError, StrategyError) as error:
        return _fail(str(error))
    except tf.errors.OpError as error:
        return _fail(_of_tensorflow(error, several=is_multi_worker(strategy)))
    except (MemoryError, OSError, ValueError) as error:
        # What else users can get wrong: a full disk, a folder they may not write to, a model that
        # does not fit the images.
        return _fail(one_sentence(error))


def _strategy(run: Mapping[str, Any]) -> Any:
    """Set up TensorFlow's devices and return the strategy, before anything else makes a tensor."""
    import tensorflow as tf

    from esgd_tf.training import strategies

    if run["logical_devices"] is not None:
        strategies.split_device(run["logical_devices"])
    # Nobody splits a CPU but to try out several devices.
    parted = run["strategy"] == "auto" and (run["logical_devices"] or 1) > 1
    kind = "mirrored" if parted else run["strategy"]
    strategy = strategies.make_strategy(kind, run["devices"], tpu=run["tpu"])
    tf.config.list_logical_devices()  # looks for a GPU, and says so
    return strategy


def _of_tensorflow(error: Any, *, several: bool) -> str:
    # Of a long account of where in the graph it happened, what happened stands near the end.
    lines = [line.strip() for line in (error.message or "").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("[[", "[Op:", "Additional"))]
    text = (lines[-1] if lines else type(error).__name__).partition(" [Op:")[0]
    if several:
        return (
            "Lost the connection to another worker, which may say why. The last checkpoint is "
            "kept: start all workers again with -rl."
        )
    return f"TensorFlow stopped: {text}"


def _what_to_run(
    fv: Any, presets: Mapping[str, Mapping[str, Any]], *, is_chief: bool
) -> tuple[Path, Path | None, Settings]:
    """Return the run folder, the checkpoint to go on from (None for a new run), the settings."""
    from esgd_tf.training.run_folder import RunFolder

    logdir = Path(fv.logdir)
    if fv.restore_last and fv.restore_path is not None:
        raise FlagError("--restore_last and --restore_path exclude each other")
    if fv.restore_path is None and not fv.restore_last:
        settings = make_settings(fv, presets)
        # What there is in the folder is for the chief to judge, who may have been faster.
        name = fv.name if is_chief or fv.name is not None else "of-the-chief"
        return _new_folder(logdir, name, settings, may_exist=not is_chief), None, settings

    checkpoints = None if fv.checkpoint_dir is None else Path(fv.checkpoint_dir)
    if fv.restore_path is None:
        path = logdir / fv.name if fv.name else _last_run(logdir)
        checkpoint = _last_checkpoint(RunFolder(path, checkpoints))
    else:
        checkpoint = Path(fv.restore_path)
        path = checkpoint if checkpoint.is_dir() else checkpoint.absolute().parent.parent
        if checkpoint.is_dir():
            checkpoint = _last_checkpoint(RunFolder(path, checkpoints))
        if fv.name:
            path = logdir / fv.name
    if fv.restore_path is not None and not checkpoint.is_file():
        raise RunFolderError(f"There is no checkpoint {checkpoint}.")
    folder = RunFolder(path, checkpoints)
    before = folder.read_config()
    settings = resume_settings(fv, presets, before)
    if is_chief and (note := stretched(before, settings)):
        print(note)
    if checkpoint.is_file():
        return path, checkpoint, settings
    if folder.read_history():
        raise RunFolderError(
            f"There is no checkpoint {checkpoint}: was it moved, or written to another "
            "--checkpoint_dir?"
        )
    print(f"Nothing was saved in {path} yet: starting from the beginning.", file=sys.stderr)
    return path, None, settings


def _new_folder(
    logdir: Path, name: str | None, settings: Settings, *, may_exist: bool = False
) -> Path:

    if name is not None:
        if Path(name).name != name:
            raise FlagError(f"--name={name}: must be the name of a folder, without slashes")
        if not may_exist and (logdir / name / "config.json").exists():
            raise RunFolderError(
                f"{logdir / name} holds a run already: go on with it by -rl, or choose another -n."
            )
        return logdir / name
    stem = f"{settings.preset}-{settings.experiment.optimizer}"
    number = 1
    while (path := logdir / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def _last_checkpoint(folder: Any) -> Path:
    """Return last.keras, or previous.keras where only that is left."""
    return folder.last if folder.last.exists() or not folder.previous.exists() else folder.previous


def _unwritable(path: Path) -> Path | None:
    """Return the folder in which `path` would be made, if that is not allowed."""
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    return None if os.access(there, os.W_OK | os.X_OK) else there


def _last_run(logdir: Path) -> Path:

    runs = [config.parent for config in logdir.glob("*/config.json")]
    if not runs:
        raise RunFolderError(f"There is no run in {logdir} to go on with.")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in run.iterdir()))


def _preset_table(presets: Mapping[str, Mapping[str, Any]]) -> str:
    def rows() -> Iterator[str]:
        yield f"{'preset':<14} {'optimizer':<12} {'data set':<19} {'model':<15} {'epochs':>6}   lr"
        for name, by_optimizer in presets.items():
            for optimizer, e in by_optimizer.items():
                yield (
                    f"{name:<14} {optimizer:<12} {e.dataset:<19} {e.model:<15} {e.epochs:>6}"
                    f"   {e.lr:g}"
                )

    return "\n".join(rows())


def _fail(message: str, status: int = _FAILED) -> int:
    print(f"train.py: {message}", file=sys.stderr)
    return status
