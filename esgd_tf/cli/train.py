"""`train.py`: train a model with Entropy-SGD or its baselines, from flags to final table."""

from __future__ import annotations

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
)
from esgd_tf.cli.startup import one_sentence, without_startup_messages

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
    from esgd_tf.training.run_folder import RunFolderError

    try:
        path, checkpoint, settings = _what_to_run(fv, presets)
    except RunFolderError as error:
        return _fail(str(error))

    print(settings_table(settings), flush=True)
    # From here on TensorFlow is needed.
    with without_startup_messages():
        import tensorflow as tf

        from esgd_tf.cli.training_run import run_training
        from esgd_tf.data import DataError
        from esgd_tf.training.callbacks import Interrupted, NotFiniteError
        from esgd_tf.training.checkpoints import CheckpointError

        tf.config.list_logical_devices()  # looks for a GPU, and says so

    try:
        return run_training(
            settings,
            path,
            checkpoint,
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
    except (DataError, RunFolderError, CheckpointError, NotFiniteError) as error:
        return _fail(str(error))
    except (MemoryError, OSError, ValueError) as error:
        # What else users can get wrong: a full disk, a folder they may not write to, a model that
        # does not fit the images.
        return _fail(one_sentence(error))


def _what_to_run(
    fv: Any, presets: Mapping[str, Mapping[str, Any]]
) -> tuple[Path, Path | None, Settings]:
    """Return the run folder, the checkpoint to go on from (None for a new run), the settings."""
    from esgd_tf.training.run_folder import RunFolder, RunFolderError

    logdir = Path(fv.logdir)
    if fv.restore_last and fv.restore_path is not None:
        raise FlagError("--restore_last and --restore_path exclude each other")
    if fv.restore_path is None and not fv.restore_last:
        settings = make_settings(fv, presets)
        return _new_folder(logdir, fv.name, settings), None, settings

    checkpoints = None if fv.checkpoint_dir is None else Path(fv.checkpoint_dir)
    if fv.restore_path is None:
        path = logdir / fv.name if fv.name else _last_run(logdir)
        checkpoint = RunFolder(path, checkpoints).last
    else:
        checkpoint = Path(fv.restore_path)
        path = checkpoint if checkpoint.is_dir() else checkpoint.absolute().parent.parent
        if checkpoint.is_dir():
            checkpoint = RunFolder(path, checkpoints).last
        if fv.name:
            path = logdir / fv.name
    if not checkpoint.is_file():
        raise RunFolderError(
            f"There is no checkpoint {checkpoint}: the run has not come to the end of its first "
            "epoch, or --checkpoint_dir is another one."
        )
    return path, checkpoint, resume_settings(fv, presets, RunFolder(path).read_config())


def _new_folder(logdir: Path, name: str | None, settings: Settings) -> Path:
    from esgd_tf.training.run_folder import RunFolderError

    if name is not None:
        if Path(name).name != name:
            raise FlagError(f"--name={name}: must be the name of a folder, without slashes")
        if (logdir / name / "config.json").exists():
            raise RunFolderError(
                f"{logdir / name} holds a run already: go on with it by -rl, or choose another -n."
            )
        return logdir / name
    stem = f"{settings.preset}-{settings.experiment.optimizer}"
    number = 1
    while (path := logdir / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def _last_run(logdir: Path) -> Path:
    from esgd_tf.training.run_folder import RunFolderError

    runs = [config.parent for config in logdir.glob("*/config.json")]
    if not runs:
        raise RunFolderError(f"There is no run in {logdir} to go on with.")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in run.iterdir()))


def _preset_table(presets: Mapping[str, Mapping[str, Any]]) -> str:
    def rows() -> Iterator[str]:
        yield f"{'preset':<15} {'optimizer':<13} {'data set':<20} {'model':<10} {'epochs':>6}   lr"
        for name, by_optimizer in presets.items():
            for optimizer, e in by_optimizer.items():
                yield (
                    f"{name:<15} {optimizer:<13} {e.dataset:<20} {e.model:<10} {e.epochs:>6}"
                    f"   {e.lr:g}"
                )

    return "\n".join(rows())


def _fail(message: str, status: int = _FAILED) -> int:
    print(f"train.py: {message}", file=sys.stderr)
    return status
