"""One device, two logical CPUs, and two processes: the same training, to rounding."""

import functools
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.cli import launch
from tests.distribute import job

ROOT = Path(__file__).resolve().parents[2]


ONE_DEVICE = ("plain", "synchronized")  # what two devices compute is what one does
# The others have nothing that none of these two has, and a scenario takes its time to trace.
FIRST = ("synchronized", "poisoned")
SCENARIOS = [
    pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in job.SCENARIOS
]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each of two workers on loopback computed, with a scenario in one job for several."""

    @functools.cache
    def computed(scenarios):
        folder = tmp_path_factory.mktemp("job")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            command = [sys.executable, "-m", "tests.distribute.job", str(folder), *scenarios]
            patch.chdir(ROOT)
            assert launch.main(["launch", "--workers", "2", "--", *command]) == 0
        workers = [dict(np.load(folder / f"{i}.npz")) for i in range(2)]
        assert workers[0].keys() == workers[1].keys()
        return workers

    others = tuple(name for name in job.SCENARIOS if name not in FIRST)
    return lambda scenario: computed(FIRST if scenario in FIRST else others)


def of(scenario, worker):
    prefix = f"{scenario}:"
    return {name[len(prefix) :]: v for name, v in worker.items() if name.startswith(prefix)}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def on(two_cpus):
    """What a scenario gives on "one" device or "two" logical CPUs, trained once."""
    strategies = {"one": tf.distribute.get_strategy(), "two": two_cpus}

    @functools.cache
    def train(devices, scenario):
        return job.train(strategies[devices], **job.SCENARIOS[scenario])

    return train


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.values[0] in ONE_DEVICE])
@pytest.mark.slow
def test_two_logical_cpus_are_one_device(scenario, on):
    assert on("one", scenario)["updates"] == 3
    assert_same(on("two", scenario), on("one", scenario))


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.values[0] in ONE_DEVICE])
@pytest.mark.slow
def test_two_processes_are_one_device(scenario, workers, on):
    for worker in workers(scenario):
        assert_same(of(scenario, worker), on("one", scenario))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.values[0] not in ONE_DEVICE])
def test_two_processes_are_two_logical_cpus(scenario, workers, on):
    for worker in workers(scenario):
        assert_same(of(scenario, worker), on("two", scenario))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_workers_end_with_the_same_bits(scenario, workers):
    first, second = (of(scenario, worker) for worker in workers(scenario))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_predict_returns_every_example_once_and_in_order(scenario, workers):
    for worker in workers(scenario):
        results = of(scenario, worker)
        assert results["predict"].shape == (job.TEST_EXAMPLES, 2)
        np.testing.assert_allclose(results["predict"], results["called"], atol=1e-6)


@pytest.mark.slow
def test_a_nan_in_one_replica_is_skipped_on_all(workers, on):
    for results in (
        *(of("poisoned", worker) for worker in workers("poisoned")),
        on("two", "poisoned"),
    ):
        assert results["skipped"] == 3
        assert results["updates"] == (job.STEPS - 3) // job.LANGEVIN_STEPS
        assert all(np.isfinite(value).all() for value in results.values())


@pytest.mark.slow
def test_processes_gather_and_agree(workers):
    for worker in workers(FIRST[0]):
        assert worker["gathered"].tolist() == [10, 11]
        assert worker["agree"].tolist() == [True, False]


@pytest.mark.slow
@pytest.mark.skipif(not keras.__version__.startswith("3.15"), reason="says what Keras 3.15 does")
def test_what_fails_without_the_mending(tmp_path, monkeypatch, capfd):
    """If this fails on a new Keras, `enable_multi_worker` may have become superfluous."""
    script = tmp_path / "plain.py"
    script.write_text(
        "import keras, numpy as np, tensorflow as tf\n"
        "strategy = tf.distribute.MultiWorkerMirroredStrategy()\n"
        "with strategy.scope():\n"
        "    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])\n"
        "    model.compile('sgd', 'mse')\n"
        "model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=4, verbose=0)\n"
    )
    monkeypatch.setitem(os.environ, "TF_CPP_MIN_LOG_LEVEL", "3")
    assert launch.main(["launch", "--grace", "1", "--", str(script)]) != 0
    assert "Error" in capfd.readouterr().err
