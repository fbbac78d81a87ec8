"""How wide is the valley? Measurements of the loss around the weights of any Keras model.

Every function takes a built Keras model (or a list of weights with a function of them), a loss and
data; leaves the model as it found it, bit for bit; is deterministic under its seed; and returns a
frozen result with `.to_dict()` and `.plot()`, and with its uncertainty where it is an estimate.
"""

from esgd_tf._extras import require

require("esgd_tf.landscape", "tensorflow", "tensorflow", "keras")
require("esgd_tf.landscape", "landscape", "scipy", "tqdm")

from esgd_tf.landscape._diagonal import DiagonalEstimate
from esgd_tf.landscape._result import Result, Row
from esgd_tf.landscape.batch_norm_folding import fold_batch_norm
from esgd_tf.landscape.bounded_cross_entropy import BoundedCrossEntropy
from esgd_tf.landscape.corruption_error import CorruptionError, corruption_error
from esgd_tf.landscape.curvature_norms import CurvatureNorm, fisher_rao_norm, frobenius_norm
from esgd_tf.landscape.effective_dimension import EffectiveDimension, effective_dimension
from esgd_tf.landscape.eigenpairs import Eigenpairs, eigenpairs
from esgd_tf.landscape.fisher import FisherOperator
from esgd_tf.landscape.full_spectrum import FullSpectrum, full_spectrum
from esgd_tf.landscape.gauss_newton import GaussNewtonOperator
from esgd_tf.landscape.hessian import HessianOperator
from esgd_tf.landscape.interpolation import Interpolation, interpolate
from esgd_tf.landscape.kl import kl_bernoulli, kl_inverse
from esgd_tf.landscape.laplace import laplace_local_entropy
from esgd_tf.landscape.local_energy import (
    LocalEnergy,
    PacBayesSigma,
    local_energy,
    pac_bayes_sigma,
)
from esgd_tf.landscape.local_entropy import (
    LocalEntropyEstimate,
    NotConvergedWarning,
    local_entropy,
)
from esgd_tf.landscape.m_sharpness import MSharpness, m_sharpness
from esgd_tf.landscape.operator import CurvatureOperator
from esgd_tf.landscape.pac_bayes import PacBayesBound, pac_bayes_bound
from esgd_tf.landscape.plane import Plane, plane
from esgd_tf.landscape.private_prior import PrivatePriorBound, private_prior_bound
from esgd_tf.landscape.pruning import Pruning, pruning
from esgd_tf.landscape.quantization import Quantization, quantization
from esgd_tf.landscape.random_walk import RandomWalk, random_walk
from esgd_tf.landscape.relative_flatness import RelativeFlatness, relative_flatness
from esgd_tf.landscape.relative_operator import RelativeOperator
from esgd_tf.landscape.rescaling import rescaled
from esgd_tf.landscape.sharpness import Sharpness, sharpness
from esgd_tf.landscape.spectral_density import SpectralDensity, spectral_density
from esgd_tf.landscape.trace import Trace, trace
from esgd_tf.landscape.worst_case_radius import WorstCaseRadius, worst_case_radius

__all__ = [
    "BoundedCrossEntropy",
    "CorruptionError",
    "CurvatureNorm",
    "CurvatureOperator",
    "DiagonalEstimate",
    "EffectiveDimension",
    "Eigenpairs",
    "FisherOperator",
    "FullSpectrum",
    "GaussNewtonOperator",
    "HessianOperator",
    "Interpolation",
    "LocalEnergy",
    "LocalEntropyEstimate",
    "MSharpness",
    "NotConvergedWarning",
    "PacBayesBound",
    "PacBayesSigma",
    "Plane",
    "PrivatePriorBound",
    "Pruning",
    "Quantization",
    "RandomWalk",
    "RelativeFlatness",
    "RelativeOperator",
    "Result",
    "Row",
    "Sharpness",
    "SpectralDensity",
    "Trace",
    "WorstCaseRadius",
    "corruption_error",
    "effective_dimension",
    "eigenpairs",
    "fisher_rao_norm",
    "fold_batch_norm",
    "frobenius_norm",
    "full_spectrum",
    "interpolate",
    "kl_bernoulli",
    "kl_inverse",
    "laplace_local_entropy",
    "local_energy",
    "local_entropy",
    "m_sharpness",
    "pac_bayes_bound",
    "pac_bayes_sigma",
    "plane",
    "private_prior_bound",
    "pruning",
    "quantization",
    "random_walk",
    "relative_flatness",
    "rescaled",
    "sharpness",
    "spectral_density",
    "trace",
    "worst_case_radius",
]
