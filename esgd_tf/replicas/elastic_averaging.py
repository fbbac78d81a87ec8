"""Elastic averaging: a pull of the weights themselves to a center that follows.

Sources: Zhang, Choromanska and LeCun, "Deep learning with elastic averaging SGD", NeurIPS 2015,
arXiv 1412.6651; L. Sagun's elementary-walkers.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = ["ElasticAveraging"]


@keras.saving.register_keras_serializable(package="esgd_tf")
class ElasticAveraging(Coupling):
    """Elastic averaging (EASGD; EAMSGD with a momentum optimizer inside).

    At every tau-th update, with all differences computed before anything moves,

        w^a = w^a - alpha (w^a - c)
        c   = c + beta (mean_a w^a - c)

    and the inner optimizer takes its step, with the gradient at the old w^a. The pull stays out of
    its momentum. c starts as the mean of the replicas.

    `center="norm_mean"` is the variant of the elementary-walkers code: c is the mean of the
    replicas, rescaled so that |c| = (1/y) Σ_a |w^a|, and the pull comes after the step.

    Sources: Zhang, Choromanska and LeCun, NeurIPS 2015, arXiv 1412.6651; elementary-walkers,
    util-train.lua.

    Args:
        alpha: float in [0, 1]. The fraction of the way to the center; eta rho in the paper.
            Defaults to 0.3.
        every: int >= 1. tau, the number of updates between couplings. Defaults to 1.
        center_rate: float in (0, 1]. beta, the fraction of the center's way to the mean. Defaults
            to None, which is y alpha, the paper's symmetric choice (at most 1).
        center: "moving" or "norm_mean". The kind of center; "norm_mean" has no `center_rate`.
            Defaults to 'moving'.

    Raises:
        ValueError: An argument is out of range.
    """

    enters_gradient = False

    def __init__(
        self,
        alpha: float = 0.3,
        every: int = 1,
        center_rate: float | None = None,
        center: str = "moving",
    ) -> None:
        self.alpha = _checks.real("alpha", alpha, at_least=0)
        if self.alpha > 1:
            raise ValueError(
                f"`alpha` must be at most 1: beyond, the pull overshoots; got {alpha}."
            )
        self.every = _checks.integer("every", every, at_least=1)
        _checks.choice("center", center, ("moving", "norm_mean"))
        if center == "norm_mean" and center_rate is not None:
            raise ValueError("`center_rate` has no meaning for center='norm_mean': leave it out.")
        if center_rate is not None:
            center_rate = _checks.real("center_rate", center_rate, above=0)
            if center_rate > 1:
                raise ValueError(f"`center_rate` must be at most 1; got {center_rate}.")
        self.center_rate, self.center = center_rate, center

    @property
    def keeps_center(self) -> bool:  # type: ignore[override]
        """Return whether c is a state of its own."""
        return self.center == "moving"

    @property
    def pulls_after(self) -> bool:  # type: ignore[override]
        """Return whether the pull comes after the step."""
        return self.center == "norm_mean"

    @property
    def rescales_center(self) -> bool:  # type: ignore[override]
        """Return whether c is the rescaled mean."""
        return self.center == "norm_mean"

    @property
    def center_step(self) -> tf.Tensor:
        """Return beta, which is 0 while it still depends on y, or if alpha is 0."""
        return tf.constant(self.center_rate or 0.0, tf.float64)

    @property
    def strength(self) -> float | CouplingSchedule:
        """alpha, as given to the constructor."""
        return self.alpha

    def for_replicas(self, replicas: int) -> Coupling:
        """Return this coupling with the defaults that depend on y filled in."""
        if not self.keeps_center or self.center_rate is not None:
            return self
        rate = replicas * self.alpha
        if rate > 1:
            raise ValueError(
                f"{replicas} replicas with alpha = {self.alpha:g} would move the center by "
                f"beta = y alpha = {rate:g} of the way to their mean, beyond it: take an alpha of "
                f"at most {1 / replicas:.3g}, or give `center_rate`."
            )
        # alpha = 0 leaves the center where it is.
        return ElasticAveraging(self.alpha, self.every, rate) if rate > 0 else self

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "alpha": self.alpha,
            "every": self.every,
            "center_rate": self.center_rate,
            "center": self.center,
        }
