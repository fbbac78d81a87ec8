"""Type checkers know every public name: the documents are clean, and slips are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, blocks

ROOT = Path(__file__).parents[2]
# What tests/docs/prelude.py makes.
PRELUDE = """\
from typing import Any
import keras
import numpy as np
import tensorflow as tf
import esgd_tf
def build_model() -> Any: ...
make_model = build_model
model = x = y = x_val = y_val = x_test = y_test = dataset = loss = build_model()
"""
# Keras and TensorFlow have no types, and what can be inferred from their code is mostly wrong.
SETTINGS = """\
[tool.mypy]
follow_imports = "silent"
[[tool.mypy.overrides]]
module = ["keras.*", "tensorflow.*", "tensorflow_datasets.*", "keras_tuner.*", "scipy.*"]
ignore_missing_imports = true
follow_imports = "skip"
[tool.pyright]
extraPaths = ["{root}"]
useLibraryCodeForTypes = false
reportMissingImports = false
reportMissingModuleSource = false
reportAttributeAccessIssue = true
reportUnusedExpression = false
reportPossiblyUnbound = false
reportRedeclaration = false
"""


def problems(folder, checker):
    """What a type checker says of the files of a folder."""
    (folder / "pyproject.toml").write_text(SETTINGS.replace("{root}", str(ROOT)))
    command = [sys.executable, "-m", checker, *sorted(p.name for p in folder.glob("*.py"))]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return [line for line in done.stdout.splitlines() if "error" in line and "0 errors" not in line]


@pytest.fixture(params=["mypy", "pyright"])
def checker(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.slow
def test_the_documents_python_is_clean(tmp_path, checker):
    for document in DOCUMENTS:
        for number, block in enumerate(b for b in blocks(document) if b.kind == "python"):
            name = document.replace("/", "_").replace(".md", "").lower()
            (tmp_path / f"{name}_{number}.py").write_text(PRELUDE + block.content)
    assert len(list(tmp_path.iterdir())) > 20
    assert problems(tmp_path, checker) == []


SLIPS = {
    "keyword": "esgd_tf.EntropySGD(langevin_step=5)",
    "type": "esgd_tf.EntropySGD(langevin_steps='20')",
    "name": "esgd_tf.EntropySDG()",
    "word": "esgd_tf.landscape.eigenpairs(esgd_tf.landscape.HessianOperator(model), which='LE')",
    "replicas": "esgd_tf.Replicas(build_model, 3, coupling=0.1)",
    "data": "esgd_tf.data.load(1)",
}


@pytest.mark.slow
def test_slips_are_found(tmp_path, checker):
    for name, slip in SLIPS.items():
        (tmp_path / f"{name}.py").write_text(PRELUDE + slip + "\n")
    found = problems(tmp_path, checker)
    assert {name for name in SLIPS if any(f"{name}.py" in line for line in found)} == set(SLIPS)
