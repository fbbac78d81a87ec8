"""The flags of train.py: their names, their help, and their checks, all without TensorFlow."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from esgd_tf.cli.parsers import (
    LARGEST,
    ChoiceParser,
    FlagError,
    GrowingParser,
    NamesParser,
    NumberParser,
    PathParser,
    SwitchParser,
    TextParser,
    WholeParser,
    parse_flags,
)
from esgd_tf.data import AUGMENTATIONS, CORRUPTIONS, DATASETS, PREPROCESSINGS
from esgd_tf.models import names as model_names

__all__ = [
    "MAY_BE_NONE",
    "OPTIMIZERS",
    "STRATEGIES",
    "FlagError",
    "define_flags",
    "define_switch",
    "flag_help",
    "help_text",
    "parse",
]

# As in `esgd_tf.training.strategies`, which needs TensorFlow.
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
# Of 10,000 minibatches each, 64-bit counters of gradient evaluations are far from their end.
_MOST_EPOCHS = 1_000_000
# Of the numbers of an experiment, those that None stands for something; a flag never gives it.
MAY_BE_NONE = ("coupling_gamma", "coupling_max")
OPTIMIZERS = (
    "entropy-sgd", "entropy-adam", "sgd", "momentum", "adam", "rsgd", "easgd", "parle",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Group:
    title: str
    names: tuple[str, ...]


_GROUPS = (
    _Group(
        "What to train",
        ("optimizer", "langevin_steps", "preset", "dataset", "model", "name", "epochs",
         "batch_size", "seed"),
    ),
    _Group("Going on", ("restore_last", "restore_path")),
    _Group(
        "The algorithm",
        ("lr", "lr_drops", "lr_factor", "l2", "dropout", "momentum", "gamma", "scoping", "noise",
         "langevin_lr", "averaging", "outer_momentum"),
    ),
    _Group(
        "Replicas (rsgd, easgd, parle)",
        ("replicas", "budget", "initialization", "coupling_gamma", "coupling_every", "focusing",
         "focusing_growth", "coupling_max", "monitor"),
    ),
    _Group(
        "Data",
        ("data_dir", "raw_dir", "download", "preprocessing", "augmentation", "corrupt",
         "corruption_seed", "bn_reestimate"),
    ),
    _Group(
        "Devices",
        ("strategy", "devices", "logical_devices", "tpu", "scale_lr", "sync_bn",
         "mixed_precision", "jit_compile"),
    ),
    _Group(
        "The run",
        ("logdir", "checkpoint_dir", "checkpoint_steps", "keep_every", "on_nan", "limit_steps",
         "verbose", "help", "presets", "debug"),
    ),
)  # fmt: skip


def define_flags() -> flags.FlagValues:
    """Return the flags of train.py, not parsed yet; None means: as the preset has it."""
    fv = flags.FlagValues()

    def define(
        parser: flags.ArgumentParser, name: str, default: Any, help: str, short: str | None
    ) -> None:
        flags.DEFINE(parser, name, default, help, fv, flags.ArgumentSerializer(), short_name=short)

    def text(name: str, help: str, short: str | None = None) -> None:
        define(TextParser(), name, None, help, short)

    def path(name: str, default: str | None, help: str, short: str | None = None) -> None:
        define(PathParser(), name, default, help, short)

    def choice(
        name: str, choices: Sequence[str], default: str | None, help: str, short: str | None = None
    ) -> None:
        define(ChoiceParser(list(choices)), name, default, help, short)

    def integer(
        name: str, at_least: int, help: str, short: str | None = None, default: int | None = None,
        at_most: int = LARGEST,
    ) -> None:  # fmt: skip
        define(WholeParser(at_least, at_most), name, default, help, short)

    def number(
        name: str, help: str, below: float | None = None, above: float | None = None
    ) -> None:
        define(NumberParser(above, below), name, None, help, None)

    def switch(name: str, default: bool, help: str, short: str | None = None) -> None:
        define_switch(fv, name, default, help, short)

    choice("optimizer", OPTIMIZERS, "entropy-sgd",
           "momentum is SGD with Nesterov momentum; rsgd, easgd and parle train replicas by it: "
           "Replicated-SGD, elastic averaging, Parle", "opt")  # fmt: skip
    integer("langevin_steps", 0, "L, gradient evaluations per outer update", "L")
    text("preset", "experiment of a paper, or quickstart (see --presets); by default the one "
         "that fits --dataset and --model")  # fmt: skip
    choice("dataset", DATASETS, None, "data set", "d")
    text("model", f"architecture: {', '.join(model_names())} or another wrn-DEPTH-WIDTH", "m")
    text("name", "name of the run, and of its folder in --logdir", "n")
    integer("epochs", 1, "effective epochs: passes over the data, for every optimizer. Other than "
            "the preset's, it stretches the preset's --lr_drops", "e",
            at_most=_MOST_EPOCHS)  # fmt: skip
    integer("batch_size", 1, "images per gradient evaluation, over all devices", "b")
    integer("seed", 0, "of weights, data order, augmentation, dropout and noise", "s", 42)

    switch("restore_last", False, "go on with the run --name, or with the last run there is", "rl")
    path("restore_path", None, "go on from this checkpoint, or from the last one of this run "
         "folder", "r")  # fmt: skip

    number("lr", "step size; for entropy-* that of the outer update")
    define(GrowingParser(), "lr_drops", None, "effective epochs after which the step size drops",
           None)  # fmt: skip
    number("lr_factor", "what the step size is multiplied by at a drop", above=0)
    number("l2", "weight decay, as an L2 term in the gradient")
    number("dropout", "rate of the dropout layers", below=1)
    number("momentum", "Nesterov momentum of SGD; for entropy-* of the inner loop", below=1)
    number("gamma", "scope before the first outer update")
    number("scoping", "relative growth of the scope per outer update")
    number("noise", "thermal noise of the inner loop")
    number("langevin_lr", "inner step size", above=0)
    number("averaging", "weight of the old mean of the Langevin weights", below=1)
    number("outer_momentum", "Nesterov momentum of the outer update of entropy-sgd", below=1)

    integer("replicas", 1, "interacting copies of the network")
    choice("budget", ("shared", "each"), None, "of an epoch: one pass over the data that replicas "
           "share, or a pass of each")  # fmt: skip
    choice("initialization", ("independent", "same"), None, "of the replicas")
    number("coupling_gamma", "strength of the coupling at the start: gamma of rsgd (measured where "
           "not given), alpha of easgd, rho of parle")  # fmt: skip
    integer("coupling_every", 1, "updates from one coupling to the next")
    choice("focusing", ("none", "exponential", "linear", "cosine"), None,
           "how the coupling of rsgd grows")  # fmt: skip
    number("focusing_growth", "factor by which it grows over the run", above=0)
    number("coupling_max", "where that growth ends: --lr times it should not be above 1 / K")
    integer("monitor", 0, "training and test images on which every replica, center and ensemble "
            "are measured after each epoch; 0 for none", default=2000)  # fmt: skip

    path("data_dir", "tfrecords", "where data sets lie prepared, or are put once built")
    path("raw_dir", None, "folder with the archives of a data set, to build it from")
    switch("download", True, "whether to download a data set that is not there")
    choice("preprocessing", PREPROCESSINGS, None, "of the images")
    choice("augmentation", AUGMENTATIONS, None, "of the training images")
    text("corrupt", f"what is done to the data first: {', '.join(CORRUPTIONS)}, some with a "
         "number (label_noise:0.2), several joined by +; see docs/corruption.png")  # fmt: skip
    integer("corruption_seed", 0, "of --corrupt, apart from --seed: several runs see one data set")
    integer("bn_reestimate", 0, "training batches from which BatchNorm statistics are estimated "
            "before each evaluation; 0 keeps the moving averages")  # fmt: skip

    choice("strategy", STRATEGIES, "auto", "auto: multi_worker where TF_CONFIG or SLURM name "
           "several workers, mirrored for two GPUs or more, else none")  # fmt: skip
    define(NamesParser(), "devices", None, "devices to use, such as GPU:0,GPU:1; by default all "
           "GPUs", None)  # fmt: skip
    integer("logical_devices", 1, "split the GPU, or the CPU, into so many devices: to try out "
            "on one what is meant for several")  # fmt: skip
    text("tpu", "name or address of the TPU; by default the local one")
    switch("scale_lr", False, "multiply the rate of the minibatch gradient (--langevin_lr with "
           "an inner loop, else --lr) by the batch size over the preset's")  # fmt: skip
    switch("sync_bn", False, "let BatchNorm see the batch of all devices, not each its own part")
    path("logdir", "runs", "where run folders lie")
    path("checkpoint_dir", None, "where the checkpoints go; by default into the run folder")
    switch("verbose", False, "print the norms of the inner loop after each epoch", "v")
    choice("jit_compile", ("auto", "true", "false"), "auto",
           "compile the step with XLA; auto: on a GPU, yes")  # fmt: skip
    choice("mixed_precision", ("none", "bfloat16", "float16"), "none",
           "half precision of activations; weights and the optimizer stay float32")  # fmt: skip
    integer("checkpoint_steps", 1, "save every so many gradient evaluations, not only after each "
            "epoch")  # fmt: skip
    integer("keep_every", 1, "keep the checkpoint of every so many epochs for good, for "
            "`python3 -m esgd_tf landscape --plane`")  # fmt: skip
    choice("on_nan", ("stop", "skip"), "stop", "what to do when a gradient is not finite: stop "
           "with the state before it, or leave that minibatch out, on every device")  # fmt: skip
    integer("limit_steps", 1, "stop after so many gradient evaluations, and evaluate on at most as "
            "many batches: to try things out")  # fmt: skip
    switch("help", False, "show this", "h")
    switch("presets", False, "show the presets")
    switch("debug", False, "show the traceback of an error too")
    return fv


def parse(fv: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parse the command line into `fv`.

    Args:
        fv: From `define_flags`.
        argv: As `sys.argv`.

    Raises:
        FlagError: A flag is unknown, has a bad value, or there is a word that belongs to none.
    """
    rest = parse_flags(fv, argv)
    if rest:
        raise FlagError(f"{rest[0]!r} belongs to no flag")


def define_switch(
    fv: flags.FlagValues, name: str, default: bool, help: str, short: str | None = None
) -> None:
    """Define a flag that is on or off.

    Args:
        fv: To which it is added.
        name: Its name; with "no" in front it is off.
        default: Whether it is on.
        help: What for.
        short: Another name.
    """
    flag = flags.BooleanFlag(name, default, help, short)
    flag.parser = SwitchParser()
    flags.DEFINE_flag(flag, fv)


def help_text(fv: flags.FlagValues, defaults: Mapping[str, Any]) -> str:
    """Return the help, the main flags first, in 80 columns.

    Args:
        fv: From `define_flags`.
        defaults: Values of the default preset, by flag.
    """
    lines = [
        "Trains a Keras model with Entropy-SGD, or with what it is compared to.",
        "",
        "  python3 train.py --preset quickstart -opt entropy-sgd -L 20",
        "  python3 train.py -opt entropy-sgd -L 20        (CIFAR-10, wrn-28-10)",
    ]
    for group in _GROUPS:
        lines += ["", f"{group.title}:"]
        for name in group.names:
            lines += flag_help(fv[name], defaults.get(name))
    lines += ["", "Defaults shown as (preset: ...) are those of the preset in force without flags."]
    return "\n".join(lines)


def flag_help(flag: flags.Flag, preset_value: Any = None) -> list[str]:
    """Return the lines of the help about one flag, in 80 columns.

    Args:
        flag: The flag.
        preset_value: What it is by the preset in force; None where presets have no say.
    """
    name = f"--{flag.name}" if flag.short_name is None else f"-{flag.short_name}, --{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    help = flag.help if not choices else f"{flag.help}: {', '.join(choices)}"
    if flag.default is not None and not flag.boolean:
        help += f" (default: {flag.default})"
    elif preset_value is not None and preset_value != ():
        help += f" (preset: {preset_value})"
    elif flag.boolean and flag.default:
        help += f" (default: on; --no{flag.name})"
    return textwrap.wrap(
        f"{name:<24} {help}",
        width=79,
        initial_indent="  ",
        subsequent_indent=" " * 27,
        break_on_hyphens=False,
    )
