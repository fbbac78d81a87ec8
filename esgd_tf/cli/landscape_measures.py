"""What `landscape` measures of a run's network: each a call into `esgd_tf.landscape`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import _keras, landscape
from esgd_tf.data.pipeline import evaluation_batches
from esgd_tf.landscape import Result
from esgd_tf.runs.checkpoints import load_network
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.stored_network import (
    StoredNetwork,
    load_stored_network,
    reestimation_batches,
    stored_input_corruption,
)
from esgd_tf.runs.stored_run import StoredRun
from esgd_tf.training.batch_norm import BatchNormReestimation

__all__ = ["Measured", "Measures"]

Arrays = tuple[NDArray[Any], NDArray[Any]]

# Batches for the BatchNormalization statistics of each point of a line or plane.
_SETTLE_BATCHES = 10
# The ends of a bulk of eigenvalues never converge: enough is enough.
_MAX_PRODUCTS = 400


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run's network with the images that it is measured on.

    Attributes:
        run: The run.
        network: Its network.
        data: (images, labels) by split, preprocessed as in training.
    """

    run: StoredRun
    network: StoredNetwork
    data: dict[str, Arrays]

    @property
    def model(self) -> keras.Model:
        """The network, which ends in logits."""
        return self.network.model


class Measures:
    """The measures, with the settings of the command line."""

    def __init__(
        self,
        fv: Any,
        sigmas: Sequence[float],
        gammas: Sequence[float],
        threshold: float,
        step_size: float,
    ) -> None:
        self._fv, self._sigmas, self._gammas = fv, sigmas, gammas
        self._threshold, self._step_size = threshold, step_size
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # By run: several measures need them, and an operator is long in tracing.
        self._density: dict[Path, landscape.SpectralDensity] = {}
        self._operators: dict[Path, landscape.HessianOperator] = {}

    def load(self, run: StoredRun, checkpoint: Path) -> Measured:
        """Load a run's network, and choose the images: for each run of a data set the same."""
        network = load_stored_network(run, checkpoint, self._fv)
        source = network.images
        return Measured(
            run,
            network,
            {
                "train": self._chosen(
                    network,
                    source.train_images,
                    source.train_labels,
                    stored_input_corruption(run.experiment),
                ),
                "test": self._chosen(network, source.test_images, source.test_labels),
            },
        )

    def check_fits(self, first: Measured, other: Measured) -> None:
        """Refuse a line between networks of other shapes, before hours of measuring.

        Raises:
            RunFolderError: They have other weights.
        """
        shapes = [[tuple(w.shape) for w in m.model.weights] for m in (first, other)]
        if self._fv.interpolate and shapes[0] != shapes[1]:
            raise RunFolderError(
                f"{other.run.name} is a {other.run.experiment['model']} and {first.run.name} a "
                f"{first.run.experiment['model']}: there is no line between them."
            )

    def spectrum(self, measured: Measured) -> dict[str, Result]:
        """Eigenvalues at both ends."""
        hessian = self._hessian(measured)
        k = min(self._fv.eigenvalues, hessian.shape[0])
        settings = {"tol": 1e-3, "max_matvecs": _MAX_PRODUCTS, "seed": self._fv.seed}
        return {
            "largest": landscape.eigenpairs(hessian, k, "LA", **settings),
            "smallest": landscape.eigenpairs(hessian, k, "SA", **settings),
        }

    def density(self, measured: Measured) -> landscape.SpectralDensity:
        """The density of eigenvalues."""
        key = measured.run.folder.path
        if key not in self._density:
            self._density[key] = landscape.spectral_density(
                self._hessian(measured), self._fv.probes, self._fv.steps, seed=self._fv.seed
            )
        return self._density[key]

    def local_energy(self, measured: Measured) -> Result:
        """Local energy of both splits, error and loss."""
        return landscape.local_energy(
            measured.model,
            measured.data,
            ["error", "loss"],
            sigmas=self._sigmas,
            samples=self._fv.perturbations,
            loss=self._loss,
            batch_size=self._fv.batch_size,
            seed=self._fv.seed,
        )

    def sharpness(self, measured: Measured) -> dict[str, Result]:
        """All kinds of sharpness."""
        return {
            kind: landscape.sharpness(
                measured.model,
                self._loss,
                self._data(measured),
                kind=kind,
                # Fast enough that a valley is left by distance, not by the number of steps.
                step_size=0.01,
                max_steps=200 if kind == "ascent" else None,
                batch_size=self._fv.batch_size,
            )
            for kind in ("ascent", "epsilon", "sam", "asam")
        }

    def local_entropy(self, measured: Measured) -> dict[str, Result]:
        """Local entropy, both ways."""
        langevin = landscape.local_entropy(
            measured.model,
            self._loss,
            self._data(measured),
            self._gammas,
            burn_in=max(self._fv.chain_steps // 4, 8),
            samples=self._fv.chain_steps,
            batch_size=self._fv.batch_size,
            seed=self._fv.seed,
        )
        laplace = landscape.laplace_local_entropy(
            self._hessian(measured), self._gammas, spectrum=self.density(measured)
        )
        return {"langevin": langevin, "laplace": laplace}

    def plane(self, measured: Measured) -> Result:
        """The loss on a plane: of the kept checkpoints, or of two random directions."""
        kept = sorted(measured.run.folder.kept.glob("*.keras"))
        pca = len(kept) > 1
        trajectory = [load_network(path)[0] for path in kept] if pca else None
        return landscape.plane(
            measured.model,
            loss=self._loss,
            data={self._fv.split: self._data(measured)},
            directions="pca" if pca else "random",
            trajectory=trajectory,
            extent=1e-3 if pca else 1.0,
            points=self._fv.points,
            reestimate=self._reestimate(measured) if pca else None,
            batch_size=self._fv.batch_size,
            seed=self._fv.seed,
        )

    def interpolate(self, first: Measured, other: Measured) -> Result:
        """The line between two runs' networks."""
        return landscape.interpolate(
            first.model,
            first.model,
            other.model,
            np.unique(np.r_[np.linspace(-0.5, 1.5, 2 * self._fv.points + 1), 0.0, 1.0]),
            loss=self._loss,
            data=first.data,
            kind=self._fv.path,
            gradient_norm=False,
            reestimate=self._reestimate(first),
            batch_size=self._fv.batch_size,
        )

    def random_walk(self, measured: Measured) -> Result:
        """Free walks."""
        hessian = self._hessian(measured)
        return landscape.random_walk(
            measured.model,
            self._loss,
            self._data(measured),
            threshold=hessian.loss() + self._threshold,
            step_size=self._step_size,
            walks=5,
            batch_size=self._fv.batch_size,
            seed=self._fv.seed,
        )

    # ---- below: our own -----------------------------------------------------------------------

    def _data(self, measured: Measured) -> Arrays:
        return measured.data[self._fv.split]

    def _hessian(self, measured: Measured) -> landscape.HessianOperator:
        key = measured.run.folder.path
        if key not in self._operators:
            self._operators[key] = landscape.HessianOperator(
                measured.model, self._loss, self._data(measured), batch_size=self._fv.batch_size
            )
        return self._operators[key]

    def _chosen(
        self,
        network: StoredNetwork,
        images: NDArray[Any],
        labels: NDArray[Any],
        corrupt: Callable[..., Any] | None = None,
    ) -> Arrays:
        count = min(self._fv.samples, len(labels))
        chosen = np.random.default_rng(self._fv.seed).choice(len(labels), count, replace=False)
        chosen.sort()
        batches = evaluation_batches(
            images[chosen], labels[chosen], batch_size=count, preprocess=network.preprocess
        )
        ((x, y),) = batches.as_numpy_iterator()
        if corrupt is not None:
            with tf.device("/CPU:0"):
                x = corrupt(x, chosen).numpy()
        return x, y

    def _reestimate(self, measured: Measured) -> Any:
        """Return what re-estimates BatchNormalization at a point; None without such layers."""
        layers = _keras.layers_in(measured.model)
        if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
            return None
        network = measured.network
        batches = reestimation_batches(
            measured.run, network.images, network.preprocess, _SETTLE_BATCHES
        ).cache()
        estimators: dict[int, BatchNormReestimation] = {}

        def reestimate(model: keras.Model) -> None:
            # One for the copy that `landscape` uses: it keeps its traced graph.
            estimators.setdefault(id(model), BatchNormReestimation(model))(batches)

        return reestimate
