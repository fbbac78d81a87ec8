"""The measures of `landscape`, in the order of the report."""

from __future__ import annotations

from esgd_tf.cli.measures.corruption import Corruption
from esgd_tf.cli.measures.density import Density
from esgd_tf.cli.measures.interpolate import Interpolate
from esgd_tf.cli.measures.local_energy import LocalEnergy
from esgd_tf.cli.measures.local_entropy import LocalEntropy
from esgd_tf.cli.measures.m_sharpness import MSharpness
from esgd_tf.cli.measures.measure import Measure
from esgd_tf.cli.measures.norms import Norms
from esgd_tf.cli.measures.pac_bayes import PacBayes
from esgd_tf.cli.measures.plane import Plane
from esgd_tf.cli.measures.pruning import Pruning
from esgd_tf.cli.measures.quantization import Quantization
from esgd_tf.cli.measures.random_walk import RandomWalk
from esgd_tf.cli.measures.relative_flatness import RelativeFlatness
from esgd_tf.cli.measures.sharpness import Sharpness
from esgd_tf.cli.measures.spectrum import Spectrum
from esgd_tf.cli.measures.tolerance import Tolerance

__all__ = ["MEASURES"]

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Spectrum(),
        Density(),
        Norms(),
        RelativeFlatness(),
        LocalEnergy(),
        Tolerance(),
        Sharpness(),
        MSharpness(),
        LocalEntropy(),
        PacBayes(),
        Quantization(),
        Pruning(),
        Corruption(),
        Interpolate(),
        Plane(),
        RandomWalk(),
    )
}
