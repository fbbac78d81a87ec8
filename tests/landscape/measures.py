"""Every measure of the landscape, called one way: what one says of all, a test says once."""

import functools
import warnings

import numpy as np
import tensorflow as tf

from esgd_tf.landscape import (
    CurvatureOperator,
    HessianOperator,
    NotConvergedWarning,
    corruption_error,
    effective_dimension,
    eigenpairs,
    fisher_rao_norm,
    frobenius_norm,
    full_spectrum,
    interpolate,
    laplace_local_entropy,
    local_energy,
    local_entropy,
    m_sharpness,
    pac_bayes_bound,
    pac_bayes_sigma,
    plane,
    private_prior_bound,
    pruning,
    quantization,
    random_walk,
    relative_flatness,
    sharpness,
    spectral_density,
    trace,
    worst_case_radius,
)


def of_operator(function, **defaults):
    def measure(weights, loss=None, data=None, **options):
        if isinstance(weights, CurvatureOperator):
            return function(weights, **defaults | options)
        return function(HessianOperator(weights, loss, data), **defaults | options)

    return measure


def _diagonal(operator, **options):
    return operator.diagonal_estimate(**options)


def _interpolate(weights, loss, data=None, **options):
    ends = _weights(weights), [2 * w for w in _weights(weights)]
    given = {"weights_a": ends[0], "weights_b": ends[1], "coefficients": [0.0, 0.5, 1.0]}
    return interpolate(weights, loss=loss, data=data, **given | options)


def _plane(weights, loss, data=None, **options):
    return plane(weights, loss=loss, data=data, **{"points": 2, "normalization": None} | options)


def _local_energy(weights, loss, data=None, **options):
    given = {"data": data, "metric": "loss", "sigmas": [0.1, 0.3], "samples": 4}
    return local_energy(weights, loss=loss, **given | options)


def _pac_bayes_sigma(weights, loss, data=None, **options):
    return pac_bayes_sigma(
        weights, data, loss=loss, **{"bound": 0.5, "samples": 3, "rtol": 0.05} | options
    )


def _worst_case_radius(weights, loss, data=None, **options):
    given = {"metric": "loss", "bound": 0.5, "max_steps": 3, "rtol": 0.5}
    return worst_case_radius(weights, data, loss=loss, **given | options)


def _m_sharpness(weights, loss=None, data=None, **options):
    given = {"m": 10}
    if data is None:  # eight examples, of which each has the loss some times
        times = np.linspace(0.5, 1.5, 8)
        given = {"m": 2}
        return m_sharpness(weights, lambda w, x, y: loss(w) * x, times, **given | options)
    return m_sharpness(weights, loss, data, **given | options)


def _random_walk(weights, loss, data=None, **options):
    given = {"threshold": 50.0, "step_size": 0.1, "max_steps": 5, "walks": 2}
    return random_walk(weights, loss, data, **given | options)


def _local_entropy(weights, loss, data=None, **options):
    given = {"gammas": [10.0, 20.0], "burn_in": 5, "samples": 8, "chains": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return local_entropy(weights, loss, data, **given | options)


def _as_error(loss, data):
    """Return a loss of weights alone as an error from 0 to 1 over ten examples, if it is one."""
    if data is not None:
        return loss, data
    return lambda w, x, y: 1 - tf.exp(-loss(w) / 50), (np.zeros((10, 1)), np.zeros(10))


def _pac_bayes_bound(weights, loss, data=None, **options):
    loss, data = _as_error(loss, data)
    prior = [0.5 * np.asarray(w) for w in _weights(weights)]
    given = {"prior": prior, "sigmas": [0.1, 0.3], "samples": 4, "trials": 2}
    return pac_bayes_bound(weights, data, loss=loss, **given | options)


def _private_prior_bound(weights, loss, data=None, **options):
    loss, data = _as_error(loss, data)
    given = {"steps": 2, "burn_in": 5, "samples": 8, "chains": 2, "loss_range": 50.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return private_prior_bound(weights, loss, data, **given | options)


def _quantization(weights, loss, data=None, **options):
    return quantization(weights, loss=loss, **{"data": data, "bits": [4, 2]} | options)


def _pruning(weights, loss, data=None, **options):
    return pruning(weights, loss=loss, **{"data": data, "fractions": [0.3, 0.9]} | options)


def _corruption_error(weights, loss, data=None, **options):
    given = {"data": data, "corrupted": {"same": data, "again": data}}
    return corruption_error(weights, loss=loss, **given | options)


def _weights(model):
    return model.get_weights() if hasattr(model, "get_weights") else model


# Called as measure(model or weights, loss, data, **options), or with an operator alone.
MEASURES = {
    "trace": of_operator(trace, num_matvecs=12),
    "eigenpairs": of_operator(eigenpairs, k=2),
    "spectral_density": of_operator(spectral_density, num_probes=2, num_steps=5),
    "full_spectrum": of_operator(full_spectrum),
    "diagonal_estimate": of_operator(_diagonal, num_probes=4),
    "laplace": of_operator(laplace_local_entropy, num_probes=2, num_steps=5),
    "fisher_rao_norm": of_operator(fisher_rao_norm),
    "frobenius_norm": of_operator(frobenius_norm, num_probes=4),
    "effective_dimension": of_operator(effective_dimension, num_probes=2, num_steps=5),
    "relative_flatness": functools.partial(relative_flatness, num_matvecs=6),
    "worst_case_radius": _worst_case_radius,
    "m_sharpness": _m_sharpness,
    "sharpness": functools.partial(sharpness, kind="sam"),
    "interpolate": _interpolate,
    "plane": _plane,
    "local_energy": _local_energy,
    "pac_bayes_sigma": _pac_bayes_sigma,
    "random_walk": _random_walk,
    "rejecting_walk": functools.partial(_random_walk, kind="rejecting"),
    "local_entropy": _local_entropy,
    "pac_bayes_bound": _pac_bayes_bound,
    "private_prior_bound": _private_prior_bound,
    "quantization": _quantization,
    "pruning": _pruning,
    "corruption_error": _corruption_error,
}
OF_OPERATORS = {
    "trace", "eigenpairs", "spectral_density", "full_spectrum", "diagonal_estimate", "laplace",
    "fisher_rao_norm", "frobenius_norm", "effective_dimension",
}  # fmt: skip
# Nothing in these is random.
EXACT = {
    "full_spectrum", "fisher_rao_norm", "worst_case_radius", "sharpness", "interpolate",
    "quantization", "pruning", "corruption_error",
}  # fmt: skip
_ENTROPY = (
    "values standard_errors gammas loss size inverse_temperature method nodes quadrature_errors "
    "square_distance acceptance step_size ess r_hat converged chains samples burn_in"
)
# What `to_dict` writes, besides `measured_at`.
WRITTEN = {
    "trace": "estimate standard_error matvecs",
    "eigenpairs": "eigenvalues residuals converged scale which tol matvecs",
    "spectral_density": "nodes weights lower_residual upper_residual probes size matvecs",
    "full_spectrum": "eigenvalues asymmetry",
    "diagonal_estimate": "estimate standard_error num_probes",
    "laplace": _ENTROPY,
    "fisher_rao_norm": "kind estimate standard_error matvecs",
    "frobenius_norm": "kind estimate standard_error matvecs",
    "effective_dimension": "gammas values standard_errors size method",
    "relative_flatness": (
        "layers values standard_errors norm_times_trace norm_times_trace_errors matvecs"
    ),
    "worst_case_radius": (
        "radius beyond increase increase_beyond bound box epsilon gradient_evaluations bracketed"
    ),
    "m_sharpness": ("mean standard_error worst values losses kind m radius gradient_evaluations"),
    "sharpness": (
        "value kind loss perturbed_loss distance radius steps stopped_by gradient_evaluations "
        "elsewhere"
    ),
    "interpolate": "coefficients values gradient_norm norm distance kind",
    "plane": "grids values trajectory explained normalization",
    "local_energy": "sigmas increase standard_error reference samples noise epsilon",
    "pac_bayes_sigma": (
        "sigma standard_error bias increase increase_error bracketed bound samples noise epsilon"
    ),
    "random_walk": "losses distances escape_steps acceptance threshold step_size kind",
    "rejecting_walk": "losses distances escape_steps acceptance threshold step_size kind",
    "local_entropy": _ENTROPY,
    "pac_bayes_bound": (
        "bound risk risk_error risk_bound error kl nats sigma prior_variance distance size "
        "examples samples delta sample_delta sigmas trial_risks trial_bounds"
    ),
    "private_prior_bound": (
        "bound bound_above risk risk_error kl kl_error kl_below log_partition nats epsilon delta "
        "gamma tau loss_range size examples temperatures losses loss_errors acceptance ess r_hat "
        "chains burn_in samples converged"
    ),
    "quantization": "bits values reference rounding per kernels size",
    "pruning": "fractions values reference removed per kernels size",
    "corruption_error": "reference values",
}
