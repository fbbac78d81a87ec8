"""What holds for every measure, tried on each: a table of measures, and one test a promise."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from esgd_tf.landscape import FullSpectrum, Result, Row
from tests.landscape.measures import EXACT, MEASURES, OF_OPERATORS, WRITTEN
from tests.landscape.problems import (
    MatrixOperator,
    cross_entropy,
    examples,
    mlp,
    quadratic,
    same_state,
    state,
    symmetric,
)

NAN, INF = float("nan"), float("inf")
POINT = np.linspace(0.4, 1.6, 20)
OTHER = -np.ones(20)
# In these a loss that is not finite is a value like any other: it is shown, not refused.
SHOW_NAN = {
    "interpolate", "plane", "local_energy", "quantization", "pruning", "corruption_error"
}  # fmt: skip


MATRIX = symmetric(np.linspace(0.5, 3, 20))
LOSS = quadratic(MATRIX)[1]


def bowl():
    """Return weights, not at the minimum, and a positive definite quadratic loss of them."""
    return [POINT[:10].reshape(2, 5), POINT[10:]], LOSS


def measure(name, **options):
    """Measure the bowl; what takes an operator gets its matrix, which traces nothing."""
    problem = [MatrixOperator(MATRIX, MATRIX @ POINT, POINT)] if name in OF_OPERATORS else bowl()
    return MEASURES[name](*problem, **options)


@pytest.fixture(scope="module")
def network():
    """A compiled network with a frozen layer, dropout and moving statistics, and its data.

    One for all tests: no measure may change it, and so it is traced once for several.
    """
    model = mlp(batch_norm=True)
    model.layers[0].trainable = False
    model.compile("sgd", cross_entropy())
    return model, examples(dtype="float32")


each_measure = pytest.mark.parametrize("name", MEASURES)


@each_measure
def test_leaves_the_model_as_it_was(name, network):
    model, data = network
    before = state(model)
    found = MEASURES[name](model, None, data)
    assert same_state(before, state(model))
    assert found.measured_at == "weights"
    # A measure of the trainable weights only: 20 of the 54 are frozen.
    # Of kernels there is one that is not.
    of_kernels = hasattr(found, "kernels")
    assert getattr(found, "size", 34) == (20 if of_kernels else 34)


@each_measure
def test_is_fixed_by_its_seed(name):
    """And by nothing else: the generators of NumPy and Keras were seeded before the first."""
    one = measure(name)
    np.testing.assert_equal(measure(name).to_dict(), one.to_dict())
    if name not in EXACT:
        same, other = (measure(name, seed=seed) for seed in (0, 1))
        np.testing.assert_equal(same.to_dict(), one.to_dict())
        # `vars`, since `to_dict` leaves out the vectors, the only random part of some.
        assert any(not same_value(vars(other)[n], value) for n, value in vars(one).items())


def same_value(one, other):
    try:
        np.testing.assert_equal(one, other)
    except AssertionError:
        return False
    return True


@each_measure
def test_result_can_be_written_and_not_be_changed(name):
    found = measure(name)
    assert isinstance(found, Result)
    written = json.loads(json.dumps(found.to_dict()))
    assert set(written) == {"measured_at", *WRITTEN[name].split()}
    assert written["measured_at"] == "weights"
    for field in dataclasses.fields(found):
        with pytest.raises(AttributeError):
            setattr(found, field.name, None)
        for array in arrays_in(getattr(found, field.name)):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        if field.name in written and isinstance(value := getattr(found, field.name), np.ndarray):
            np.testing.assert_array_equal(written[field.name], value)


def arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [a for part in parts for a in arrays_in(part)] if isinstance(parts, list) else []


@each_measure
def test_has_rows(name):
    """Long and tidy: every row says what it is and where, and has a number."""
    rows = list(measure(name).rows())
    assert rows
    for row in rows:
        assert isinstance(row, Row) and row.metric and isinstance(row.split, str)
        assert np.isfinite(float(row.value)), row
        assert row.standard_error == "" or float(row.standard_error) >= 0


@each_measure
def test_plots_itself(name):
    found = measure(name)
    alone = found.plot()
    assert alone.has_data()
    assert alone.get_xlabel() or alone.get_ylabel()
    figure, ax = plt.subplots()
    assert found.plot(ax) is ax
    assert ax.has_data()
    assert ax.figure is figure
    colored = found.plot(color="tab:red", label="here")
    assert name == "plane" or any("here" in text for text in colored.get_legend_handles_labels()[1])


@each_measure
def test_a_loss_that_is_not_finite_is_refused_or_shown(name):
    weights, _ = bowl()

    def broken(weights):
        return LOSS(weights) * np.nan

    if name in SHOW_NAN:
        written = MEASURES[name](weights, broken).to_dict()
        assert "nan" in str(written)
    else:
        with pytest.raises(ValueError, match=r"is nan|not finite|no finite second derivative"):
            MEASURES[name](weights, broken)


BAD = {
    "trace": [
        *[({"num_matvecs": n}, "`num_matvecs` must be an integer of at least 6")
          for n in (6.5, True, "many", 5)],
    ],
    "eigenpairs": [
        ({"k": 0}, "`k` must be"),
        ({"k": 21}, "at most 20"),
        ({"k": 1.5}, "`k` must be"),
        ({"which": "SM"}, "`which` must be"),
        ({"tol": -1.0}, "`tol`"),
        ({"tol": NAN}, "`tol`"),
        ({"method": "power"}, "`method`"),
        ({"method": "lobpcg", "which": "BE"}, "LA or SA only"),
        ({"max_matvecs": 0}, "`max_matvecs` must be"),
    ],
    "spectral_density": [
        ({"num_probes": 0}, "`num_probes` must be an integer of at least 1"),
        ({"num_steps": 0}, "`num_steps` must be an integer of at least 1"),
        ({"num_steps": 1.5}, "`num_steps` must be an integer of at least 1"),
    ],
    "full_spectrum": [({"dtype": "int32"}, "`dtype` must be")],
    "diagonal_estimate": [({"num_probes": 1}, "at least 2")],
    "laplace": [
        ({"gammas": [1.0]}, "`gammas` must be"),
        ({"inverse_temperature": 0.0}, "`inverse_temperature` must be"),
        ({"inverse_temperature": NAN}, "`inverse_temperature` must be"),
        ({"num_probes": 0}, "`num_probes` must be"),
        ({"num_steps": 0}, "`num_steps` must be"),
        ({"num_steps": 0, "spectrum": FullSpectrum(eigenvalues=np.ones(20), asymmetry=0.0)},
         "`num_steps` must be"),
        ({"spectrum": FullSpectrum(eigenvalues=np.ones(7), asymmetry=0.0)},
         "`spectrum` is of 7 eigenvalues"),
    ],
    "frobenius_norm": [({"num_probes": 1}, "`num_probes` must be an integer of at least 2")],
    "effective_dimension": [
        *[({"gammas": g}, "`gammas` must be") for g in ([], [0.0], [-1.0], [NAN])],
        ({"num_probes": 0}, "`num_probes` must be"),
        ({"num_steps": 0}, "`num_steps` must be"),
    ],
    "relative_flatness": [
        ({"num_matvecs": 5}, "`num_matvecs` must be an integer of at least 6"),
        ({"variables": [1]}, "None of the weights is that of a layer"),
    ],
    "worst_case_radius": [
        ({"bound": 0.0}, "`bound` must be"),
        ({"box": "ball"}, "`box` must be additive or relative"),
        ({"epsilon": 0.0}, "`epsilon` must be"),
        ({"max_radius": INF}, "`max_radius` must be"),
        ({"max_steps": 0}, "`max_steps` must be"),
        ({"rtol": 0.0}, "`rtol` must be"),
        ({"metric": ["loss", "error"]}, "must be one"),
        ({"metric": "error"}, "no prediction"),
    ],
    "m_sharpness": [
        ({"kind": "ascent"}, "`kind` must be sam or asam"),
        ({"radius": 0.0}, "`radius` must be"),
        ({"eta": -1.0}, "`eta` must be"),
        ({"groups": 0}, "`groups` must be"),
        *[({"m": m}, "`m` must be an integer of at least 1 and at most 8") for m in (0, 9, 1.5)],
    ],
    "sharpness": [
        ({"kind": "flat"}, "`kind` must be"),
        ({"radius": 0.0}, "`radius` must be"),
        ({"radius": INF}, "`radius` must be"),
        ({"step_size": -1.0}, "`step_size` must be"),
        ({"max_steps": 0}, "`max_steps` must be"),
        ({"max_steps": 0.5}, "`max_steps` must be"),
        ({"max_steps": True}, "`max_steps` must be"),
        ({"kind": "asam", "eta": -0.1}, "`eta` must"),
        ({"kind": "asam", "eta": NAN}, "`eta` must"),
    ],
    "interpolate": [
        ({"kind": "cubic"}, "`kind` must be linear or spherical; got 'cubic'"),
        ({"coefficients": 0.5}, "`coefficients` must be a list"),
        ({"coefficients": []}, "`coefficients` must be a list"),
        ({"coefficients": [0.0, INF]}, "finite numbers"),
        ({"weights_b": np.zeros(2)}, "there are 20 weights"),
        ({"weights_b": [np.zeros(2), np.zeros(10)]}, r"the network needs \[\(2, 5\), \(10,\)\]"),
        ({"reestimate": print}, "`reestimate` is for Keras models"),
        ({"metric": "error"}, "no prediction"),
        ({"data": {}}, "no split"),
    ],
    "plane": [
        ({"points": 1}, "`points` must be an integer of at least 2"),
        ({"points": 2.5}, "`points`"),
        ({"normalization": "batch"}, "`normalization` must be"),
        ({"directions": "hessian"}, "`directions` must be random, pca or given"),
        ({"dimensions": 3}, "`dimensions` must be 1 or 2"),
        ({"directions": []}, "one or two directions; got 0"),
        ({"directions": [POINT, OTHER, POINT]}, "one or two directions; got 3"),
        ({"directions": [np.ones(3)]}, "there are 20 weights"),
        ({"directions": [POINT, 0 * POINT]}, "length 0"),
        ({"directions": [POINT, NAN * POINT]}, "not finite"),
        ({"directions": [POINT, -2 * POINT]}, "parallel"),
        ({"normalization": "auto", "center": [np.zeros((2, 5)), np.ones(10)]},
         "Biases and other vectors stay"),
        ({"extent": 0.0}, "`extent` must be a positive number, or 2 of them"),
        ({"extent": INF}, "`extent`"),
        ({"extent": (1.0, 2.0, 3.0)}, "or 2 of them"),
        ({"directions": [POINT], "extent": (1.0, 2.0)}, "or 1 of them"),
        ({"directions": "pca"}, "needs a `trajectory` of at least 2"),
        ({"directions": "pca", "trajectory": []}, "needs a `trajectory`"),
        ({"directions": "pca", "trajectory": [OTHER]}, "of at least 2 weights"),
        ({"directions": "pca", "trajectory": [OTHER, 2 * OTHER - POINT]},
         "has not 2 directions"),
        ({"directions": "pca", "trajectory": [POINT, POINT]}, "has not 2 directions"),
        ({"trajectory": [np.ones(3)]}, "there are 20 weights"),
        ({"center": np.ones(3)}, "there are 20 weights"),
    ],
    "local_energy": [
        *[({"sigmas": s}, "`sigmas` must be") for s in ([-0.1], [NAN], [[0.1]], [])],
        *[({"samples": n}, "`samples` must be") for n in (1, 2.0, True)],
        ({"noise": "uniform"}, "`noise` must be"),
        ({"noise": "mixed", "epsilon": 0.0}, "`epsilon` must be"),
        ({"metric": "accuracy"}, "`metric` must be"),
        ({"metric": []}, "names nothing"),
        ({"metric": "error"}, "no prediction"),
        ({"data": {}}, "no split"),
    ],
    "pac_bayes_sigma": [
        ({"bound": 0.0}, "`bound` must be"),
        ({"bound": NAN}, "`bound` must be"),
        ({"max_sigma": INF}, "`max_sigma` must be"),
        ({"rtol": -1e-3}, "`rtol` must be"),
        ({"samples": 1}, "`samples` must be"),
        ({"noise": "uniform"}, "`noise` must be"),
        ({"epsilon": NAN}, "`epsilon` must be"),
        ({"metric": ["loss", "error"]}, "must be one"),
    ],
    "pac_bayes_bound": [
        *[({"sigmas": s}, "`sigmas` must be") for s in ([], [0.0], [NAN], -1.0, [0.1, INF])],
        *[({"delta": d}, "`delta` must be") for d in (0.0, 1.0, NAN)],
        *[({"sample_delta": d}, "`sample_delta` must be") for d in (0.0, 1.0)],
        *[({"samples": n}, "`samples` must be") for n in (0, 1.5, True)],
        ({"trials": 0}, "`trials` must be"),
        ({"prior_scale": 0.0}, "`prior_scale` must be"),
        *[({"prior_precision": n}, "`prior_precision` must be") for n in (0, 1.5, 10_001)],
        ({"prior": [np.zeros(3)]}, "the network needs"),
    ],
    "private_prior_bound": [
        *[({"gamma": g}, "`gamma` must be") for g in (0.0, INF)],
        ({"tau": 0.0}, "`tau` must be"),
        ({"loss_range": 0.0}, "`loss_range` must be"),
        *[({"epsilon": e}, "`epsilon` must be") for e in (-0.1, NAN)],
        *[({"delta": d}, "`delta` must be") for d in (0.0, 1.0)],
        ({"steps": 0}, "`steps` must be"),
        ({"chains": 1}, "`chains` must be"),
        ({"samples": 7}, "`samples` must be"),
        ({"burn_in": -1}, "`burn_in` must be"),
    ],
    "quantization": [
        *[({"bits": b}, "`bits` must be") for b in ([], 4, [1], [25], [4.5], "48", [True])],
        ({"per": "layer"}, "`per` must be"),
        ({"metric": "error"}, "no prediction"),
        ({"data": {}}, "no split"),
        ({"variables": [1]}, "There are no kernels"),
    ],
    "pruning": [
        *[({"fractions": f}, "`fractions` must be") for f in ([], 0.5, [-0.1], [1.1], [NAN])],
        ({"per": "channel"}, "`per` must be"),
        ({"metric": "error"}, "no prediction"),
        ({"data": {}}, "no split"),
    ],
    "corruption_error": [
        ({"corrupted": {}}, "`corrupted` must have"),
        ({"corrupted": [POINT]}, "`corrupted` must have"),
        ({"metric": "error"}, "no prediction"),
    ],
    "random_walk": [
        ({"kind": "levy"}, "`kind` must be"),
        ({"step_size": 0.0}, "`step_size`"),
        ({"step_size": NAN}, "`step_size`"),
        ({"max_steps": 0}, "`max_steps` must be an integer of at least 1"),
        ({"max_steps": 1.5}, "`max_steps`"),
        ({"walks": True}, "`walks` must be an integer of at least 1"),
        ({"threshold": -0.1}, r"outside: the loss is .* and `threshold` -0\.1"),
        ({"threshold": NAN}, "outside"),
    ],
    "local_entropy": [
        *[({"gammas": g}, "`gammas` must be")
          for g in ([1.0], [1.0, 1.0], [0.0, 1.0], [1.0, NAN])],
        *[({"chains": n}, "`chains` must be") for n in (1, 2.0)],
        *[({"samples": n}, "`samples` must be") for n in (7, True)],
        *[({"burn_in": n}, "`burn_in` must be") for n in (-1, 1.5)],
        *[({"inverse_temperature": t}, "`inverse_temperature` must be") for t in (0.0, INF)],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [pytest.param(m, o, w, id=f"{m}-{o}") for m, rows in BAD.items() for o, w in rows],
)
def test_bad_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        measure(name, **options)
