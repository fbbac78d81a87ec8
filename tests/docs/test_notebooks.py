"""What git has of the notebooks is without outputs; `test_site.py` runs them."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.mark.parametrize("name", ["drop_in.ipynb", "how_wide.ipynb"])
def test_it_is_kept_without_outputs(name):
    assert {path.name for path in FOLDER.glob("*.ipynb")} == {"drop_in.ipynb", "how_wide.ipynb"}
    notebook = json.loads((FOLDER / name).read_text())
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
