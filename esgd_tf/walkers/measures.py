"""The measurements of walkers: calls of `esgd_tf.landscape`, converted to rows of the table.

The loss is the mean over all examples of a split, with dropout off and the moving statistics of
BatchNormalization. (In the original it was the mean of the means of batches, in training mode.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from esgd_tf import landscape
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._surface import Surface
from esgd_tf.landscape.interpolation import along
from esgd_tf.walkers.problem import Problem, cross_entropy, error
from esgd_tf.walkers.settings import Settings

__all__ = ["Measures", "NotFiniteLossError", "means"]

Weights = list[Any]
Row = dict[str, Any]
_BATCH = 1000
# Eigenvalues at the edge of a dense bulk converge slowly, so their number of products is bounded.
_MAX_PRODUCTS = 300


class NotFiniteLossError(Exception):
    """A worker's loss has become NaN or infinite; the message is one sentence."""


class Measures:
    """Measures networks of one architecture on one problem.

    Args:
        network: keras.Model. A network of the workers' architecture, which is written to.
        problem: Problem. The data, by split.
        settings: Settings. The settings of the measurements.
        loss: callable. A function of (y, outputs) that gives each example's loss. Defaults to
            cross_entropy.
        metric: callable. A function of (y, outputs) that gives 1 for each example that is wrong.
            Defaults to error.
    """

    def __init__(
        self,
        network: keras.Model,
        problem: Problem,
        settings: Settings,
        loss: Callable[[Any, Any], Any] = cross_entropy,
        metric: Callable[[Any, Any], Any] = error,
    ) -> None:
        self._network, self._settings = network, settings
        self._loss, self._metric = loss, metric
        self._data = {"train": problem.train, "test": problem.test}
        self._counts = {split: len(y) for split, (_, y) in self._data.items()}
        # Each objective is traced once, for all workers and steps.
        self._objectives = {
            split: Objective(network, loss, data, batch_size=_BATCH, metrics={"error": metric})
            for split, data in self._data.items()
        }
        self._surface: Surface | None = None
        self._operator: landscape.HessianOperator | None = None

    def require_finite(self, weights: Weights) -> None:
        """Raise NotFiniteLossError if the training loss is not finite.

        Args:
            weights: sequence of arrays. All weights of a network.
        """
        self._network.set_weights(weights)
        loss = self._objectives["train"].reread().evaluate()["loss"]
        if not np.isfinite(loss):
            raise NotFiniteLossError(f"its training loss is {loss}")

    def stats(self, weights: Weights) -> Row:
        """Return loss, gradient norm and number of correct examples for both splits, and ‖w‖.

        Args:
            weights: sequence of arrays. All weights of a network.

        """
        self._network.set_weights(weights)
        row: Row = {}
        for split, objective in self._objectives.items():
            here = objective.reread()
            found = here.evaluate()
            _, gradient = here.value_and_gradient()
            row[split] = {
                "loss": found["loss"],
                "gradient_norm": float(np.linalg.norm(gradient)),
                "correct": self._correct(split, found["error"]),
            }
            row["norm"] = float(np.linalg.norm(here.flatten(here.start)))
        return row

    def distances(self, workers: Sequence[Weights]) -> list[list[float]]:
        """Return the Euclidean distances between the trainable weights of all workers."""
        flat = [self._flat(weights) for weights in workers]
        return [[float(np.linalg.norm(a - b)) for b in flat] for a in flat]

    def line(self, start: Weights, end: Weights, kind: Literal["linear", "spherical"]) -> Row:
        """Return losses and errors on the line from one worker to another, and its barriers.

        Args:
            start: sequence of arrays. The weights at coefficient 0.
            end: sequence of arrays. The weights at coefficient 1.
            kind: "spherical" or "linear". The line that joins the two.
        """
        s = self._settings
        numbers = np.arange(round(s.resolution * s.c1), round(s.resolution * s.c2) + 1)
        if self._surface is None:
            metric = ["loss", self._metric]
            self._surface = Surface(
                self._network,
                self._loss,
                self._data,
                metric,
                _BATCH,
                reestimate=None,
                gradient=True,
            )
        found = along(self._surface, start, end, numbers / s.resolution, kind, progress=False)
        row: Row = {
            "line": kind,
            "coefficients": found.coefficients.tolist(),
            "norm": found.norm.tolist(),
            "distance": found.distance,
        }
        ends = {0.0, 1.0} <= set(np.round(found.coefficients, 9).tolist())
        for split, values in found.values.items():
            by_name = next(name for name in values if name != "loss")
            row[split] = {
                "loss": values["loss"].tolist(),
                "gradient_norm": found.gradient_norm[split].tolist(),
                "correct": [self._correct(split, e) for e in values[by_name]],
            }
            row[split]["barrier"] = found.barrier(split, "loss") if ends else None
        return row

    def spectrum(self, weights: Weights) -> Row:
        """Return the ends of the spectrum of the Hessian of the training loss, and its density.

        Args:
            weights: sequence of arrays. All weights of a network.
        """
        s = self._settings
        operator = self._hessian(weights)
        k = min(s.n_eigenvalues, operator.shape[0])
        row: Row = {}
        ends: tuple[tuple[str, Literal["LA", "SA"]], ...] = (("right", "LA"), ("left", "SA"))
        for name, which in ends:
            found = landscape.eigenpairs(
                operator, k, which, tol=1e-3, max_matvecs=_MAX_PRODUCTS, seed=s.seed, progress=False
            )
            order = np.arange(k) if which == "LA" else np.arange(k)[::-1]
            # Eigenvalues that did not converge within this number of products are left out.
            order = order[np.isfinite(found.eigenvalues[order])]
            row[name] = found.eigenvalues[order].tolist()
            row[f"{name}_residuals"] = found.residuals[order].tolist()
            row[f"{name}_converged"] = found.converged[order].tolist()
        if s.density_probes:
            density = landscape.spectral_density(
                operator, s.density_probes, min(s.density_steps, operator.shape[0]),
                seed=s.seed, progress=False,
            )  # fmt: skip
            row["density"] = density.to_dict()
        return row

    def full_spectrum(self, weights: Weights) -> list[float]:
        """Return all eigenvalues of the Hessian of the training loss, in ascending order.

        Args:
            weights: sequence of arrays. All weights of a network.

        Raises:
            MemoryError: The matrix does not fit.
        """
        found = landscape.full_spectrum(self._hessian(weights), progress=False)
        return found.eigenvalues.tolist()

    def sharpness(self, weights: Weights) -> Row:
        """Return the sharpness by ascent on the training loss, on both splits."""
        self._network.set_weights(weights)
        s = self._settings
        found = landscape.sharpness(
            self._network,
            self._loss,
            self._data["train"],
            kind="ascent",
            radius=s.epsilon,
            step_size=s.ascent_lr,
            evaluate_on={"test": self._data["test"]},
            batch_size=_BATCH,
            progress=False,
        )
        return {
            "train": found.value,
            "test": found.elsewhere["test"],
            "distance": found.distance,
            "steps": found.steps,
            "stopped_by": found.stopped_by,
        }

    def walk(self, weights: Weights, seed: int) -> tuple[Row, Weights]:
        """Return a free random walk that ends when the training loss has risen by the threshold.

        The weights at its end are returned with it.

        Args:
            weights: sequence of arrays. The start of the walk; they are not changed.
            seed: int >= 0. The seed of the walk's steps.
        """
        self._network.set_weights(weights)
        s = self._settings
        begin = self.stats(weights)
        found = landscape.random_walk(
            self._network,
            self._loss,
            self._data["train"],
            threshold=begin["train"]["loss"] + s.threshold,
            step_size=s.rw_step_size,
            max_steps=s.rw_steps,
            batch_size=_BATCH,
            seed=seed,
            progress=False,
        )
        end = self._with_trainable(weights, found.end[0])
        steps = int(found.escape_steps[0])
        last = steps if steps > 0 else s.rw_steps
        row = {
            "threshold": found.threshold,
            "step_size": found.step_size,
            "escape_step": steps,
            "losses": found.losses[0][: last + 1].tolist(),
            "distances": found.distances[0][: last + 1].tolist(),
            "start": begin,
            "end": self.stats(end),
        }
        return row, end

    # ---- parts --------------------------------------------------------------------------------

    def _hessian(self, weights: Weights) -> landscape.HessianOperator:
        self._network.set_weights(weights)
        if self._operator is None:
            self._operator = landscape.HessianOperator(
                self._network, self._loss, self._data["train"], batch_size=_BATCH
            )
        return self._operator.at()

    def _flat(self, weights: Weights) -> Any:
        self._network.set_weights(weights)
        objective = self._objectives["train"]
        return objective.flatten(self._network.trainable_variables)

    def _with_trainable(self, weights: Weights, flat: Any) -> Weights:
        self._network.set_weights(weights)
        parts = self._objectives["train"].unflatten(flat)
        for variable, part in zip(self._network.trainable_variables, parts, strict=True):
            variable.assign(part)
        return self._network.get_weights()

    def _correct(self, split: str, share_wrong: float) -> int:
        return round((1.0 - share_wrong) * self._counts[split])


def means(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the means over workers of the norm of the gradient and of the training loss."""
    trained = [row["train"] for row in rows]
    return (
        float(np.mean([t["gradient_norm"] for t in trained])),
        float(np.mean([t["loss"] for t in trained])),
    )
