"""Every `>>>` example of a docstring runs, with the names that the documents' blocks have too."""

import ast
import doctest
import os
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT
from tests.docs.folder import PYTHON


def examples():
    """Return the code of the examples by the name of what they belong to."""
    found = {}
    for path in sorted((ROOT / "esgd_tf").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                code = [e.source for e in doctest.DocTestParser().get_examples(words_of(node))]
                name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                found |= {name: "".join(code)} if code else {}
    return found


def words_of(node):
    return ast.get_docstring(node) or ""


EXAMPLES = examples()


def test_there_are_examples():
    assert len(EXAMPLES) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    program = tmp_path / "example.py"
    code = "import keras\nimport tensorflow as tf\nimport esgd_tf\n" + EXAMPLES[name]
    program.write_text(PYTHON.format(content=code, name=name))
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
