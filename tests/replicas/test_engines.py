"""All replicas on one device, each on its own, and each in its own process: the same training."""

import functools
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import Replicas
from esgd_tf.cli import launch
from esgd_tf.replicas import Parle, ReplicatedSGD
from esgd_tf.replicas._exchange import StrategyExchange
from tests.optimizers.helpers import STEPS_PER_EPOCH, assert_close, data
from tests.replicas import helpers, job

ROOT = Path(__file__).resolve().parents[2]
# Training steps from one coupling to the next.
PERIODS = {"rsgd": 2, "focused": 3, "easgd": 2, "walkers": 1, "parle": 2}


@pytest.fixture
def gathers(monkeypatch):
    """Count how often weights cross between devices."""
    calls = []
    gather = StrategyExchange.gather
    monkeypatch.setattr(StrategyExchange, "gather", lambda self: calls.append(1) or gather(self))
    return calls


@pytest.mark.parametrize(
    "name",
    [
        "focused",
        "easgd",
        "walkers",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("rsgd", "parle")),
    ],
)
@pytest.mark.slow
def test_one_replica_a_device_is_all_on_one(name, two_cpus, gathers):
    trajectory, _, center, history = helpers.uninterrupted(name)
    model = helpers.case(name, strategy=two_cpus)
    devices = [member.trainable_variables[0].value.device[-5:] for member in model.members]
    assert devices == ["CPU:0", "CPU:1"]
    for member, device in zip(model.members, devices, strict=True):
        slots = [v for v in member.optimizer.variables if len(v.shape) > 0]
        assert {v.value.device[-5:] for v in slots} == {device}
    record = helpers.Record()
    found = helpers.fit(model, epochs=2, callbacks=[record]).history
    for ours, theirs in zip(record.kept, trajectory, strict=True):
        assert_close(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(found["loss"], history["loss"], rtol=1e-5)
    assert len(gathers) == 2 * STEPS_PER_EPOCH // PERIODS[name]
    assert_close(model.center().get_weights(), center, atol=1e-6)


@pytest.mark.parametrize(
    "names",
    [["easgd"], pytest.param(["rsgd", "focused", "walkers", "parle"], marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_three_devices_are_one(names, tmp_path):
    """In a process of its own: here are two."""
    command = [sys.executable, "-m", "tests.replicas.devices_job", tmp_path / "found.npz", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    for name in names:
        assert list(found[f"{name}:three:devices"]) == ["CPU:0", "CPU:1", "CPU:2"]
        assert set(found[f"{name}:one:devices"]) == {"CPU:0"}
        for key in ("trajectory", "center", "distances", "loss"):
            one, three = (found[f"{name}:{where}:{key}"] for where in ("one", "three"))
            np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")
        assert (found[f"{name}:one:distances"] > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["easgd", pytest.param("focused", marks=pytest.mark.slow)])
def test_a_run_on_one_device_goes_on_on_two(name, two_cpus, tmp_path):
    trajectory, _, _, _ = helpers.uninterrupted(name)
    model = helpers.case(name)
    helpers.fit(model)
    model.save(tmp_path / "one.keras")
    several = helpers.case(name, strategy=two_cpus)
    several.load_weights(tmp_path / "one.keras")
    helpers.fit(several, epochs=2, initial_epoch=1)
    assert_close(helpers.weights(several), trajectory[-1], atol=1e-6)


@pytest.mark.parametrize("name", ["walkers", "focused"])
@pytest.mark.slow  # the file that the chief of two processes saved is loaded below
def test_a_run_on_two_devices_goes_on_on_one(name, two_cpus, tmp_path):
    trajectory, _, _, _ = helpers.uninterrupted(name)
    several = helpers.case(name, strategy=two_cpus)
    helpers.fit(several, validation_data=data())
    several.save(tmp_path / "several.keras")
    loaded = esgd_tf.load_model(tmp_path / "several.keras")
    helpers.fit(loaded, epochs=2, initial_epoch=1)
    assert_close(helpers.weights(loaded), trajectory[-1], atol=1e-6)


@pytest.mark.slow
def test_batch_norm_statistics_of_the_center_on_two_devices(two_cpus):
    assert_same(job.train_batch_norm(two_cpus), expected("batch_norm"))


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_compiled_anew_on_two_devices(epochs, two_cpus):
    """The mean is that of the new optimizers: after one epoch they are amid an inner loop."""
    found = []
    for strategy in (None, two_cpus):
        model = helpers.replicas(Parle(langevin_steps=5), "sgd", strategy=strategy)
        helpers.fit(model, epochs=epochs)
        model.compile(keras.optimizers.SGD(0.3), loss="mse")
        assert_close(model.center().get_weights(), model._group.exchange.mean(), atol=1e-7)
        helpers.fit(model, epochs=epochs, steps_per_epoch=3)
        found.append(helpers.weights(model) + model.center().get_weights())
    assert_close(*found, atol=1e-6)


def test_steps_cannot_be_put_together_where_replicas_meet_between_them(two_cpus):
    with pytest.raises(ValueError, match="`steps_per_execution` must be 1 with a strategy"):
        helpers.case("rsgd", strategy=two_cpus, steps_per_execution=2)


@pytest.mark.parametrize(("count", "what"), [(3, "fewer"), (1, "more")])
def test_a_strategy_has_a_device_for_each_replica(count, what, two_cpus):
    words = f"There are {what} devices than replicas: the strategy has 2, and {count} replicas"
    with pytest.raises(ValueError, match=words):
        Replicas(helpers.network, count, ReplicatedSGD(), strategy=two_cpus)


def test_replicas_are_not_made_inside_a_strategy(two_cpus):
    with (
        two_cpus.scope(),
        pytest.raises(ValueError, match=r"Make Replicas outside of `strategy.scope\(\)`"),
    ):
        Replicas(helpers.network, 2, ReplicatedSGD(), strategy=two_cpus)


@pytest.mark.slow
def test_devices_of_their_own_compile_without_xla_by_themselves(two_cpus, monkeypatch):
    """As Keras does under a strategy: one compiled step cannot span devices."""
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *kinds: [gpu])
    assert helpers.case("rsgd").jit_compile
    assert not helpers.case("rsgd", strategy=two_cpus).jit_compile


@functools.cache
def expected(name):
    """Return what a job gives in one process, on one device."""
    return job.train_batch_norm(None) if name == "batch_norm" else job.train(name, None)


# ---- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The folder of two workers on loopback, and what each computed."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(ROOT)
        command = [sys.executable, "-m", "tests.replicas.job", str(folder)]
        names = ["rsgd", "easgd", "batch_norm"]
        assert launch.main(["launch", "--workers", "2", "--", *command, *names]) == 0
    return folder, [dict(np.load(folder / f"{i}.npz")) for i in range(2)]


def of(name, results):
    return {key.removeprefix(f"{name}:"): v for key, v in results.items() if key.startswith(name)}


def assert_same(ours, theirs, atol=1e-6):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", ["rsgd", "easgd"])
@pytest.mark.slow
def test_two_processes_are_one(name, workers):
    for worker in workers[1]:
        results = of(name, worker)
        assert results.keys() == expected(name).keys()
        del results["loss"]
        assert_same(results, {key: expected(name)[key] for key in results})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rsgd", "easgd"])
def test_all_processes_log_the_mean_loss_of_all_replicas(name, workers):
    for worker in workers[1]:
        np.testing.assert_allclose(of(name, worker)["loss"], expected(name)["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["averaged", "estimated"])
def test_the_center_has_the_same_statistics_in_all_processes(statistics, workers):
    for worker in workers[1]:
        results = of("batch_norm", worker)
        own = {name: value for name, value in results.items() if name.startswith(statistics)}
        assert_same(own, {name: expected("batch_norm")[name] for name in own})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rsgd", "easgd"])
def test_what_the_chief_saved_goes_on_in_one_process(name, workers):
    folder, _ = workers
    trajectory, _, _, _ = helpers.uninterrupted(name)
    loaded = esgd_tf.load_model(folder / f"{name}.keras")
    assert_close(helpers.weights(loaded), trajectory[STEPS_PER_EPOCH - 1], atol=1e-6)
    helpers.fit(loaded, epochs=2, initial_epoch=1)
    assert_close(helpers.weights(loaded), trajectory[-1], atol=1e-6)
