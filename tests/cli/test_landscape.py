"""`landscape` on tiny runs: tables, files and pictures of every measure, and every refusal."""

import csv
import json
import os
import shutil
import signal
import struct
import time

import keras
import numpy as np
import pytest

from esgd_tf import data
from esgd_tf.cli.measures import MEASURES
from esgd_tf.landscape import HessianOperator, RelativeOperator, eigenpairs, local_energy
from esgd_tf.runs.checkpoints import load_network
from tests.cli.helpers import esgd_tf, train

TINY = ("--preset", "quickstart", "-m", "lenet-2-3-8", "-b", "1750", "-e", "3", "--dropout", "0",
        "--keep_every", "1")  # fmt: skip
QUICK = ("-N", "40", "--probes", "2", "--steps", "5", "--eigenvalues", "2", "--perturbations", "3",
         "--sigmas", "0.1,0.2", "--gammas", "100,1000", "--chain_steps", "8", "--points", "3",
         "--threshold", "0.001", "--step_size", "0.02", "--bound_samples", "3", "--bits", "6,2",
         "--fractions", "0.5,0.9")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each of two optimizers, and the first one again, as if by another seed."""
    logdir = tmp_path_factory.mktemp("runs")
    for name, flags in {"esgd-1": ("-L", "3"), "sgd-1": ("-opt", "momentum")}.items():
        assert train(*TINY, *flags, "-s", "1", "--logdir", logdir, "-n", name) == 0
    shutil.copytree(logdir / "esgd-1", logdir / "esgd-2")
    config = json.loads((logdir / "esgd-2" / "config.json").read_text())
    config["run"]["seed"] = 2
    (logdir / "esgd-2" / "config.json").write_text(json.dumps(config))
    return [logdir / name for name in ("esgd-1", "sgd-1", "esgd-2")]


@pytest.fixture(scope="module")
def everything(runs, tmp_path_factory):
    """All measures of two runs, once; the folder and what was printed."""
    out = tmp_path_factory.mktemp("everything") / "wide"
    capture = pytest.MonkeyPatch()
    lines = []
    capture.setattr("builtins.print", lambda *a, **k: lines.append(" ".join(map(str, a))))
    with capture.context(), pytest.warns(UserWarning, match="chains have not converged"):
        status = esgd_tf(
            "landscape", *runs[:2], *(f"--{m}" for m in MEASURES), *QUICK, "--out", out
        )
    capture.undo()
    assert status == 0
    return out, "\n".join(lines)


def refused(capsys, status, *words):
    """Return the one line that the command writes to stderr."""
    assert esgd_tf("landscape", *words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.slow
def test_kept_checkpoints_are_those_of_the_epochs(runs):
    kept = sorted((runs[0] / "checkpoints" / "kept").iterdir())
    assert [path.name for path in kept] == [f"epoch-0000{k}.keras" for k in (1, 2, 3)]
    assert [load_network(path)[1].batches for path in kept] == [5, 10, 15]


def measured():
    """Return the loss and the images that are measured: chosen by seed 0, as in training."""
    images = data.load("fashion_mnist_small")
    chosen = np.sort(np.random.default_rng(0).choice(len(images.train_labels), 40, replace=False))
    prepare = data.preprocessor("meanstd", images)
    x = np.asarray(prepare(images.train_images[chosen].astype("float32")))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return loss, (x, images.train_labels[chosen])


@pytest.mark.slow
def test_numbers_are_those_of_the_library(runs, everything):
    """The same images, chosen by seed 0, preprocessed as in training."""
    document = json.loads((everything[0] / "landscape.json").read_text())
    assert document["settings"]["samples"] == 40
    model, _ = load_network(runs[1] / "checkpoints" / "last.keras")
    loss, (x, y) = measured()
    found = {r["measure"]: r["result"] for r in document["results"] if r["label"] == "sgd-1"}
    top = eigenpairs(HessianOperator(model, loss, (x, y)), 2, tol=1e-3, max_matvecs=400)
    stored = found["spectrum"]["largest"]["eigenvalues"]
    np.testing.assert_allclose(stored, top.eigenvalues, rtol=1e-3)
    energy = local_energy(model, (x, y), "loss", sigmas=(0.1, 0.2), samples=3, loss=loss)
    np.testing.assert_allclose(
        found["local_energy"]["increase"]["train"]["loss"], energy.curve()[0], atol=1e-6
    )


@pytest.mark.slow
def test_units_are_those_of_the_relative_operator(runs, tmp_path, capsys):
    """And local entropy takes the Hessian all the same."""
    wide = tmp_path / "wide"
    line = (runs[1], *QUICK, "--spectrum", "--density", "--units", "weight", "--out", wide)
    assert esgd_tf("landscape", *line) == 0
    printed = capsys.readouterr().out
    assert "eigenvalues of the Hessian, per weight (the first" in printed
    assert "density of eigenvalues, per weight (±" in printed
    found = json.loads((wide / "landscape.json").read_text())["results"]
    stored = {r["measure"]: r["result"] for r in found}
    model, _ = load_network(runs[1] / "checkpoints" / "last.keras")
    hessian = HessianOperator(model, *measured())
    top = eigenpairs(RelativeOperator(hessian), 2, tol=1e-3, max_matvecs=400)
    np.testing.assert_allclose(
        stored["spectrum"]["largest"]["eigenvalues"], top.eigenvalues, rtol=1e-3
    )
    assert max(stored["density"]["nodes"]) <= top.eigenvalues[0] * 1.01


@pytest.mark.slow
def test_numbers_for_compare_are_a_few_of_each_measure(runs, everything):
    """All that `compare --measures` ranks; nothing of what has no one number."""
    document = json.loads((everything[0] / "landscape.json").read_text())
    for entry in document["results"]:
        numbers = entry["numbers"]
        assert all(len(row) == 5 and np.isfinite(row[3]) for row in numbers)
        assert len(numbers) <= 16
        # Short walks may not have escaped.
        assert (numbers == []) == (entry["measure"] in ("plane", "interpolate")) or (
            entry["measure"] == "random_walk"
        )


@pytest.mark.slow
def test_csv_has_every_measure_of_every_run(everything):
    with (everything[0] / "landscape.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {(row["run"], row["measure"]) for row in rows}
    alone = set(MEASURES) - {"interpolate"}
    expected = {(run, measure) for run in ("esgd-1", "sgd-1") for measure in alone}
    expected.add(("esgd-1 to sgd-1", "interpolate"))
    assert seen == expected
    assert all(np.isfinite(float(row["value"])) for row in rows if row["value"])
    energy = [r for r in rows if r["run"] == "sgd-1" and r["measure"] == "local_energy"]
    assert {(r["split"], r["metric"], r["at"]) for r in energy} == {
        (s, m, a) for s in ("train", "test") for m in ("error", "loss") for a in ("0.1", "0.2")
    }


@pytest.mark.slow
def test_a_picture_of_each_measure(everything):
    for measure in MEASURES:
        content = (everything[0] / f"{measure}.png").read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert width > 600 and height > 300
    assert len(list(everything[0].iterdir())) == len(MEASURES) + 2


@pytest.mark.slow
def test_tables_fit_a_terminal_and_compare_the_runs(everything):
    out, printed = everything
    lines = [line for line in printed.splitlines() if str(out) not in line]
    assert max(map(len, lines)) <= 80
    for title in ("PAC-Bayes bound", "kernels rounded", "without so many", "noisy test images"):
        assert title in printed
    for title in ("eigenvalues of the Hessian", "density of eigenvalues", "local energy",
                  "sharpness", "barriers on linear lines", "planes", "random walks",
                  "norms: w'Gw", "relative flatness of each layer", "no more than 10 % points",
                  "sharpness of groups of 40 images"):  # fmt: skip
        assert title in printed
    # Three kept checkpoints make a plane of their own.
    assert printed.count("checkpoints") >= 2
    assert "* the chains have not converged" in printed


@pytest.mark.slow
def test_seeds_of_one_experiment_share_a_color(runs, tmp_path):
    from esgd_tf.cli.landscape_report import Report
    from esgd_tf.cli.measures.measure import Entry
    from esgd_tf.runs.stored_run import StoredRun

    stored = [StoredRun.open(run) for run in runs]
    report = Report(stored, None, [], tmp_path)
    entries = [Entry(run, run.name, MEASURES["sharpness"], None) for run in stored]
    shown = list(report._shown(entries))
    assert [s.color for s in shown] == ["C0", "C1", "C0"]
    assert [s.label for s in shown] == ["entropy-sgd, L = 3 (2 seeds)", "sgd-1", None]


def test_one_measure_of_a_run(finished, tmp_path, capsys):
    out = tmp_path / "deep" / "wide"
    assert esgd_tf("landscape", finished, "--local_energy", *QUICK, "--out", out) == 0
    assert "40 test images, mean cross entropy" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "landscape.csv", "landscape.json", "local_energy.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_default_measures_of_one_run_on_the_test_split(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "wide"
    assert esgd_tf("landscape", runs[0], *QUICK, "--split", "test", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "Hessian, sharpness and paths on the test images" in printed
    assert sorted(p.name for p in out.iterdir()) == [
        "density.png", "landscape.csv", "landscape.json", "local_energy.png", "sharpness.png",
        "spectrum.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--sigmas", "0.1,x"), "--sigmas=0.1,x: must be a positive number"),
        (("--sigmas", "-1"), "--sigmas=-1: must be"),
        (("--ridge", "0"), "--ridge=0: must be a positive number"),
        (("--ridge", "1,2"), "--ridge is one number"),
        (("--rise", "x"), "--rise=x: must be a positive number"),
        (("--rise", "1,2"), "--rise is one number"),
        (("--units", "layer"), "units"),
        (("--gammas", "3"), "--gammas=3: must be 2 or more positive numbers"),
        (("--threshold", "nan"), "--threshold=nan"),
        (("--threshold", "1,2"), "one number each"),
        (("--bits", "4.5"), "--bits=4.5: must be whole numbers from 2 to 24"),
        (("--bits", "1"), "--bits=1: must be whole numbers"),
        (("--fractions", "0.5,1.5"), "--fractions=0.5,1.5: must be numbers from 0 to 1"),
        (("--noise_kinds", "gaussian"), "gaussian needs its standard deviation"),
        (("--noise_kinds", "pixel_shuffle"), "must be different kinds of noise"),
        (("--noise_kinds", "gaussian:1,gaussian:1"), "must be different kinds of noise"),
        (("--samples", "1"), "samples"),
        (("--split", "validation"), "split"),
        (("--interpolate",), "--interpolate needs two runs"),
        (("--no_such_flag",), "no_such_flag"),
    ],
)
def test_bad_flags(finished, capsys, flags, sentence):
    assert sentence in refused(capsys, 2, finished, *flags)


def test_other_refusals(finished, tmp_path, capsys):
    assert "give RUN" in refused(capsys, 2)
    assert "named twice" in refused(capsys, 2, finished, finished)
    assert "no run folder" in refused(capsys, 1, tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in refused(capsys, 2, finished, "--out", tmp_path / "file")


@pytest.mark.slow
def test_no_line_between_networks_of_two_architectures(runs, finished, tmp_path, capsys):
    line = ("landscape", runs[0], finished, "--interpolate", *QUICK, "--out", tmp_path / "out")
    assert esgd_tf(*line) == 1
    assert "there is no line between them" in capsys.readouterr().err


def fails_with(monkeypatch, measure, error, *, of="sgd-1"):
    """Let a measure of a run fail."""
    kind = type(MEASURES[measure])
    before = kind.take

    def failing(self, bench, *networks):
        if networks[0].run.name == of:
            raise error
        return before(self, bench, *networks)

    monkeypatch.setattr(kind, "take", failing)


def missing_in(out):
    document = json.loads((out / "landscape.json").read_text())
    found = {(r["label"], r["measure"]) for r in document["results"]}
    missing = {(m["label"], m["measure"]): m["reason"] for m in document["missing"]}
    assert not found & set(missing)
    return found, missing


class TestWhatIsLeftOfAReport:
    """A measure that fails, or Ctrl-C, costs none that is done."""

    COMMAND = ("--random_walk", "--density", "--sharpness", *QUICK)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (MemoryError("The basis takes 300 GiB."), "takes 300 GiB"),
            (TypeError("unhashable"), "unforeseen went wrong (TypeError: unhashable)"),
        ],
        ids=["foreseen", "unforeseen"],
    )
    def test_a_measure_that_fails(self, runs, tmp_path, monkeypatch, capsys, error, words):
        fails_with(monkeypatch, "sharpness", error)
        out = tmp_path / "wide"
        assert esgd_tf("landscape", *runs[:2], *self.COMMAND, "--out", out) == 1
        captured = capsys.readouterr()
        sentence = captured.err.strip().splitlines()[-1]
        assert "--sharpness of sgd-1 failed" in sentence
        assert words in sentence
        assert "Traceback" not in captured.err
        assert "random walks" in captured.out
        found, missing = missing_in(out)
        assert len(found) == 5
        assert list(missing) == [("sgd-1", "sharpness")]
        assert words in missing["sgd-1", "sharpness"]
        # A picture of the run that was measured.
        assert (out / "sharpness.png").stat().st_size > 0

    @pytest.mark.slow
    def test_ctrl_c(self, runs, tmp_path, monkeypatch, capsys):
        fails_with(monkeypatch, "random_walk", KeyboardInterrupt())
        out = tmp_path / "wide"
        assert esgd_tf("landscape", *runs[:2], *self.COMMAND, "--out", out) == 130
        assert "says which are missing" in capsys.readouterr().err
        found, missing = missing_in(out)
        assert {m for _, m in found if _ == "esgd-1"} == {"density", "sharpness", "random_walk"}
        assert missing == {("sgd-1", "random_walk"): None}
        with (out / "landscape.csv").open() as file:
            rows = {(row["run"], row["measure"]) for row in csv.DictReader(file)}
        assert rows == found

    @pytest.mark.parametrize("becomes", ["an error", "nothing"])
    @pytest.mark.slow
    def test_ctrl_c_that_python_has_lost(self, runs, tmp_path, monkeypatch, capsys, becomes):
        """In an import it may become another error, in a destructor it is dropped."""
        kind = type(MEASURES["sharpness"])
        before = kind.take

        def interrupted(self, bench, *networks):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except KeyboardInterrupt:
                if becomes == "an error":
                    raise ImportError("half of a module") from None
            return before(self, bench, *networks)

        monkeypatch.setattr(kind, "take", interrupted)
        out = tmp_path / "wide"
        assert esgd_tf("landscape", runs[0], *self.COMMAND, "--out", out) == 130
        assert "failed" not in capsys.readouterr().out
        found, missing = missing_in(out)
        assert ("esgd-1", "density") in found
        assert ("esgd-1", "random_walk") in missing

    @pytest.mark.slow
    def test_a_report_of_before_is_not_taken_for_this_one(self, runs, tmp_path, monkeypatch):
        out = tmp_path / "wide"
        assert esgd_tf("landscape", runs[0], "--density", *QUICK, "--out", out) == 0
        fails_with(monkeypatch, "density", KeyboardInterrupt(), of="esgd-1")
        assert esgd_tf("landscape", runs[0], "--density", *QUICK, "--out", out) == 130
        assert missing_in(out) == (set(), {("esgd-1", "density"): None})

    @pytest.mark.slow
    def test_nothing_is_missing_of_a_whole_report(self, everything):
        found, missing = missing_in(everything[0])
        assert not missing
        assert len(found) == 2 * (len(MEASURES) - 1) + 1
