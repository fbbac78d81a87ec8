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

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.parsers import ChoiceParser, FlagError, check_folder_name, did_you_mean
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.data.catalog import DATASETS, PREPROCESSINGS
from esgd_tf.models import names as model_names
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.walkers.control import ControlError, checked, read_schedule
from esgd_tf.walkers.records import STATE_FILE
from esgd_tf.walkers.settings import (
    COUPLINGS,
    LINES,
    OPTIMIZATIONS,
    OPTIMIZERS,
    Settings,
    SettingsError,
)

__all__ = ["MODELS", "command_line", "main"]

_DEFAULTS = Settings()
MODELS = ("nn", "lenet", *model_names())
# What a run that goes on may be told; the rest is as it was.
_MAY_CHANGE = {"n_steps", "schedule", "user_input", "ask_every", "name", "logdir", "restore_last",
               "data_dir", "raw_dir", "download", "help"}  # fmt: skip
# Flags that are no settings, or not as they stand.
_NOT_SETTINGS = (_MAY_CHANGE - {"n_steps"}) | {"explore_from"}


class _Line(CommandLine):
    """Flags with numbers, and with the defaults of `Settings`."""

    def number(self, name: str, help: str) -> None:
        """Define a flag with a number; its range is checked by `Settings`."""
        default = getattr(_DEFAULTS, name)
        flags.DEFINE_string(name, f"{default:g}", help, flag_values=self._fv)
        self._names.append(name)

    def whole(self, name: str, at_least: int, help: str, short: str | None = None) -> None:
        """Define a flag with a whole number."""
        self.integer(name, at_least, getattr(_DEFAULTS, name), help, short)

    def named(self, name: str, help: str, short: str) -> None:
        """Define a flag with any text, and a short name."""
        flags.DEFINE_string(name, None, help, flag_values=self._fv, short_name=short)
        self._names.append(name)

    def one_of(self, name: str, choices: Sequence[str], help: str, short: str | None) -> None:
        """Define a flag with one of several values, and a short name."""
        default = getattr(_DEFAULTS, name)
        self._define(ChoiceParser(list(choices)), name, default, help, short)

    def on(self, name: str, help: str) -> None:
        """Define a flag that is off without it."""
        self.switch(name, False, help)


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "walkers" and what follows it; "walkers plot RUN" plots what a run
            has measured.

    Returns:
        The exit status.
    """
    if list(argv[1:2]) == ["plot"]:
        from esgd_tf.cli import walkers_plot

        return walkers_plot.main(argv[1:])
    return command_line().run(argv, _walkers)


def command_line() -> CommandLine:
    """Return the command's flags and help; `walkers plot` has its own."""
    line = _Line(
        "walkers",
        "[plot RUN]",
        "Trains n networks beside each other, coupled or not, with gradient descent on all the "
        "data beside them, and measures what lies around and between them: losses, distances, "
        "lines, spectra of the Hessian, sharpness, random walks. Writes CSV files, a table of "
        "everything (table.jsonl) and the networks into a folder; `walkers plot RUN` plots them. "
        "A run outlives its output (| head): Ctrl-C stops it.",
        ["--n_workers 3 --alpha 0.1 --raw_dir DIR", "--hessian --explore --n_steps 500",
         "-rl -n RUN --n_steps 1000", "plot runs/RUN"],
        at_least=0, at_most=None, outlives_output=True,
    )  # fmt: skip
    _define(line)
    return line


def _define(line: _Line) -> None:
    line.one_of("dataset", DATASETS, "data set", None)
    line.whole("n_samples_train", 0, "training images, sampled at random; 0 for all")
    line.whole("n_samples_test", 0, "test images, likewise")
    line.one_of("preprocessing", PREPROCESSINGS, "of the images", None)
    line.text("corrupt", "none", "corruption of the data: double, scrambled, label_noise:R, "
              "all_noise, some_noise:K, gaussian:S, pixel_shuffle, random_pixels; several joined "
              "by +")  # fmt: skip
    line.on("soft_labels", "train on p at the label and q elsewhere")
    line.number("p", "see --soft_labels")
    line.number("q", "see --soft_labels")
    line.path("teacher", None, "train on the outputs of the network in this .keras file instead")
    line.text("model", _DEFAULTS.model, "nn, lenet, or an architecture of train.py")
    line.whole("n_hidden", 1, "units of each hidden layer of nn")
    line.whole("n_layers", 1, "hidden layers of nn")
    line.number("weight_init_std", "each worker starts at N(0, std) weights of its own; at 0 all "
                "start at the same weights")  # fmt: skip
    line.whole("n_workers", 0, "stochastic workers beside worker 0; 0 for worker 0 alone")
    line.number("alpha", "strength of the coupling; 0 for none: with elastic worker 0 then goes "
                "its own way")  # fmt: skip
    line.one_of("coupling", COUPLINGS, "how alpha attracts workers to worker 0, their center: as "
                "in the original, or by Replicated-SGD, elastic averaging or Parle",
                None)  # fmt: skip
    line.one_of("optimizer", OPTIMIZERS, "of the stochastic workers", "opt")
    line.one_of("optimization", OPTIMIZATIONS, "of worker 0, with elastic at alpha 0; auto is "
                "GD, on all the data, beside others and SGD alone", None)  # fmt: skip
    line.whole("langevin_steps", 1, "L of entropy-sgd and entropy-adam", "L")
    line.number("langevin_lr", "their inner step size")
    line.number("lr", "learning rate; for entropy-* that of the outer update")
    line.number("momentum", "of sgd; for entropy-* and parle of the inner loop")
    line.whole("batch_size", 1, "images of a minibatch", "b")
    line.whole("n_steps", 1, "minibatch steps of each worker")
    line.whole("freq", 1, "steps between measurements of the losses")
    line.whole("freq_i", 0, "steps between measurements of lines and distances; 0 for the end only")
    line.whole("freq_h", 0, "steps between spectra, sharpness and walks; 0 for the end only")
    line.one_of("lines", (*LINES, "none"), "kind of the lines between all workers", None)
    line.whole("resolution", 1, "points of a line per unit of its coefficient")
    line.number("c1", "where lines begin: 0 is one worker, 1 the other")
    line.number("c2", "where lines end")
    line.on("hessian", "measure the Hessian: eigenvalues at both ends, density")
    line.whole("n_eigenvalues", 1, "at each end", "k")
    line.whole("density_probes", 0, "random vectors for the density; 0 for none")
    line.whole("density_steps", 2, "Lanczos steps of each")
    line.on("full_spectrum", "with --hessian: all eigenvalues at the end, if the matrix fits")
    line.on("sharpness", "measure the sharpness, by gradient ascent")
    line.number("epsilon", "distance of the ascent")
    line.number("ascent_lr", "step size of the ascent")
    line.on("explore", "walk at random from the workers until the loss has risen")
    line.text("explore_from", None, "from these workers, such as 0,2; by default from all")
    line.on("explore_moves", "let a worker go on from where its walk ended")
    line.number("threshold", "rise of the training loss that ends a walk")
    line.number("rw_step_size", "standard deviation of a step of a walk, for each weight")
    line.whole("rw_steps", 1, "steps after which a walk ends in any case")
    line.number("stop_grad", "stop below this norm of the gradient, mean over workers; 0 for never")
    line.number("stop_cost", "stop below this training loss, mean over workers; 0 for never")
    line.path("schedule", None, "JSON or CSV file of changes in mid-run: step, name, value; names "
              "are lr, momentum, alpha, n_steps, walk, quit")  # fmt: skip
    line.on("user_input", "ask what to change, in the terminal or a pipe")
    line.integer("ask_every", 1, None, "steps between questions (default: those of --freq)")
    line.whole("seed", 0, "of all that is random", "s")
    line.named("name", "name of the run, and of its folder in --logdir", "n")
    line.path("logdir", "runs", "where run folders lie")
    line.switch("restore_last", False, "go on with the run --name from its saved state (or start "
                "it, if it died before that), with its settings; its control.json shows what is in "
                "force", "rl")  # fmt: skip
    line.data_flags()


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

    # It remarks on every measurement that has a graph of its own.
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
    """Return the settings that the flags say."""
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
    """Refuse what was asked for and would have no effect."""
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
    """Return the folder and the settings of a run that goes on."""
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
