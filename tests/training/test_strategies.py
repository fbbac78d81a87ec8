"""Strategies by name, on the two logical CPUs that every test has."""

import json

import pytest
import tensorflow as tf

from esgd_tf.runs import experiment
from esgd_tf.training import strategies
from esgd_tf.training.strategies import Processes, StrategyError, make_strategy, split_device


def test_names_are_those_of_the_flag():
    assert strategies.STRATEGIES == experiment.STRATEGIES


@pytest.mark.parametrize("kind", ["auto", "none"])
def test_without_several_gpus_there_is_nothing_to_distribute(kind, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = make_strategy(kind)
    assert strategy.num_replicas_in_sync == 1
    assert not isinstance(strategy, tf.distribute.MirroredStrategy)


def test_auto_ignores_a_job_of_one_worker(monkeypatch):
    job = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(job))
    assert make_strategy("auto").num_replicas_in_sync == 1


def test_auto_mirrors_two_gpus(monkeypatch):
    gpus = [tf.config.LogicalDevice(f"/device:GPU:{i}", "GPU") for i in range(2)]
    cpus = tf.config.list_logical_devices("CPU")
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda kind=None: {"GPU": gpus, "CPU": cpus, None: cpus + gpus}[kind],
    )
    asked = []
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", asked.append)
    make_strategy("auto")
    make_strategy("mirrored", ["gpu:1", "GPU:0"])
    assert asked == [["GPU:0", "GPU:1"], ["GPU:1", "GPU:0"]]


def test_one_device():
    strategy = make_strategy("none", ["CPU:1"])
    with strategy.scope():
        assert "CPU:1" in tf.Variable(1.0).device


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mirrored", ["GPU:7"]), "no device GPU:7: this machine has"),
        (("mirrored", ["CPU:0", "cpu:0"]), "twice"),
        (("none", ["CPU:0", "CPU:1"]), "one device"),
        (("multi_worker",), "launch --workers"),
        # TensorFlow looks for one for up to three minutes; see below.
        pytest.param(("tpu",), "no TPU here", marks=[pytest.mark.slow, pytest.mark.rare]),
        (("parameter_server",), "no strategy"),
    ],
)
def test_what_is_not_there_is_said(arguments, says, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(StrategyError, match=says) as raised:
        make_strategy(*arguments)
    assert "\n" not in str(raised.value)


def test_no_tpu_is_said(monkeypatch):
    def connect(name):
        assert name == "local"
        raise ValueError("Please provide a TPU Name to connect to.\nMore of it.")

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", connect)
    with pytest.raises(StrategyError, match=r"no TPU here, .* \(Please provide a TPU Name .*\)\.$"):
        make_strategy("tpu")


def test_a_malformed_job_is_said(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(StrategyError, match="TF_CONFIG is not of the form"):
        make_strategy("multi_worker")


def test_splitting_comes_first():
    tf.config.list_logical_devices()
    with pytest.raises(StrategyError, match="start"):
        split_device(3)


def test_a_gpu_is_split_by_its_memory(monkeypatch):
    parts = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"the {kind}"])
    monkeypatch.setattr(
        tf.config,
        "set_logical_device_configuration",
        lambda device, configurations: parts.append((device, configurations)),
    )
    monkeypatch.setattr(strategies, "_gpu_memory", lambda: 80_000.0)
    split_device(4)
    ((device, configurations),) = parts
    assert device == "the GPU"
    assert [part.memory_limit for part in configurations] == [18_000.0] * 4


def test_slurm_names_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    environment = {
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    resolver = strategies._slurm(strategies._task())
    assert resolver.cluster_spec().as_dict() == {
        "worker": ["node1:8888", "node1:8889", "node2:8888", "node2:8889"]
    }
    assert resolver.task_id == 1


def test_one_process_is_its_own_chief(two_cpus):
    for strategy in (tf.distribute.get_strategy(), two_cpus):
        processes = Processes(strategy)
        assert processes.is_chief
        assert processes.count == 1
        assert processes.gather(5) == [5]
        assert processes.agree(5)
