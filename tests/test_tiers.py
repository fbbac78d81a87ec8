"""Which cases run in which tier, by a file of matrices that is collected as ours are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiers

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
import pytest
from tests import tiers

def pytest_addoption(parser):
    parser.addoption("--every-combination", action="store_true")

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    every = config.getoption("--every-combination")
    out = set(tiers.sort_into_tiers(items, every_combination=every))
    items[:] = [item for item in items if item not in out]
"""
MATRICES = """
import pytest
p = pytest.mark.parametrize

@p("a", [1, 2, 3, 4])
@p("b", [5, 6, 7])
@p("c", ["x", "y"])
def test_matrix(a, b, c): ...

@p("a", [1, 2, 3])
def test_row(a): ...

@p(("argument", "error", "why"), [(0, "no", "u"), (0, "yes", "v"), (1, "no", "v"), (1, "yes", "u"), (0, "no", "v")])
def test_table(argument, error, why): ...

@pytest.mark.whole
@p("a", [1, 2])
@p("b", [True, 1])
def test_whole(a, b): ...

@pytest.mark.few(3)
@p("a", [1, 2, 3, 4, 5])
def test_few(a): ...

@p("a", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.rare])])
def test_rare(a): ...

@p("a", [[1], [2]])
@p("b", [{}, []])
def test_that_cannot_be_hashed(a, b): ...

@pytest.fixture(params=[1, 2])
def made(request):
    return request.param

@p("a", [True, 1])
def test_fixture(a, made): ...
"""  # noqa: E501


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The cases of the default tier, of both, and of all combinations: {test: [case]} each."""
    folder = tmp_path_factory.mktemp("tiers")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(MATRICES)
    found = []
    for flags in (["-m", "not slow"], ["-m", "slow or not slow"], ["--every-combination"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-c", os.devnull,
             f"--rootdir={folder}", *flags, folder],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        cases = {}
        for line in done.stdout.splitlines():
            _, separator, case = line.partition("::")
            if separator:
                name, _, values = case.partition("[")
                cases.setdefault(name, []).append(values.rstrip("]"))
        found.append(cases)
    return found


@pytest.mark.slow
def test_the_default_tier_shows_each_value(collected):
    cases = [case.split("-") for case in collected[0]["test_matrix"]]
    assert [sorted(set(column)) for column in zip(*cases, strict=True)] == [
        ["x", "y"], ["5", "6", "7"], ["1", "2", "3", "4"]
    ]  # fmt: skip
    assert len(cases) == 4


@pytest.mark.slow
def test_both_tiers_show_each_pair(collected):
    cases = [case.split("-") for case in collected[1]["test_matrix"]]
    for one, other, count in ((0, 1, 6), (0, 2, 8), (1, 2, 12)):
        assert len({(case[one], case[other]) for case in cases}) == count
    assert 12 <= len(cases) < 24
    assert set(collected[0]["test_matrix"]) < set(collected[1]["test_matrix"])


@pytest.mark.slow
def test_every_combination_is_all(collected):
    counts = {name: len(cases) for name, cases in collected[2].items()}
    assert counts["test_matrix"] == 24
    assert counts["test_rare"] == 2


@pytest.mark.slow
def test_one_parameter_and_a_table_are_no_matrix(collected):
    assert len(collected[0]["test_row"]) == 3
    # No pair of columns is new in the last row, and still it is another case.
    assert len(collected[0]["test_table"]) == 5


@pytest.mark.slow
def test_marks(collected):
    assert len(collected[0]["test_whole"]) == 4
    assert collected[0]["test_few"] == ["1", "3", "5"]
    assert collected[1]["test_few"] == ["1", "2", "3", "4", "5"]
    assert collected[0]["test_rare"] == collected[1]["test_rare"] == ["1"]


@pytest.mark.slow
def test_values_are_told_apart(collected):
    """True is not 1, a fixture's parameters count, and a list needs no hash."""
    assert len(collected[1]["test_fixture"]) == 4
    assert len(collected[0]["test_fixture"]) == 2
    assert len(collected[0]["test_that_cannot_be_hashed"]) == 2


def test_cover_takes_no_more_than_it_needs():
    cases = [{"a": a, "b": b} for a in range(3) for b in range(5)]
    assert len(tiers.cover(cases, 1)) == 5
    assert tiers.cover(cases, 2) == list(range(15))
