"""The flags of `walkers`, with the defaults of its `Settings`. This module loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.parsers import ChoiceParser
from esgd_tf.data.catalog import DATASETS, PREPROCESSINGS
from esgd_tf.models import names as model_names
from esgd_tf.walkers.settings import (
    COUPLINGS,
    LINES,
    OPTIMIZATIONS,
    OPTIMIZERS,
    Settings,
)

__all__ = ["MODELS", "command_line"]

_DEFAULTS = Settings()
#: The names of networks that can be listed.
MODELS = ("nn", "lenet", *model_names())


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
        """Define a switch that is off by default."""
        self.switch(name, False, help)


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
