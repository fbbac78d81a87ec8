"""Which cases of a matrix run in which tier.

A test with several parameters is a matrix. The default tier runs as many of its cases as show each
value of each parameter once; the slow tier those that are needed besides to show each pair of
values once; `--every-combination` all of them. A fault that one value causes, or two together,
shows in these; one that needs three values at once is for `--every-combination`.

Which cases these are depends on the order of the parametrisations alone, so that all processes of a
run agree. `@pytest.mark.whole` has the default tier run a matrix whole; `@pytest.mark.first(n)` has
it run the first n cases of a test, of which there may be many for one parameter: the rest is slow;
`@pytest.mark.rare` leaves a case to `--every-combination`.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable

import pytest

# A case: its values by the names of its parameters.
Case = dict[str, Hashable]


def cover(cases: Iterable[Case], order: int) -> list[int]:
    """Return the numbers of cases that show each combination of `order` values once, greedily."""
    cases = list(cases)
    wanted = [set(itertools.combinations(tuple(case.items()), order)) for case in cases]
    left = set().union(*wanted)
    chosen: list[int] = []
    for number, combinations in enumerate(wanted):
        # In the order of the file, but for cases that show little that is new.
        if len(combinations & left) == len(combinations):
            chosen.append(number)
            left -= combinations
    while left:
        best = max(range(len(cases)), key=lambda n: (len(wanted[n] & left), -n))
        chosen.append(best)
        left -= wanted[best]
    return sorted(chosen)


def sort_into_tiers(items: list[pytest.Item], *, every_combination: bool) -> list[pytest.Item]:
    """Mark the cases of matrices that are slow; return the items that are left out altogether."""
    matrices: dict[tuple[object, ...], list[pytest.Item]] = {}
    for item in items:
        values = case_of(item)
        # One parameter alone is no matrix, be it a table of several columns.
        if len(values) > 1 and not item.get_closest_marker("whole"):
            key = (item.nodeid.split("[")[0], tuple(values))
            matrices.setdefault(key, []).append(item)
    for cases in _many(items).values():
        for item in cases[item_count(cases[0]) :]:
            item.add_marker(pytest.mark.slow)
    left_out = [] if every_combination else [i for i in items if i.get_closest_marker("rare")]
    for matrix in matrices.values():
        cases = [case_of(item) for item in matrix]
        first = {matrix[n] for n in cover(cases, 1)}
        pairs = first | {matrix[n] for n in cover(cases, 2)}
        for item in matrix:
            if item in first:
                continue
            item.add_marker(pytest.mark.slow)
            if item not in pairs and not every_combination:
                left_out.append(item)
    return left_out


def case_of(item: pytest.Item) -> Case:
    """Return the values of a case: one for each `parametrize`, and for each parametrised fixture.

    What one `parametrize` gives together, such as an argument and its error, is one value: thinned
    by columns, a table would lose rows. Not `callspec.indices`, which pytest 8 gives the numbers of
    the cases.
    """
    spec = getattr(item, "callspec", None)
    left = {} if spec is None else dict(spec.params)
    case: Case = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        names = [name.strip() for name in names if name.strip() in left]
        if names:
            case[",".join(names)] = tuple(_key(left.pop(name)) for name in names)
    case.update((name, _key(value)) for name, value in left.items())
    return case


def item_count(item: pytest.Item) -> int:
    """Return how many cases of a test the default tier runs, by its marker `first`."""
    marker = item.get_closest_marker("first")
    assert marker is not None
    return int(marker.args[0])


def _many(items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """Return the cases of tests that have the marker `first`, by the test."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("first"):
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    return tests


def _key(value: object) -> Hashable:
    """Return what tells a value of a parameter from others: True is not 1, a list is itself."""
    try:
        hash(value)
    except TypeError:
        return type(value), repr(value)
    return type(value), value
