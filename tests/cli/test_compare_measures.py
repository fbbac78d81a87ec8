"""`compare --measures` on what `landscape` would have written of runs written by hand."""

import json

import pytest

from tests.cli.helpers import esgd_tf
from tests.cli.test_compare import write

__all__ = ["write"]

ERRORS = (0.1, 0.2, 0.3, 0.4, 0.5)


@pytest.fixture
def runs(write):
    return [write(f"r{k}", (1 - e,), seed=k) for k, e in enumerate(ERRORS)]


def landscape(path, runs, numbers, gaps=None, **changes):
    """Write landscape.json: `numbers` has the value of each run, by (measure, metric)."""
    results = []
    for k, run in enumerate(runs):
        for (measure, metric), values in numbers.items():
            result = {}
            if gaps:
                result = {"reference": {"test": {"error": 0.5}, "train": {"error": 0.5 - gaps[k]}}}
            if values[k] is None:
                continue
            results.append({
                "run": str(run), "label": run.name, "seed": k, "optimizer": "entropy-sgd",
                "measure": measure, "result": result,
                "numbers": [["", metric, 0.1, values[k], ""]], **changes,
            })  # fmt: skip
    path.mkdir(exist_ok=True)
    (path / "landscape.json").write_text(json.dumps({"results": results}))
    return path


def compare(tmp_path, *words, out="wide"):
    return esgd_tf(
        "compare", *words, "--measures", "--landscape", tmp_path / out,
        "--out", tmp_path / "out.png",
    )  # fmt: skip


def rows_of(printed):
    return {line.split("  ")[0]: line.split() for line in printed.splitlines() if "0.1 " in line}


NUMBERS = {
    ("sharpness", "sam"): (1, 2, 3, 4, 5),
    ("spectrum", "largest"): (5, 4, 3, 2, 1),
    ("local_energy", "error"): (1, 2, 3, 5, 4),
    ("density", "trace"): (7, 7, 7, 7, 7),
}


def test_each_measure_is_ranked_with_error_and_gap(runs, tmp_path, capsys):
    gaps = (0.5, 0.4, 0.3, 0.2, 0.1)
    landscape(tmp_path / "wide", runs, NUMBERS, gaps)
    assert compare(tmp_path, *runs) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert rows["sharpness, sam, 0.1"][3:] == ["+1.00", "+1.00", "+1.00", "-1.00", "-1.00", "-1.00"]
    assert rows["spectrum, largest, 0.1"][3] == "-1.00"
    assert rows["local_energy, error, 0.1"][3] == "+0.80"
    low, high = map(float, rows["local_energy, error, 0.1"][4:6])
    assert -1 <= low < 0.8 <= high <= 1
    assert len(rows) == 3
    words = " ".join(printed.split())
    assert "Left out: 1 numbers that are the same in all runs" in words
    assert "2,000 samples of the runs with replacement, seed 0" in words
    assert "the images that `landscape` measured on" in words
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80


def test_the_gap_of_history_where_no_measure_took_both_splits(runs, tmp_path, capsys):
    """Its training error falls as fast again as the test error rises: the gap ranks likewise."""
    for run, error in zip(runs, ERRORS, strict=True):
        rows = [
            "epoch,gradient_evaluations,val_accuracy,val_loss,seconds,accuracy",
            f"1,88,{1 - error},1,1,{0.2 + 2 * error}" if run != runs[0] else "1,88,0.9,1,1,0.1",
        ]
        (run / "history.csv").write_text("\n".join(rows) + "\n")
    landscape(tmp_path / "wide", runs, {("sharpness", "sam"): (1, 2, 3, 4, 5)})
    assert compare(tmp_path, *runs) == 0
    printed = capsys.readouterr().out
    assert "from history.csv" in " ".join(printed.split())
    # Gaps -80, 10, 40, 70, 100 percent: errors less training errors.
    row = rows_of(printed)["sharpness, sam, 0.1"]
    assert (row[3], row[6]) == ("+1.00", "+1.00")
    for run in runs:
        (run / "history.csv").write_text(
            "epoch,gradient_evaluations,val_accuracy,val_loss,seconds\n"
            f"1,88,{0.9 - 0.1 * runs.index(run)},1,1\n"
        )
    assert compare(tmp_path, *runs) == 0
    row = rows_of(capsys.readouterr().out)["sharpness, sam, 0.1"]
    assert (row[3], row[-2:]) == ("+1.00", ["-", "-"])


def test_markdown(runs, tmp_path, capsys):
    landscape(tmp_path / "wide", runs, NUMBERS)
    assert compare(tmp_path, *runs, "--markdown") == 0
    printed = capsys.readouterr().out
    assert "| measure | test error | 95 % | gap | 95 % |" in printed
    assert "| sharpness, sam, 0.1 | +1.00 | +1.00 +1.00 |" in printed


def test_runs_that_have_moved_are_known_by_their_names(runs, tmp_path, capsys):
    landscape(tmp_path / "wide", runs, NUMBERS, run="runs/elsewhere")
    assert compare(tmp_path, *runs) == 0
    assert rows_of(capsys.readouterr().out)["sharpness, sam, 0.1"][3] == "+1.00"


def test_numbers_that_not_all_runs_have_are_left_out(runs, tmp_path, capsys):
    numbers = {**NUMBERS, ("sharpness", "asam"): (1, 2, None, 4, 5)}
    landscape(tmp_path / "wide", runs, numbers)
    assert compare(tmp_path, *runs) == 0
    printed = capsys.readouterr().out
    assert "asam" not in printed
    assert "Left out: 1 numbers that not all runs have" in " ".join(printed.split())


def refusal(tmp_path, capsys, *words, status=1):
    assert compare(tmp_path, *words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
    return captured.err


def test_what_cannot_be_ranked(runs, tmp_path, capsys):
    assert "There is no" in refusal(tmp_path, capsys, *runs)
    wide = landscape(tmp_path / "wide", runs[:4], NUMBERS)
    assert "has no measures of r4" in refusal(tmp_path, capsys, *runs)
    assert "needs 4 runs or more to rank, and there are 3" in refusal(tmp_path, capsys, *runs[:3])
    numbers = {("a", "x"): (1, 2, 3, 4, None), ("b", "x"): (None, None, None, None, 5)}
    landscape(wide, runs, numbers)
    assert "no measure that was taken of all these runs" in refusal(tmp_path, capsys, *runs)
    for text in ("{", "[]", '{"results": 3}', '{"results": [{"run": "x"}]}'):
        (wide / "landscape.json").write_text(text)
        error = refusal(tmp_path, capsys, *runs)
        assert "is damaged" in error or "by another version" in error
