"""The notebooks of the documents run, and what git has of them is without outputs."""

import json
import re

import pytest

from docs.notebooks import execute


def cells(notebook, kind):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", execute.NOTEBOOKS)
def test_it_is_kept_without_outputs(name):
    notebook = json.loads((execute.FOLDER / name).read_text())
    assert notebook["nbformat"] == 4
    assert cells(notebook, "code")
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", execute.NOTEBOOKS)
def test_it_runs(name, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    notebook = execute.executed(name, tmp_path)
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in printed
    # Both optimizers are named, each with a number.
    for method in ("SGD", "Entropy-SGD"):
        assert re.search(rf"^{method}: .*\d", printed, re.MULTILINE)
