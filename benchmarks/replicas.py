"""What replicas cost: seconds per gradient evaluation, and bytes between machines.

Command:   python3 benchmarks/replicas.py            (the figures to report)
           python3 benchmarks/replicas.py --quick    (few periods, fewer steps)
Expected:  about 8 minutes on 2 CPU cores. Nothing else should run.
Result:    a gradient evaluation of three replicas in one process takes at most 1.05 times that of
           one network; the bytes that cross between two machines fall by K, or L, against
           data-parallel training.

Seconds: contenders take turns in one process; see `optimizer_overhead.py`. The network is
lenet-10-20-128 on images of 28x28 in minibatches of 128, the optimizer SGD with Nesterov momentum.

Bytes: two processes under MultiWorkerMirroredStrategy, each with one replica of the same network,
on this machine's loopback interface, whose counter of sent bytes is read before and after a hundred
steps (Linux only). One step is a gradient evaluation in both. "payload" is what the algorithm has
to send: 4 bytes for each weight, both ways, per gradient (data-parallel) or per coupling.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf

from benchmarks._measure import Stepper, batches, hardware, keras_stepper, measure, report_ratio
from esgd_tf import models
from esgd_tf.replicas import (
    Coupling,
    ElasticAveraging,
    OwnMinibatches,
    Parle,
    Replicas,
    ReplicatedSGD,
)
from esgd_tf.training import enable_multi_worker

_NETWORK, _SHAPE, _BATCH, _Y = "lenet-10-20-128", (28, 28, 1), 128, 3
_DATA_PARALLEL = "data-parallel SGD"
_STEPS = 100


def couplings() -> dict[str, Coupling]:
    """The contenders."""
    return {
        "rSGD, K = 1": ReplicatedSGD(0.01),
        "rSGD, K = 10": ReplicatedSGD(0.01, every=10),
        "EASGD, tau = 10": ElasticAveraging(0.3, every=10),
        "Parle, L = 25": Parle(25),
    }


def optimizer(name: str) -> keras.optimizers.Optimizer:
    """What `compile` is given; Parle's inner loop has the momentum."""
    momentum = 0.0 if name.startswith("Parle") else 0.9
    return keras.optimizers.SGD(0.01, momentum=momentum, nesterov=momentum > 0)


def loss() -> keras.losses.Loss:
    """Cross entropy of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def endless(seed: int) -> tf.data.Dataset:
    """Minibatches of noise."""
    del seed
    return tf.data.Dataset.from_tensor_slices(batches(_SHAPE, _BATCH)).cache().repeat()


def replicas(name: str, count: int, strategy: tf.distribute.Strategy | None = None) -> Replicas:
    """Compiled replicas of the network."""
    model = Replicas(
        lambda a: models.build(_NETWORK, _SHAPE, 10, seed=a),
        count,
        couplings()[name],
        strategy=strategy,
    )
    model.compile(optimizer(name), loss(), jit_compile=False)
    return model


def replicas_stepper(name: str) -> Stepper:
    """Three replicas in one process, as `fit` would run them."""
    model = replicas(name, _Y)
    model.make_train_function()
    iterator = iter(OwnMinibatches(endless).zipped(range(_Y)).prefetch(2))

    def step(count: int) -> None:
        for _ in range(count):
            logs = model.train_function(iterator)
        float(logs["loss"])

    return step


def seconds(periods: int) -> list[dict[str, Any]]:
    """Compare a gradient evaluation among replicas with one alone."""
    alone = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    steppers = {"one network": keras_stepper(_NETWORK, _SHAPE, _BATCH, alone)}
    steppers |= {name: replicas_stepper(name) for name in couplings()}
    # Three times as many steps of one network: as many gradient evaluations.
    single = steppers["one network"]
    steppers["one network"] = lambda count: single(_Y * count)
    for stepper in steppers.values():
        stepper(5)
    # A turn of 50 holds whole periods of every coupling.
    found = measure(steppers, turn=50, turns=1, periods=periods, at_most=3 * periods)
    found = {name: taken / _Y for name, taken in found.items()}
    for name, taken in found.items():
        print(f"  {name:20s} {1000 * np.median(taken[:, 0]):8.2f} ms per gradient evaluation")
    return [report_ratio(found, name, "one network", "1.05 or less") for name in couplings()]


# ---- bytes ------------------------------------------------------------------------------------


def sent() -> int:
    """Bytes that the loopback interface has sent since the machine started."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(x for x in lines if x.strip().startswith("lo:")).split(":")[1].split()[8])


def worker(name: str) -> None:
    """One of two processes: train, and print what was sent meanwhile."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if name == _DATA_PARALLEL:
        with strategy.scope():
            model = models.build(_NETWORK, _SHAPE, 10, seed=0)
            model.compile(optimizer("SGD"), loss(), jit_compile=False)
            model.optimizer.build(model.trainable_variables)
        enable_multi_worker(model)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        data: Any = endless(0).with_options(options)
    else:
        model = replicas(name, 2, strategy)
        data = OwnMinibatches(endless)
    options = {"steps_per_epoch": _STEPS, "verbose": 0, "shuffle": False}

    class Counter(keras.callbacks.Callback):
        """Reads the interface's counter at the ends of the second epoch."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.before = sent()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch + 1 == _STEPS:
                self.found = sent() - self.before

    counter = Counter()
    # In the first epoch everything is traced and connected.
    model.fit(data, epochs=2, callbacks=[counter], **options)
    print(json.dumps({"bytes": counter.found}))


def bytes_of(name: str) -> float:
    """Start two workers and return the bytes sent per gradient evaluation."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(probe.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    started = []
    for index in range(2):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        command = [sys.executable, __file__, "--worker", name]
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    answers = [process.communicate(timeout=600) for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"A worker failed:\n{answers[0][1]}\n{answers[1][1]}")
    found = [json.loads(out.splitlines()[-1])["bytes"] for out, _ in answers]
    return float(np.mean(found)) / (2 * _STEPS)


def communication() -> list[dict[str, Any]]:
    """Compare the bytes."""
    weights = sum(
        int(np.prod(v.shape))
        for v in models.build(_NETWORK, _SHAPE, 10, seed=0).trainable_variables
    )
    periods = {_DATA_PARALLEL: 1, "rSGD, K = 1": 1, "rSGD, K = 10": 10, "Parle, L = 25": 25}
    lines, most = [], 0.0
    print(f"{weights:,} weights; bytes sent per gradient evaluation, two processes:")
    for name, period in periods.items():
        found = bytes_of(name)
        most = most or found
        # Both send all weights, in each of two evaluations of a step.
        payload = 4 * weights / period
        lines.append({"what": name, "bytes": found, "payload": payload, "ratio": found / most})
        print(
            f"  {name:20s} {found:12,.0f}  payload {payload:10,.0f}  "
            f"data-parallel / this {most / found:6.1f}"
        )
    return lines


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three periods")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        worker(flags.worker)
        return
    machine = hardware()
    print(machine, flush=True)
    keras.utils.set_random_seed(0)
    results = {"seconds": seconds(3 if flags.quick else 20), "bytes": communication()}
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": machine, **results}, indent=2))


if __name__ == "__main__":
    main()
