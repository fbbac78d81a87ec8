"""Which cases of a matrix run in which tier.

A test with several parameters is a matrix. The default tier runs as many of its cases as show each
value of each parameter once; the slow tier those that are needed besides to show each pair of
values once; `--every-combination` all of them. A fault that one value causes, or two together,
shows in these; one that needs three values at once is for `--every-combination`.

Which cases these are depends on the order of the parametrisations alone, so that all processes of a
run agree. `@pytest.mark.whole` has the default tier run a matrix whole; `@pytest.mark.few(n)` has
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
    left_out = [] if every_combination else [i for i in items if i.get_closest_marker("rare")]
    for test in _by_test(items).values():
        cases = [case_of(item) for item in test]
        quick = test
        # One parameter alone is no matrix, be it a table of several columns.
        if len(cases[0]) > 1 and not test[0].get_closest_marker("whole"):
            quick = [test[n] for n in cover(cases, 1)]
            if not every_combination:
                pairs = {*quick, *(test[n] for n in cover(cases, 2))}
                left_out += [item for item in test if item not in pairs]
        if marker := test[0].get_closest_marker("few"):
            quick = [item for item in quick if not item.get_closest_marker("slow")]
            quick = _spread(quick, marker.args[0])
        for item in set(test) - set(quick):
            item.add_marker(pytest.mark.slow)
    return left_out


def _by_test(items: list[pytest.Item]) -> dict[object, list[pytest.Item]]:
    tests: dict[object, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault((item.nodeid.split("[")[0], tuple(case_of(item))), []).append(item)
    return tests


def _spread(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    """Return so many of the items: the first, the last, and some between."""
    if count >= len(items):
        return items
    return [items[round(n * (len(items) - 1) / max(count - 1, 1))] for n in range(count)]


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


def _key(value: object) -> Hashable:
    """Return what tells a value of a parameter from others: True is not 1, a list is itself."""
    try:
        hash(value)
    except TypeError:
        return type(value), repr(value)
    return type(value), value
