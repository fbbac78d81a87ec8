"""`walkers`: train one or many networks beside each other, and measure the landscape they cross."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esgd_tf.cli.parsers import FlagError, check_folder_name
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.cli.suggestions import did_you_mean
from esgd_tf.cli.walkers_flags import MODELS, command_line
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.walkers.control import ControlError, checked, read_schedule
from esgd_tf.walkers.records import STATE_FILE
from esgd_tf.walkers.settings import Settings, SettingsError

__all__ = ["command_line", "main"]

_DEFAULTS = Settings()
# Flags that may be given when a run is resumed; all others stay as they were.
_MAY_CHANGE = {"n_steps", "schedule", "user_input", "ask_every", "name", "logdir", "restore_last",
               "data_dir", "raw_dir", "download", "help"}  # fmt: skip
# Flags that are not settings, or that become settings only after a conversion.
_NOT_SETTINGS = (_MAY_CHANGE - {"n_steps"}) | {"explore_from"}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "walkers" and what follows it; "walkers plot RUN" plots the
            measurements of a run.

    Returns:
        The exit status.
    """
    if list(argv[1:2]) == ["plot"]:
        from esgd_tf.cli import walkers_plot

        return walkers_plot.main(argv[1:])
    return command_line().run(argv, _walkers)


def _walkers(fv: Any, words: list[str]) -> None:
    if words:
        near = did_you_mean(words[0], ["plot"])
        raise FlagError(f"{words[0]!r} is one word too many: give [plot RUN]{near}")
    folder = Path(fv.logdir).expanduser()
    if fv.restore_last:
        path, settings = _stored(fv, folder)
    else:
        settings = _settings(fv)
        path = _new_folder(folder, fv.name, settings)
    if fv.ask_every is not None and not fv.user_input:
        raise FlagError("--ask_every belongs to --user_input")
    n_steps = fv.n_steps if fv.restore_last and fv["n_steps"].present else None
    goes_on = fv.restore_last and (path / STATE_FILE).exists()
    if fv.restore_last and not goes_on:
        _say(f"{path} has no state yet: it starts anew, with its settings")
        settings = settings if n_steps is None else dataclasses.replace(settings, n_steps=n_steps)
    start_tensorflow()

    import tensorflow as tf

    from esgd_tf.walkers import Experiment, Problem
    from esgd_tf.walkers.measures import NotFiniteLossError

    # TensorFlow remarks on every measurement that has a graph of its own.
    tf.get_logger().setLevel("ERROR")
    problem = Problem.load(settings, data_dir=fv.data_dir, raw_dir=fv.raw_dir, download=fv.download)
    experiment = Experiment(
        settings,
        path,
        problem=problem,
        resume=goes_on,
        n_steps=n_steps,
        ask_every=(fv.ask_every or settings.freq) if fv.user_input else 0,
        say=_say_wrapped,
    )
    _say(f"run folder: {path}")
    try:
        experiment.run()
    except KeyboardInterrupt:
        print(f"\nGo on with:\n  {_again(path, fv)}", file=sys.stderr)
        raise
    except NotFiniteLossError as error:
        raise RunFolderError(str(error)) from None
    _say(f"done; plot it with:\n  python3 -m esgd_tf walkers plot {path}")


def _settings(fv: Any) -> Settings:
    """Return the settings that the flags give."""
    values: dict[str, Any] = {}
    for name, default in _DEFAULTS.to_dict().items():
        if name in _NOT_SETTINGS:
            continue
        value = getattr(fv, name)
        if isinstance(default, float):
            value = _number(name, value)
        values[name] = "" if value is None else value
    values["explore_from"] = _numbers(fv.explore_from)
    try:
        settings = Settings(**values)
    except SettingsError as error:
        near = did_you_mean(fv.model, MODELS) if str(error).startswith("model=") else ""
        raise FlagError(f"--{error}{near}") from None
    _refuse_idle_flags(settings, fv)
    return _with_schedule(settings, fv)


def _refuse_idle_flags(settings: Settings, fv: Any) -> None:
    """Refuse flags that would have no effect."""
    s = settings
    inner = s.optimizer.startswith("entropy") or s.coupling == "parle"
    needed = (
        (s.soft_labels, "--soft_labels", ("p", "q")),
        (s.model == "nn", "--model nn", ("n_hidden", "n_layers")),
        (inner, "-opt entropy-sgd, entropy-adam or --coupling parle",
         ("langevin_steps", "langevin_lr")),
        (s.lines != "none", "--lines", ("resolution", "c1", "c2")),
        (s.hessian, "--hessian",
         ("n_eigenvalues", "density_probes", "density_steps", "full_spectrum")),
        (s.hessian or s.sharpness or s.explore, "--hessian, --sharpness or --explore",
         ("freq_h",)),
        (s.sharpness, "--sharpness", ("epsilon", "ascent_lr")),
        (s.explore, "--explore", ("explore_from",)),
    )  # fmt: skip
    for is_there, what, names in needed:
        for name in names:
            if fv[name].present and not is_there:
                raise FlagError(f"--{name}: has no effect without {what}")


def _with_schedule(settings: Settings, fv: Any) -> Settings:
    if fv.schedule is None:
        return settings
    try:
        schedule = read_schedule(fv.schedule)
        for _, name, value in schedule:
            checked(name, value, n_workers=settings.n_workers, coupling=settings.coupling)
    except ControlError as error:
        raise FlagError(f"--schedule={fv.schedule}: {error}") from None
    return Settings.from_dict({**settings.to_dict(), "schedule": schedule})


def _stored(fv: Any, logdir: Path) -> tuple[Path, Settings]:
    """Return the folder and the settings of a run that is resumed."""
    if fv.name is None:
        raise FlagError("--restore_last needs the --name of the run")
    check_folder_name(fv.name)
    given = [name for name in fv if fv[name].present and name not in _MAY_CHANGE]
    given = [name for name in given if fv[name].name == name]
    if given:
        raise FlagError(
            f"--{given[0]}: a run that goes on keeps its settings; change it by --schedule, or in "
            "its control.json while it runs"
        )
    path = logdir / fv.name
    config = RunFolder(path).read_config()
    if not isinstance(config, dict) or config.get("command") != "walkers":
        raise RunFolderError(f"{path} is no run of walkers.")
    try:
        settings = Settings.from_dict(config["settings"])
    except (SettingsError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{path / 'config.json'} is damaged or of another version ({error})."
        ) from None
    return path, _with_schedule(settings, fv)


def _new_folder(logdir: Path, name: str | None, settings: Settings) -> Path:
    if logdir.exists() and not logdir.is_dir():
        raise FlagError(f"--logdir={logdir}: is a file; name a folder")
    if name is not None:
        check_folder_name(name)
        if (logdir / name / "config.json").exists():
            raise RunFolderError(
                f"{logdir / name} holds a run already: go on with it by -rl, or choose another -n."
            )
        return logdir / name
    stem, number = f"walkers-{settings.network}", 1
    while (path := logdir / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def _number(name: str, text: Any) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FlagError(f"--{name}={text}: must be a number")
    return value


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise FlagError(f"--explore_from={text}: must be numbers, separated by commas") from None


def _again(path: Path, fv: Any) -> str:
    words = ["python3", "-m", "esgd_tf", "walkers", "-rl", "--logdir", str(path.parent)]
    words += ["-n", path.name]
    for name in ("data_dir", "raw_dir"):
        if fv[name].present:
            words += [f"--{name}", str(getattr(fv, name))]
    return shlex.join([*words, *([] if fv.download else ["--nodownload"])])


def _say(line: str) -> None:
    print(line, flush=True)


def _say_wrapped(line: str) -> None:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    _say(textwrap.fill(line, 80, subsequent_indent=indent, break_on_hyphens=False))
