"""The record that every measurement returns, and the bar that is shown meanwhile."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes


@dataclasses.dataclass(frozen=True, eq=False)
class Inner(Result):
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Outer(Result):
    numbers: np.ndarray
    by_split: dict
    several: tuple
    inner: Inner
    scalar: float
    name: str | None
    large: np.ndarray = dataclasses.field(metadata={"written": False})


def outer(**changes):
    values = {
        "numbers": np.arange(3.0),
        "by_split": {"train": {"loss": np.arange(2.0)}, 5: np.int64(7)},
        "several": (np.ones(2), [np.zeros(1)]),
        "inner": Inner(np.array([True, False])),
        "scalar": np.float32(0.5),
        "name": None,
        "large": np.ones(1000),
    }
    return Outer(**{**values, **changes})


class TestFrozen:
    def test_fields_cannot_be_set(self):
        with pytest.raises(AttributeError):
            outer().scalar = 1.0

    def test_arrays_are_read_only_wherever_they_are(self):
        found = outer()
        arrays = (
            found.numbers, found.large, found.by_split["train"]["loss"], found.several[0],
            found.several[1][0], found.inner.numbers,
        )  # fmt: skip
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1

    @pytest.mark.parametrize("cut", [slice(None), slice(1, None), slice(None, None, 2)])
    def test_the_arrays_of_the_caller_stay_theirs(self, cut):
        """Neither are they frozen, nor does writing to them change the result."""
        mine, nested = np.arange(6.0), np.arange(6.0)
        found = outer(numbers=mine[cut], by_split={"train": {"loss": nested[cut]}})
        before = mine[cut].copy()
        mine += 10
        nested += 10
        np.testing.assert_array_equal(found.numbers, before)
        np.testing.assert_array_equal(found.by_split["train"]["loss"], before)

    def test_the_containers_of_the_caller_stay_theirs(self):
        mine = {"train": {"loss": np.arange(2.0)}}
        found = outer(by_split=mine)
        mine["train"]["loss"] = None
        mine["test"] = None
        assert list(found.by_split) == ["train"]
        np.testing.assert_array_equal(found.by_split["train"]["loss"], [0, 1])

    def test_a_read_only_view_of_a_writable_array_is_copied(self):
        mine = np.arange(3.0)
        view = mine[:]
        view.setflags(write=False)
        found = outer(numbers=view)
        mine[0] = 5
        assert found.numbers[0] == 0

    def test_read_only_arrays_are_not_copied(self):
        mine = np.arange(3.0)
        mine.setflags(write=False)
        assert outer(numbers=mine).numbers is mine

    def test_order_in_memory_is_kept(self):
        assert outer(numbers=np.ones((3, 4), order="F")).numbers.flags.f_contiguous


class TestToDict:
    def test_is_what_json_wants(self):
        expected = {
            "numbers": [0.0, 1.0, 2.0],
            "by_split": {"train": {"loss": [0.0, 1.0]}, "5": 7},
            "several": [[1.0, 1.0], [[0.0]]],
            "inner": {"numbers": [True, False], "measured_at": "weights"},
            "scalar": 0.5,
            "name": None,
            "measured_at": "weights",
        }
        written = outer().to_dict()
        assert written == expected
        assert json.loads(json.dumps(written)) == expected
        assert type(written["scalar"]) is float
        assert type(written["by_split"]["5"]) is int

    def test_leaves_out_what_is_not_to_be_written(self):
        assert "large" not in outer().to_dict()

    def test_lists_are_of_their_own(self):
        found = outer()
        found.to_dict()["by_split"]["train"]["loss"][0] = 9
        assert found.by_split["train"]["loss"][0] == 0


def test_a_result_draws_itself():
    with pytest.raises(NotImplementedError):
        outer().plot()


class TestAxes:
    def test_given_ones_are_used(self):
        _, ax = plt.subplots()
        assert axes(ax) is ax

    def test_new_ones_have_a_figure_of_their_own(self):
        _, mine = plt.subplots()
        one, two = axes(None), axes(None)
        assert len({id(a.figure) for a in (mine, one, two)}) == 3
        plt.close("all")


class Terminal:
    """A stream that says whether it is a terminal."""

    def __init__(self, is_one):
        self.is_one, self.text = is_one, ""

    def isatty(self):
        return self.is_one

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class TestProgress:
    @pytest.mark.parametrize(
        ("terminal", "asked", "shown"),
        [
            (False, None, False),
            (True, None, True),
            (False, True, True),
            (True, False, False),
            (False, False, False),
        ],
    )
    def test_is_shown_on_a_terminal_or_if_asked(self, monkeypatch, terminal, asked, shown):
        stream = Terminal(terminal)
        monkeypatch.setattr("sys.stderr", stream)
        with progress_bar(3, "plane", asked) as bar:
            bar.update(1)
        assert ("plane" in stream.text) == shown
        assert bool(stream.text) == shown

    def test_says_how_far_it_is(self, capsys):
        with progress_bar(3, "plane", True) as bar:
            bar.update(2)
            bar.refresh()
        out, err = capsys.readouterr()
        assert out == ""
        assert "2/3" in err
        assert max(len(line) for line in err.replace("\r", "\n").split("\n")) <= 80
