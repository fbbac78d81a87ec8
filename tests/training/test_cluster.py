"""Which worker this process is, from the environment, without TensorFlow."""

import json
import subprocess
import sys

import pytest

from esgd_tf.training.cluster import ClusterError, Task, read_task


def tf_config(kind, index, **cluster):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_no_job():
    assert read_task({}) is None
    assert read_task({"TF_CONFIG": ""}) is None
    assert read_task(tf_config("worker", 0)) is None  # an empty cluster is one process


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (tf_config("worker", 1, worker=["a:1", "b:1"]), Task(1, 2, "TF_CONFIG")),
        (tf_config("chief", 0, chief=["a:1"], worker=["b:1"]), Task(0, 2, "TF_CONFIG")),
        (tf_config("worker", 0, chief=["a:1"], worker=["b:1"]), Task(1, 2, "TF_CONFIG")),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, Task(3, 8, "SLURM")),
    ],
)
def test_tasks(environment, expected):
    task = read_task(environment)
    assert task == expected
    assert task.is_chief == (expected.index == 0)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"TF_CONFIG": "{"}, "not of the form"),
        ({"TF_CONFIG": "[]"}, "not of the form"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "not of the form"),
        (tf_config("ps", 0, ps=["a:1"], worker=["b:1"]), "'ps'"),
        (tf_config("evaluator", 0, worker=["b:1"]), "'evaluator'"),
        (tf_config("worker", 2, worker=["a:1", "b:1"]), "has 2 of that type"),
        (tf_config("chief", 0, chief=["a:1", "c:1"], worker=["b:1"]), "more than one chief"),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "8"}, "numbers"),
    ],
)
def test_malformed_descriptions(environment, says):
    with pytest.raises(ClusterError, match=says):
        read_task(environment)


def test_no_tensorflow():
    code = "import sys, esgd_tf.training.cluster; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
