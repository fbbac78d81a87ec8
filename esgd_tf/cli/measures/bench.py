"""Everything that several measures need to measure the networks of runs, such as images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from numpy.typing import NDArray

from esgd_tf import _keras, landscape
from esgd_tf.data.pipeline import evaluation_batches
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.stored_network import (
    StoredNetwork,
    load_stored_network,
    reestimation_batches,
    stored_input_corruption,
)
from esgd_tf.runs.stored_run import StoredRun
from esgd_tf.training.batch_norm import BatchNormReestimation

__all__ = ["Bench", "Measured"]

Arrays = tuple[NDArray[Any], NDArray[Any]]

# The number of batches for the BatchNormalization statistics of each point of a line or plane.
_REESTIMATION_BATCHES = 10


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


class Bench:
    """The networks' images and loss, with the flags of the command.

    Args:
        fv: flags.FlagValues. The flags.

    Attributes:
        fv: The flags.
        loss: The loss that is measured.
    """

    def __init__(self, fv: flags.FlagValues) -> None:
        self.fv = fv
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # By run: several measures need them, and an operator is long in tracing.
        self._density: dict[tuple[Path, str], landscape.SpectralDensity] = {}
        self._operators: dict[Path, landscape.HessianOperator] = {}

    def load(self, run: StoredRun, checkpoint: Path) -> Measured:
        """Load a run's network, and choose images, the same for all runs of a data set."""
        network = load_stored_network(run, checkpoint, self.fv)
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
        """Refuse a line between networks of different shapes, before hours of measuring.

        Raises:
            RunFolderError: Their weights differ in number or shape.
        """
        shapes = [[tuple(w.shape) for w in m.model.weights] for m in (first, other)]
        if self.fv.interpolate and shapes[0] != shapes[1]:
            raise RunFolderError(
                f"{other.run.name} is a {other.run.experiment['model']} and {first.run.name} a "
                f"{first.run.experiment['model']}: there is no line between them."
            )

    def density(self, measured: Measured, units: str = "absolute") -> landscape.SpectralDensity:
        """Return the density of eigenvalues, which is estimated once for each of --units."""
        key = (measured.run.folder.path, units)
        if key not in self._density:
            self._density[key] = landscape.spectral_density(
                self.curvature(measured, units), self.fv.probes, self.fv.steps, seed=self.fv.seed
            )
        return self._density[key]

    def curvature(self, measured: Measured, units: str) -> landscape.CurvatureOperator:
        """Return the Hessian, or what it is in the units of --units."""
        hessian = self.hessian(measured)
        if units == "absolute":
            return hessian
        return landscape.RelativeOperator(hessian, "filter" if units == "filter" else "weight")

    def data(self, measured: Measured) -> Arrays:
        """Return the images of --split, with their labels."""
        return measured.data[self.fv.split]

    def hessian(self, measured: Measured) -> landscape.HessianOperator:
        """Return the Hessian of the loss on the images of --split, which is traced once."""
        key = measured.run.folder.path
        if key not in self._operators:
            self._operators[key] = landscape.HessianOperator(
                measured.model, self.loss, self.data(measured), batch_size=self.fv.batch_size
            )
        return self._operators[key]

    def _chosen(
        self,
        network: StoredNetwork,
        images: NDArray[Any],
        labels: NDArray[Any],
        corrupt: Callable[..., Any] | None = None,
    ) -> Arrays:
        count = min(self.fv.samples, len(labels))
        chosen = np.random.default_rng(self.fv.seed).choice(len(labels), count, replace=False)
        chosen.sort()
        batches = evaluation_batches(
            images[chosen], labels[chosen], batch_size=count, preprocess=network.preprocess
        )
        ((x, y),) = batches.as_numpy_iterator()
        if corrupt is not None:
            with tf.device("/CPU:0"):
                x = corrupt(x, chosen).numpy()
        return x, y

    def reestimate(self, measured: Measured) -> Any:
        """Return a function that re-estimates BatchNormalization; None without such layers."""
        layers = _keras.layers_in(measured.model)
        if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
            return None
        network = measured.network
        batches = reestimation_batches(
            measured.run, network.images, network.preprocess, _REESTIMATION_BATCHES
        ).cache()
        estimators: dict[int, BatchNormReestimation] = {}

        def estimate(model: keras.Model) -> None:
            # The copy that `landscape` uses gets one estimator, which keeps its traced graph.
            estimators.setdefault(id(model), BatchNormReestimation(model))(batches)

        return estimate
