"""The settings of a walkers experiment: one frozen record, checked without TensorFlow.

Names and defaults follow the elementary-walkers code (Sagun's, Torch7) where it has them; its
`--optimization`, `--stop` and `--threshold` had no effect there, and have here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from esgd_tf.data import DATASETS, PREPROCESSINGS, DataError, parse_corruptions
from esgd_tf.models import check_name

__all__ = ["COUPLINGS", "LINES", "MOST", "OPTIMIZATIONS", "OPTIMIZERS", "Settings", "SettingsError"]

COUPLINGS = ("elastic", "rsgd", "easgd", "parle")
OPTIMIZERS = ("sgd", "adam", "entropy-sgd", "entropy-adam")
OPTIMIZATIONS = ("auto", "SGD", "GD", "LBFGS")
LINES = ("spherical", "linear", "both")
#: The largest count: TensorFlow counts in 32 bits.
MOST = 2**31 - 1
# `lenet` of the original is a network for colour images; this network is for digits.
_LENET = "lenet-10-20-128"


class SettingsError(ValueError):
    """A setting is out of range; the message is one sentence that starts with its name."""

    def __init__(self, name: str, value: Any, what: str) -> None:
        super().__init__(f"{name}={value}: {what}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one experiment.

    Attributes:
        dataset: An image data set of `esgd_tf.data`.
        n_samples_train: Training images, sampled at random; 0 for all.
        n_samples_test: Test images, sampled at random; 0 for all.
        preprocessing: One of `esgd_tf.data.PREPROCESSINGS`, fitted on those training images.
        corrupt: A text for `esgd_tf.data.parse_corruptions`, such as "label_noise:0.2".
        soft_labels: Whether targets are p on the label and q on each other class.
        p: The target of the label, with `soft_labels`.
        q: The target of each other class, with `soft_labels`.
        teacher: A `.keras` file whose network's outputs are the targets instead; "" for none.
        model: "nn", "lenet", or a name of `esgd_tf.models`.
        n_hidden: Units of each hidden layer of "nn".
        n_layers: Hidden layers of "nn".
        weight_init_std: Above 0, every worker starts at its own weights, sampled from N(0, std); at
            0 all start at the same weights.
        n_workers: Stochastic workers 1 ... n; with 0 there is worker 0 alone.
        alpha: Strength of the coupling; for "elastic" the fraction of its way to the center that a
            worker moves after each step. 0 means no coupling.
        coupling: "elastic" (see `ElasticAveraging`, norm_mean), "rsgd", "easgd" or "parle".
        optimizer: The optimizer of the stochastic workers.
        optimization: The method of worker 0 while alpha is 0 ("elastic" only; with the other
            couplings worker 0 is always the center): "SGD", "GD" on all the data, or "LBFGS"; auto
            is GD beside other workers, and SGD without any.
        langevin_steps: L, the gradient evaluations per outer update of entropy-sgd and
            entropy-adam.
        langevin_lr: Their inner step size.
        lr: The learning rate; for entropy-sgd and entropy-adam it is the outer one.
        momentum: The momentum of sgd, and of the inner loop of entropy-sgd and entropy-adam.
        batch_size: Examples of a minibatch.
        n_steps: The total number of minibatch steps.
        freq: The number of steps between measurements of losses.
        freq_i: The number of steps between measurements of lines and distances; 0 for the end only.
        freq_h: The number of steps between measurements of spectra, sharpness and walks.
        lines: "spherical", "linear", "both", or "none".
        resolution: Points of a line per unit of its coefficient.
        c1: The coefficient at which lines begin; 0 and 1 are the two workers.
        c2: The coefficient at which lines end.
        hessian: Whether to take spectra.
        n_eigenvalues: The number of eigenvalues at each end of the spectrum.
        density_probes: Random vectors for the density; 0 for none.
        density_steps: Lanczos steps for each random vector.
        full_spectrum: With `hessian`, whether to take all eigenvalues at the end, if the matrix
            fits in memory.
        sharpness: Whether to take the sharpness by ascent.
        epsilon: The radius of the ascent, as in `esgd_tf.landscape.sharpness`.
        ascent_lr: Step size of the ascent.
        explore: Whether to take random walks from the workers `explore_from`.
        explore_from: Numbers of workers; empty for all.
        explore_moves: Whether a worker goes on from the end of its walk, as in the original, and
            not from its start. A center that is the mean of its workers does not move.
        threshold: The rise of the loss (nats) that ends a walk.
        rw_step_size: Standard deviation of a step, for each weight.
        rw_steps: Steps after which a walk ends in any case.
        stop_grad: The run stops when the norm of the training loss's gradient, averaged over the
            workers, is below this; 0 for never.
        stop_cost: The run stops when the workers' mean training loss is below this; 0 for never.
        schedule: Changes during the run, as (step, name, value).
        seed: The seed of everything that is random.

    Raises:
        SettingsError: A value is out of range.
    """

    dataset: str = "mnist"
    n_samples_train: int = 1000
    n_samples_test: int = 0
    preprocessing: str = "meanstd"
    corrupt: str = "none"
    soft_labels: bool = False
    p: float = 0.91
    q: float = 0.01
    teacher: str = ""
    model: str = "nn"
    n_hidden: int = 100
    n_layers: int = 2
    weight_init_std: float = 0.0
    n_workers: int = 1
    alpha: float = 0.0
    coupling: str = "elastic"
    optimizer: str = "sgd"
    optimization: str = "auto"
    langevin_steps: int = 20
    langevin_lr: float = 0.1
    lr: float = 0.1
    momentum: float = 0.5
    batch_size: int = 100
    n_steps: int = 100
    freq: int = 10
    freq_i: int = 50
    freq_h: int = 50
    lines: str = "spherical"
    resolution: int = 10
    c1: float = -1.0
    c2: float = 2.0
    hessian: bool = False
    n_eigenvalues: int = 10
    density_probes: int = 3
    density_steps: int = 60
    full_spectrum: bool = False
    sharpness: bool = False
    epsilon: float = 0.01
    ascent_lr: float = 1e-4
    explore: bool = False
    explore_from: tuple[int, ...] = ()
    explore_moves: bool = False
    threshold: float = 0.05
    rw_step_size: float = 0.005
    rw_steps: int = 1000
    stop_grad: float = 0.0
    stop_cost: float = 0.0
    schedule: tuple[tuple[int, str, Any], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        for name, choices in _CHOICES.items():
            self._refuse_unless(getattr(self, name) in choices, name, f"one of {_listed(choices)}")
        for names, low in _AT_LEAST:
            for name in names:
                self._refuse_unless(getattr(self, name) >= low, name, f"at least {low}")
        for name in _ABOVE_ZERO:
            self._refuse_unless(getattr(self, name) > 0, name, "above 0")
        self._check_ranges()
        self._check_names()

    def _refuse_unless(self, good: bool, name: str, must_be: str) -> None:
        if not good:
            raise SettingsError(name, getattr(self, name), f"must be {must_be}")

    def _check_ranges(self) -> None:
        most = highest_alpha(self.coupling, self.n_workers)
        wanted = f"at most {most:g}: beyond, {self.coupling} overshoots"
        self._refuse_unless(self.alpha <= most, "alpha", wanted)
        alone = self.optimization == "auto" or self.coupling == "elastic"
        wanted = f"auto: with {self.coupling} worker 0 is the center at any alpha"
        self._refuse_unless(alone, "optimization", wanted)
        self._refuse_unless(self.momentum < 1, "momentum", "below 1")
        self._refuse_unless(self.c1 < self.c2, "c2", f"above c1, which is {self.c1:g}")
        for name in ("c1", "c2"):
            at = getattr(self, name) * self.resolution
            whole = abs(at - round(at)) <= 1e-9
            wanted = f"a multiple of 1 / resolution, 1 / {self.resolution}"
            self._refuse_unless(whole, name, wanted)
        unknown = [k for k in self.explore_from if not 0 <= k <= self.n_workers]
        if unknown:
            wanted = f"must name workers, 0 ... {self.n_workers}"
            raise SettingsError("explore_from", unknown[0], wanted)
        if self.full_spectrum and not self.hessian:
            raise SettingsError("full_spectrum", True, "has no effect without hessian")
        if self.teacher and self.soft_labels:
            raise SettingsError("teacher", self.teacher, "excludes soft_labels")
        twice = self.coupling == "parle" and self.optimizer.startswith("entropy")
        wanted = "sgd or adam: parle makes the inner loop itself"
        self._refuse_unless(not twice, "optimizer", wanted)

    def _check_names(self) -> None:
        try:
            check_name(self.network)
        except ValueError as error:
            raise SettingsError("model", self.model, _without_stop(error)) from None
        try:
            parse_corruptions(self.corrupt)
        except DataError as error:
            raise SettingsError("corrupt", self.corrupt, _without_stop(error)) from None

    @property
    def network(self) -> str:
        """The name of the network in `esgd_tf.models`."""
        if self.model == "nn":
            return f"nn-{self.n_hidden}-{self.n_layers}"
        return _LENET if self.model == "lenet" else self.model

    @property
    def method(self) -> str:
        """The method that trains worker 0 while alpha is 0."""
        if self.optimization != "auto":
            return self.optimization
        return "GD" if self.n_workers else "SGD"

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Settings:
        """Make settings from the result of `to_dict`, also after a round trip through JSON.

        Raises:
            SettingsError: The settings come from another version.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise SettingsError(name, settings[name], "is no setting of this version")
        values = dict(settings)
        if "schedule" in values:
            values["schedule"] = tuple(tuple(change) for change in values["schedule"])
        if "explore_from" in values:
            values["explore_from"] = tuple(values["explore_from"])
        return cls(**values)


def highest_alpha(coupling: str, n_workers: int) -> float:
    """Return the largest alpha; for "easgd" it is 1/n, since its center moves by n alpha."""
    if coupling == "easgd":
        return 1.0 / max(n_workers, 1)
    return 1.0 if coupling == "elastic" else math.inf


_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": DATASETS,
    "preprocessing": PREPROCESSINGS,
    "coupling": COUPLINGS,
    "optimizer": OPTIMIZERS,
    "optimization": OPTIMIZATIONS,
    "lines": (*LINES, "none"),
}
_AT_LEAST: tuple[tuple[tuple[str, ...], int], ...] = (
    (("n_samples_train", "n_samples_test", "n_workers", "freq_i", "freq_h", "density_probes",
      "seed", "alpha", "momentum", "weight_init_std", "stop_grad", "stop_cost", "p", "q"), 0),
    (("n_hidden", "n_layers", "batch_size", "n_steps", "freq", "resolution", "n_eigenvalues",
      "langevin_steps", "rw_steps"), 1),
    (("density_steps",), 2),
)  # fmt: skip
_ABOVE_ZERO = ("lr", "langevin_lr", "epsilon", "ascent_lr", "threshold", "rw_step_size")


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the default's, and numbers that are not finite."""
    if isinstance(default, bool | str | tuple):
        good = isinstance(value, type(default))
        what = {bool: "true or false", str: "text", tuple: "a tuple"}[type(default)]
    elif isinstance(default, int):
        good = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST
        what = f"a whole number, at most {MOST}"
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good, what = good and math.isfinite(value), "a finite number"
    if not good:
        raise SettingsError(name, value, f"must be {what}")


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(choices)


def _without_stop(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[0].lower() + text[1:]
