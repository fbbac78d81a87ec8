"""The documentation site: it builds without a warning, and names everything that is public."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "optimizers",
    "baselines",
    "training",
    "replicas",
    "landscape",
    "walkers",
    "data",
    "models",
    "runs",
)


def paths(room):
    """The names of a room, by what the reference calls them: where they are defined."""
    module = importlib.import_module(f"esgd_tf.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if hasattr(value, "__name__"):
            home = getattr(value, "__module__", None)
            yield value.__name__ if home is None else f"{home}.{name}"
        else:
            yield f"{module.__name__}.{name}"  # a constant, which stands in a table


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(room):
    text = (ROOT / "docs" / "reference" / f"{room}.md").read_text()
    written = set(re.findall(r"^::: (\S+)$|^\| `([\w.]+)`", text, re.MULTILINE))
    assert {entry or constant for entry, constant in written} == set(paths(room))


def test_every_room_has_a_reference():
    import esgd_tf

    assert set(ROOMS) == {name for name in esgd_tf.__all__ if not name[0].isupper()} & {
        path.name for path in (ROOT / "esgd_tf").iterdir() if path.is_dir()
    }
    assert {path.stem for path in (ROOT / "docs" / "reference").iterdir()} == set(ROOMS)


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path, monkeypatch):
    """Strict: a link that leads nowhere, a page that is missing, a cell that fails is an error."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.setenv("EXECUTE_NOTEBOOKS", "true")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernels find a checkout as it is
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    pages = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("index.html")}
    assert {"index.html", "tuning/index.html", "reference/optimizers/index.html"} <= pages
    assert "langevin_steps" in (tmp_path / "reference/optimizers/index.html").read_text()
    for name in ("drop_in", "how_wide"):
        page = (tmp_path / "notebooks" / name / "index.html").read_text()
        assert "data:image/png;base64" in page or "image/png" in page
        assert "retracing" not in page
        # Both optimizers are named, each with a number.
        for method in ("SGD", "Entropy-SGD"):
            assert re.search(rf"(?<![-\w]){method}: .*\d", page)
    # Every page of docs/ can be reached.
    reached = re.findall(r"[\w/]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text())
    there = [p for p in (ROOT / "docs").rglob("*") if p.suffix in (".md", ".ipynb")]
    there = [p.relative_to(ROOT / "docs").as_posix() for p in there]
    assert sorted(p for p in there if "checkpoint" not in p) == sorted(set(reached))
