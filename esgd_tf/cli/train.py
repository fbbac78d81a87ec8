"""`train.py`: train a model with Entropy-SGD or its baselines, from flags to final table."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf.cli.door import FAILED, asks_for_traceback, enter
from esgd_tf.cli.flags import define_flags, help_text, parse
from esgd_tf.cli.parsers import FlagError, check_folder_name
from esgd_tf.cli.patience import waiting
from esgd_tf.cli.places import (
    last_checkpoint,
    last_run,
    new_folder,
    of_restore_path,
    require_writable,
    reserved,
)
from esgd_tf.cli.settings import choose_preset, make_settings, resume_settings, stretched
from esgd_tf.cli.startup import say, without_startup_messages
from esgd_tf.cli.version import version_line
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.experiment import Experiment, RunSettings
from esgd_tf.runs.run_folder import RunFolder, State
from esgd_tf.runs.settings import Settings, settings_table
from esgd_tf.training.cluster import Task, read_task

__all__ = ["main"]

# With one of these flags nothing is trained, so lost output is an error.
_TELLS = {"-h", "-help", "--help", "-presets", "--presets", "-version", "--version"}
# After so many seconds a worker says that it waits for the others.
_PATIENCE = 10.0
_STOPPED = "Stopped before the training began; nothing was written."


def main(
    presets: Mapping[str, Mapping[str, Experiment]],
    argv: Sequence[str] | None = None,
    *,
    name: str = "train.py",
) -> int:
    """Run train.py.

    Args:
        presets: mapping of experiments by preset and optimizer. `PRESETS` of config.py.
        argv: sequence of str. The command line, like `sys.argv`. Defaults to None, which takes that
            of the process.
        name: str. The command's name in messages. Defaults to "train.py".

    Returns:
        The exit status: 0; 2 for bad flags; 1 for anything else that failed; 128 + the signal's
        number for a run stopped by a signal, after its state was saved.
    """
    argv = sys.argv if argv is None else argv
    return enter(
        name,
        lambda: _call(name, presets, argv),
        see=f"{name} --help",
        debug=asks_for_traceback(argv),
        outlives_output=not _TELLS & set(argv[1:]),
        stopped=_STOPPED,
    )


def _call(name: str, presets: Mapping[str, Mapping[str, Experiment]], argv: Sequence[str]) -> int:
    fv = define_flags()
    if {"-version", "--version"} & set(argv[1:]):
        print(version_line())
        return 0
    if {"-h", "-help", "--help"} & set(argv[1:]):
        parse(fv, argv[:1])
        print(help_text(fv, vars(presets[choose_preset(fv, presets)][fv.optimizer])))
        return 0
    parse(fv, argv)
    if fv.presets:
        print(_preset_table(presets))
        return 0
    return _train(name, fv, presets)


def _train(name: str, fv: Any, presets: Mapping[str, Mapping[str, Experiment]]) -> int:
    task = read_task(os.environ) if fv.strategy in ("auto", "multi_worker") else None
    is_chief = task is None or task.is_chief
    path, checkpoint, settings, seen = _what_to_run(fv, presets, is_chief=is_chief)
    if is_chief:
        require_writable(path)
        print(settings_table(settings), flush=True)
    # From here on TensorFlow is needed.
    with _patience_for(name, task), without_startup_messages():
        strategy = _strategy(settings.run)

        from esgd_tf.runs import training_run  # noqa: F401 - has messages of its own
    with contextlib.ExitStack() as place:
        if is_chief and fv.name is None and seen == (None,) * len(seen):
            path = place.enter_context(reserved(path))
        return _run(name, fv, path, checkpoint, settings, strategy, seen)


def _run(
    name: str,
    fv: Any,
    path: Path,
    checkpoint: Path | None,
    settings: Settings,
    strategy: Any,
    seen: State,
) -> int:
    """Train, and turn errors that only a training has into a sentence and an exit status."""
    import tensorflow as tf

    from esgd_tf.runs.errors import NotFiniteError
    from esgd_tf.runs.guard import Interrupted
    from esgd_tf.runs.training_run import Places, run_training
    from esgd_tf.training.multi_worker import is_multi_worker

    try:
        places = Places(
            path,
            checkpoint,
            seen=seen,
            checkpoint_dir=None if fv.checkpoint_dir is None else Path(fv.checkpoint_dir),
            data_dir=fv.data_dir,
            raw_dir=fv.raw_dir,
            download=fv.download,
        )
        return run_training(settings, places, strategy, verbose=fv.verbose)
    except Interrupted as stopped:
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return _fail(name, "Stopped at once. The checkpoint of the last full epoch is kept.", 130)
    except NotFiniteError as error:
        return _fail(name, str(error))
    except tf.errors.OpError as error:
        # A lack of memory is this worker's own; other errors mostly mean that a worker has gone.
        if not is_multi_worker(strategy) or isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        return _fail(
            name,
            "Lost the connection to another worker, which may say why. The last checkpoint is "
            "kept: start all workers again with -rl.",
        )


def _patience_for(name: str, task: Task | None) -> contextlib.AbstractContextManager[None]:
    """Let a worker say after a while that it waits for the others."""
    if task is None or task.count < 2:
        return contextlib.nullcontext()
    return waiting(
        _PATIENCE,
        f"{name}: Worker {task.index} of {task.count} waits for the others: are all of them "
        f"started, at the addresses that {task.source} names?",
        f"{name}: {_STOPPED}",
    )


def _strategy(run: RunSettings) -> Any:
    """Set up TensorFlow's devices and return the strategy, before anything else makes a tensor."""
    import tensorflow as tf

    from esgd_tf.training import strategies

    if run.logical_devices is not None:
        strategies.split_device(run.logical_devices)
    # A user splits a CPU only to try out several devices.
    parted = run.strategy == "auto" and (run.logical_devices or 1) > 1
    kind = "mirrored" if parted else run.strategy
    strategy = strategies.make_strategy(kind, run.devices, tpu=run.tpu)
    tf.config.list_logical_devices()  # looks for a GPU, and prints messages
    return strategy


def _what_to_run(
    fv: Any, presets: Mapping[str, Mapping[str, Experiment]], *, is_chief: bool
) -> tuple[Path, Path | None, Settings, State]:
    """Return the run folder, the checkpoint to go on from, the settings, and the folder's state.

    The checkpoint is None for a run from its beginning. The folder's lock is taken much later and
    compares its `State` with the one returned here, since the folder may have changed meanwhile.
    """
    logdir = Path(fv.logdir)
    checkpoints = None if fv.checkpoint_dir is None else Path(fv.checkpoint_dir)
    if fv.name is not None:
        check_folder_name(fv.name)
    if fv.restore_last and fv.restore_path is not None:
        raise FlagError("--restore_last and --restore_path exclude each other")
    if fv.restore_path is None and not fv.restore_last:
        settings = make_settings(fv, presets)
        # Only the chief checks the folder, which it may have made before this worker came here.
        if is_chief:
            path = new_folder(logdir, fv.name, settings)
        else:
            path = logdir / (fv.name or "of-the-chief")
        return path, None, settings, RunFolder(path, checkpoints).state()

    if fv.restore_path is None:
        path = logdir / fv.name if fv.name else last_run(logdir)
        checkpoint = None
    else:
        path, checkpoint = of_restore_path(Path(fv.restore_path), logdir, fv.name)
    folder = RunFolder(path, checkpoints)
    seen = folder.state()
    before = folder.read_config()
    settings = resume_settings(fv, presets, before, folder.config)
    if is_chief and (note := stretched(before, settings)):
        say(note)
    checkpoint = checkpoint or last_checkpoint(folder)
    if checkpoint.is_file():
        return path, checkpoint, settings, seen
    if folder.read_history():
        raise RunFolderError(
            f"There is no checkpoint {checkpoint}: was it moved, or written to another "
            "--checkpoint_dir?"
        )
    say(f"Nothing was saved in {path} yet: starting from the beginning.")
    return path, None, settings, seen


def _preset_table(presets: Mapping[str, Mapping[str, Experiment]]) -> str:
    def rows() -> Iterator[str]:
        yield f"{'preset':<14} {'optimizer':<12} {'data set':<19} {'model':<15} {'epochs':>6}   lr"
        for name, by_optimizer in presets.items():
            for optimizer, e in by_optimizer.items():
                yield (
                    f"{name:<14} {optimizer:<12} {e.dataset:<19} {e.model:<15} {e.epochs:>6}"
                    f"   {e.learning_rate:g}"
                )

    return "\n".join(rows())


def _fail(name: str, message: str, status: int = FAILED) -> int:
    say(f"{name}: {message}")
    return status
