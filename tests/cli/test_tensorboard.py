"""TensorBoard itself, over HTTP, reads what a run wrote: scalars and hyperparameters."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

_START_WITHIN = 60  # seconds; it takes three on a quiet machine


@pytest.fixture(scope="module")
def ask(finished):
    """A function of a path and a body that returns TensorBoard's answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(finished.parent),
         "--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Whatever proxy the machine has, it is not for this.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
        )
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)

    try:
        deadline = time.monotonic() + _START_WITHIN
        while True:
            try:
                # It answers before it has read all the events.
                if len(get("/data/runs")) == 2 and get("/data/plugin/hparams/experiment", {}):
                    break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "TensorBoard has stopped"
            assert time.monotonic() < deadline, "TensorBoard does not read the run"
            time.sleep(0.2)
        yield get
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def scalars(ask, run, tag):
    """Return the values of a tag by step: Keras writes scalars as tensors of rank 0."""
    query = urllib.parse.urlencode({"run": run, "tag": tag})
    return {step: value for _, step, value in ask(f"/data/plugin/scalars/scalars?{query}")}


@pytest.mark.slow
def test_the_curves_are_those_of_history_csv(ask, finished):
    tags = ask("/data/plugin/scalars/tags")
    assert set(tags) == {"whole/tensorboard/train", "whole/tensorboard/validation"}
    for tag in ("epoch_loss", "epoch_accuracy", "epoch_scope", "epoch_learning_rate",
                "epoch_gradient_norm", "epoch_cosine"):  # fmt: skip
        assert tag in tags["whole/tensorboard/train"]
    header, *lines = (finished / "history.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    for part, tag, column in (
        ("train", "epoch_loss", "loss"),
        ("train", "epoch_scope", "scope"),
        ("validation", "epoch_accuracy", "val_accuracy"),
        ("validation", "epoch_loss", "val_loss"),
    ):
        found = scalars(ask, f"whole/tensorboard/{part}", tag)
        expected = {k: float(row[column]) for k, row in enumerate(rows)}
        assert found == pytest.approx(expected, rel=1e-5), tag


@pytest.mark.slow
def test_the_hyperparameters_have_a_row_with_the_runs_metrics(ask):
    experiment = ask("/data/plugin/hparams/experiment", {})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer", "langevin_steps", "learning_rate", "gamma", "seed", "dataset"} <= names
    metrics = [info["name"] for info in experiment["metricInfos"]]
    groups = ask(
        "/data/plugin/hparams/session_groups",
        {
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE",
                                "STATUS_RUNNING"],
            "colParams": [{"metric": name} for name in metrics],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )  # fmt: skip
    (group,) = groups["sessionGroups"]
    assert group["hparams"]["optimizer"] == "entropy-sgd"
    assert group["hparams"]["langevin_steps"] == 3
    assert "epoch_accuracy" in {value["name"]["tag"] for value in group["metricValues"]}
