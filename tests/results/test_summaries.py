"""Summaries: whole or not at all; and the tables and figures made of them."""

import os

import pytest

from results._plots import draw
from results._summaries import curve_of, measured, read_summaries, write_summary
from tests.results.plans import CHOOSING, TINY, job, summary


def test_a_summary_is_read_as_it_was_written(tmp_path):
    written = summary(job(TINY, "sgd-s1"), 12.5)
    write_summary(tmp_path / "new", written)
    assert read_summaries(tmp_path / "new") == {"sgd-s1": written}


def test_a_summary_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    one = job(TINY, "sgd-s1")
    path = write_summary(tmp_path, summary(one, 12.5))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_summary(tmp_path, summary(one, 1.0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_summary_is_named_in_one_sentence(tmp_path):
    path = write_summary(tmp_path, summary(job(TINY, "sgd-s1"), 12.5))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(SystemExit, match=r"sgd-s1\.json is no summary .*: remove it\.$"):
        read_summaries(tmp_path)


def test_a_curve_has_at_most_a_hundred_rows_and_the_last_one():
    names = ("val_accuracy", "val_loss", "accuracy", "loss", "seconds")
    rows = [
        {"epoch": str(k), "gradient_evaluations": f"{7 * k}.0", **dict.fromkeys(names, "0.25")}
        for k in range(1, 306)
    ]
    curve = curve_of(rows)
    assert curve["epoch"] == [*(4.0 * k for k in range(1, 77)), 305.0]
    assert curve["gradient_evaluations"][-1] == 7 * 305
    assert set(curve["error"]) == {75.0}
    assert set(curve["loss"]) == {0.25}


def test_what_a_report_has_is_kept_and_what_it_lacks_is_named():
    values = {"error": [0.1, 0.2, 0.3], "loss": [1.0, 2.0, 3.0]}
    report = {
        "missing": [{"label": "a", "measure": "spectrum", "reason": "no memory"}],
        "results": [
            {"measure": "quantization", "result": {"values": {"test": values}}},
            {"measure": "local_energy", "result": {"increase": {}}},
        ],
    }
    kept, missing = measured(report)
    assert kept == {
        "quantization": {
            "error at 4 bits (%)": 10.0, "error at 3 bits (%)": 20.0, "error at 2 bits (%)": 30.0,
        }
    }  # fmt: skip
    assert missing["spectrum"] == "no memory"
    assert missing["local_energy"].startswith("landscape.json has it in another form")


def test_the_table_has_mean_and_spread_and_the_figures_are_pictures(tmp_path):
    tried = {
        name: summary(job(CHOOSING, name), error)
        for name, error in (("sgd-small-choice", 30.0), ("sgd-large-choice", 20.0))
    }
    for name, error in (("sgd-s1", 10.0), ("sgd-s2", 14.0)):
        tried[name] = summary(job(CHOOSING, name, tried), error)
    written = draw(CHOOSING, "choosing", tried, tmp_path)
    assert [path.name for path in written] == ["table.md", "curves.png", "bits.png", "measures.png"]
    rows = [line for line in written[0].read_text().splitlines() if line.startswith("| SGD")]
    # The candidates are no results.
    assert rows == [
        "| SGD | large | 1 2 | 12 ± 2.8 | 1 ± 0 | 11 ± 2.8 | 0.1 ± 0 | 20 |",
        "| SGD | 3 ± 0 | -1 ± 0 | 12 ± 2.8 | 13 ± 2.8 | 14 ± 2.8 |",
    ]
    assert "4 of 8 trainings are done." in written[0].read_text()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_one_seed_is_plotted_without_a_spread(tmp_path):
    one = summary(job(TINY, "sgd-s1"), 10.0, measures={})
    written = draw(TINY, "tiny", {"sgd-s1": one}, tmp_path)
    assert [path.name for path in written] == ["table.md", "curves.png"]


def test_without_results_there_is_nothing_to_plot(tmp_path):
    with pytest.raises(SystemExit, match=r"No result of tiny has a summary yet: train it first\.$"):
        draw(TINY, "tiny", {}, tmp_path)
