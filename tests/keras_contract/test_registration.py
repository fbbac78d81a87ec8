"""Keras' loader finds this library's classes in a new process that has imported it, and no more."""

import importlib
import pkgutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import esgd_tf
from esgd_tf import _registration
from esgd_tf.optimizers import AutoScope
from tests.optimizers import helpers


def test_the_table_of_classes_is_complete():
    for module in pkgutil.walk_packages(esgd_tf.__path__, "esgd_tf."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    registered = {
        (value.__module__, value.__name__)
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith("esgd_tf>")
    }
    table = {(m, name) for m, names in _registration.CLASSES.items() for name in names}
    assert registered == table
    for module, name in table:  # the classes themselves have taken the place of their stand-ins
        known = keras.saving.get_registered_object(f"esgd_tf>{name}")
        assert known is getattr(importlib.import_module(module), name)


LOAD = """
import sys
{imports}
assert not [name for name in sys.modules if name.startswith("esgd_tf.optimizers")]
model = keras.models.load_model(sys.argv[1])
print(type(model.optimizer).__name__, model.optimizer.gamma)
print(float(model.layers[0].kernel.value[0, 0]))
"""


@pytest.mark.parametrize(
    "imports",
    ["import esgd_tf, keras", pytest.param("import keras, esgd_tf", marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_a_new_process_loads_what_was_saved(imports, tmp_path):
    model = helpers.network(esgd_tf.LocalEntropy("adam", 5, gamma=AutoScope(7)))
    helpers.fit(model)
    model.save(tmp_path / "model.keras")
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), str(tmp_path / "model.keras")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"LocalEntropy {AutoScope(7)!r}"
    assert np.float32(second) == model.layers[0].kernel.numpy()[0, 0]
