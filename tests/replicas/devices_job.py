"""Three replicas on three logical CPUs and on one device: `devices_job.py FILE CASE...`.

A process of its own, since TensorFlow can be told only once how many CPUs there are. It leaves what
both computed in FILE, an .npz.
"""

import sys

import numpy as np
import tensorflow as tf

from tests.replicas import helpers

COUNT = 3


def train(name, strategy):
    """Train a case for two epochs and return what can be asked of it."""
    model = helpers.case(name, count=COUNT, strategy=strategy)
    record = helpers.Record()
    history = helpers.fit(model, epochs=2, callbacks=[record]).history
    trajectory = np.array([np.concatenate([w.ravel() for w in kept]) for kept in record.kept])
    center = np.concatenate([w.ravel() for w in model.center().get_weights()])
    devices = [member.trainable_variables[0].value.device[-5:] for member in model.members]
    return {
        "trajectory": trajectory,
        "loss": np.array(history["loss"]),
        "center": center,
        "distances": model.distances(),
        "devices": np.array(devices),
    }


def main(file, *names):
    (cpu,) = tf.config.list_physical_devices("CPU")
    three = [tf.config.LogicalDeviceConfiguration()] * COUNT
    tf.config.set_logical_device_configuration(cpu, three)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(COUNT)])
    found = {}
    for name in names:
        for where, devices in (("one", None), ("three", strategy)):
            found |= {f"{name}:{where}:{k}": v for k, v in train(name, devices).items()}
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
