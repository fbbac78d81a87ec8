"""What is measured, where the answer is known."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import data
from esgd_tf.walkers import Problem, Settings
from esgd_tf.walkers.measures import Measures, NotFiniteLossError
from esgd_tf.walkers.problem import cross_entropy, error, joined
from esgd_tf.walkers.records import read_table
from tests.walkers.helpers import TINY, experiment, gradient, linear, of_kind, problem, weights_of


@pytest.fixture(scope="module")
def measures():
    inputs = keras.Input((1,))
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    one = (np.ones((4, 1), "float32"), np.zeros((4, 2), "float32"))
    settings = Settings(**{**TINY, "n_workers": 1, "resolution": 4})

    def wells(y, w):
        return (w[:, 0] ** 2 - 1) ** 2

    return Measures(network, Problem(one, one, 1), settings, wells, lambda y, w: 0.0 * w[:, 0])


class TestTwoWells:
    """f(w) = (w² - 1)², with minima at -1 and 1 and a barrier of 1 between them."""

    @staticmethod
    def at(w):
        return [np.array([[w]], "float32")]

    def test_barrier_between_the_minima(self, measures):
        row = measures.line(self.at(-1.0), self.at(1.0), "linear")
        w = np.arange(-4, 9) / 4 * 2 - 1
        np.testing.assert_allclose(row["train"]["loss"], (w**2 - 1) ** 2, atol=1e-5)
        np.testing.assert_allclose(
            row["train"]["gradient_norm"], abs(4 * w * (w**2 - 1)), atol=1e-4
        )
        assert row["train"]["barrier"] == pytest.approx(1.0, abs=1e-6)
        assert row["test"]["barrier"] == pytest.approx(1.0, abs=1e-6)
        assert row["distance"] == pytest.approx(2.0)

    def test_spherical_line_goes_from_well_to_well(self, measures):
        """On a line through 0 every point is rescaled to norm 1, but 0 itself has no direction."""
        row = measures.line(self.at(-1.0), self.at(1.0), "spherical")
        off_zero = np.array(row["coefficients"]) != 0.5
        assert np.array(row["train"]["loss"])[off_zero].max() < 1e-9
        np.testing.assert_allclose(np.array(row["norm"])[off_zero], 1.0, rtol=1e-6)

    @pytest.mark.parametrize("kind", ["linear", "spherical"])
    def test_line_between_identical_workers_is_flat(self, measures, kind):
        row = measures.line(self.at(0.7), self.at(0.7), kind)
        assert np.ptp(row["train"]["loss"]) < 1e-6
        assert row["train"]["barrier"] == pytest.approx(0.0, abs=1e-7)
        assert row["distance"] == 0

    def test_walk_leaves_the_well(self, measures):
        row, _ = measures.walk(self.at(1.0), seed=3)
        assert row["escape_step"] > 1
        assert row["losses"][0] == pytest.approx(0.0, abs=1e-9)
        assert max(row["losses"][:-1]) <= row["threshold"] < row["losses"][-1]
        assert row["end"]["train"]["loss"] == pytest.approx(row["losses"][-1], rel=1e-4)
        assert len(row["losses"]) == row["escape_step"] + 1

    def test_curvature(self, measures):
        """f'' = 12 w² - 4."""
        row = measures.spectrum(self.at(1.0))
        assert row["right"] == pytest.approx([8.0], rel=1e-5)
        assert row["left"] == pytest.approx([8.0], rel=1e-5)
        assert measures.full_spectrum(self.at(1.0)) == pytest.approx([8.0], rel=1e-5)

    def test_a_loss_that_is_not_finite(self, measures):
        with pytest.raises(NotFiniteLossError, match="its training loss is nan"):
            measures.require_finite(self.at(np.nan))


def test_losses_gradients_and_counts():
    exp = experiment(n_workers=1, n_steps=2)
    exp.run()
    row = of_kind(exp, "stats")[-1]
    assert (row["step"], row["worker"]) == (2, 1)
    weights = weights_of(exp, 1)
    for split in ("train", "test"):
        x, y = getattr(exp.problem, split)
        logits = x @ weights[0] + weights[1]
        assert row[split]["correct"] == np.sum(logits.argmax(axis=1) == y[:, -1])
        loss = np.mean(cross_entropy(y, tf.constant(logits)))
        assert row[split]["loss"] == pytest.approx(loss, rel=1e-5)
        slope = np.concatenate([g.ravel() for g in gradient(weights, x, y)])
        assert row[split]["gradient_norm"] == pytest.approx(np.linalg.norm(slope), rel=1e-4)


class TestTargets:
    def test_soft_labels_at_1_and_0_are_the_labels(self):
        labels = np.array([2, 0, 1])
        logits = tf.constant(np.random.default_rng(0).normal(size=(3, 3)), tf.float32)
        soft = joined(data.soft_labels(labels, 3, 1.0, 0.0), labels)
        hard = joined(np.eye(3)[labels], labels)
        np.testing.assert_array_equal(soft, hard)
        truth = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        np.testing.assert_allclose(cross_entropy(soft, logits), truth, rtol=1e-6)

    def test_soft_labels_of_the_original(self):
        targets = data.soft_labels(np.array([1]), 10, 0.91, 0.01).numpy()
        np.testing.assert_allclose(targets, [[0.01, 0.91, *[0.01] * 8]])
        logits = tf.zeros((1, 10))
        y = joined(targets, [1])
        np.testing.assert_allclose(cross_entropy(y, logits), np.log(10.0), rtol=1e-6)

    def test_what_is_correct_is_told_by_the_label(self):
        # A teacher that is wrong: class 0 at 0.9, and the truth is class 1.
        y = joined([[0.9, 0.1]], [1])
        assert error(y, tf.constant([[0.0, 1.0]])).numpy().tolist() == [0.0]
        assert error(y, tf.constant([[1.0, 0.0]])).numpy().tolist() == [1.0]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sample = lambda n: rng.integers(0, 256, (n, 6, 6, 1), np.uint8)  # noqa: E731
    return data.ImageData(
        "fake", sample(40), rng.integers(0, 10, 40).astype(np.int32), sample(20),
        rng.integers(0, 10, 20).astype(np.int32), 10, tuple("0123456789"), None,
    )  # fmt: skip


class TestLoading:
    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch, images):
        monkeypatch.setattr(data, "load", lambda *a, **k: images)

    def load(self, **settings):
        return Problem.load(Settings(**{"n_samples_train": 30, **settings}))

    def test_chosen_images(self, images):
        found = self.load(n_samples_test=10, preprocessing="scale")
        assert found.train[0].shape == (30, 6, 6, 1)
        assert found.test[0].shape == (10, 6, 6, 1)
        chosen = np.sort(np.random.default_rng([0, 0]).choice(40, 30, replace=False))
        np.testing.assert_allclose(found.train[0], images.train_images[chosen] / 255, rtol=1e-6)
        np.testing.assert_array_equal(found.train[1][:, -1], images.train_labels[chosen])
        np.testing.assert_array_equal(found.train[1][:, :10].argmax(axis=1), found.train[1][:, -1])
        again = self.load(n_samples_test=10, preprocessing="scale", seed=1)
        assert not np.array_equal(again.train[0], found.train[0])

    def test_corruption_reaches_both_splits_or_one(self):
        plain, double = self.load(), self.load(corrupt="double")
        assert double.train[0].shape == (30, 6, 12, 1)
        assert double.test[0].shape == (20, 6, 12, 1)
        noise = self.load(corrupt="all_noise")
        np.testing.assert_array_equal(noise.test[0], plain.test[0])
        np.testing.assert_array_equal(noise.train[1], plain.train[1])
        assert abs(noise.train[0].mean()) < 0.1
        assert noise.train[0].std() == pytest.approx(1.0, abs=0.1)

    def test_soft_labels_are_of_training_alone(self):
        soft, plain = self.load(soft_labels=True), self.load()
        assert sorted(set(np.unique(soft.train[1][:, :10]).round(4))) == [0.01, 0.91]
        np.testing.assert_array_equal(soft.test[1], plain.test[1])
        np.testing.assert_array_equal(
            self.load(soft_labels=True, p=1.0, q=0.0).train[1], plain.train[1]
        )
        with pytest.raises(data.DataError, match="must sum to 1"):
            self.load(soft_labels=True, p=0.5)

    def test_a_teacher(self, tmp_path):
        inputs = keras.Input((6, 6, 1))
        teacher = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
        teacher.save(tmp_path / "teacher.keras")
        found = self.load(teacher=str(tmp_path / "teacher.keras"))
        wanted = tf.nn.softmax(teacher(found.train[0])).numpy()
        np.testing.assert_allclose(found.train[1][:, :10], wanted, atol=1e-6)
        np.testing.assert_array_equal(found.train[1][:, -1], self.load().train[1][:, -1])
        with pytest.raises(Exception, match=r"maps \(6, 6, 1\) to \(10,\), and the images are"):
            self.load(teacher=str(tmp_path / "teacher.keras"), corrupt="double")
        (tmp_path / "bad.keras").write_text("no")
        with pytest.raises(Exception, match="cannot be loaded"):
            self.load(teacher=str(tmp_path / "bad.keras"))

    def test_too_many(self):
        with pytest.raises(data.DataError, match="There are 40 training images and not 41"):
            self.load(n_samples_train=41)


# Steps so small that whoever moves does so by walking.
STILL = {"lr": 1e-9, "langevin_lr": 1e-9, "langevin_steps": 3, "momentum": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"n_workers": 1, "optimizer": "sgd"},
        # Step 2 is amid an inner loop, and step 4 is after its outer update.
        {"n_workers": 1, "optimizer": "entropy-sgd"},
        {"n_workers": 0, "optimization": "LBFGS", "n_samples_train": 0},
    ],
    ids=["sgd", "entropy-sgd", "lbfgs"],
)
def test_a_worker_goes_on_from_where_its_walk_ended(kind):
    walks = {"explore": True, "freq_h": 2, "n_steps": 4, "rw_step_size": 0.05, "threshold": 0.05}
    moved = experiment(explore_moves=True, **walks, **{**STILL, **kind})
    moved.run()
    last = moved.settings.n_workers
    first, second = (w for w in of_kind(moved, "walk") if w["worker"] == last)
    assert [(r["step"], r["worker"]) for r in of_kind(moved, "move")][-1:] == [(2, last)]
    assert second["step"] == 4
    assert first["end"]["train"]["loss"] > first["threshold"]
    stats = [row for row in of_kind(moved, "stats") if row["worker"] == last]
    if "optimization" in kind:
        # It descends from there: where it was before, it had gone further down.
        assert stats[-1]["train"]["loss"] < first["end"]["train"]["loss"]
    else:
        at_end = [first["end"]["norm"], first["end"]["train"]["loss"]]
        found = [stats[-1]["norm"], stats[-1]["train"]["loss"]]
        np.testing.assert_allclose(found, at_end, rtol=1e-5)
        assert second["start"]["train"]["loss"] == pytest.approx(at_end[1], rel=1e-5)
    # What is stored is what was measured last, not the end of the last walk.
    stored = np.sqrt(sum(np.sum(w**2.0) for w in weights_of(moved, last)))
    np.testing.assert_allclose(stored, stats[-1]["norm"], rtol=1e-6)

    stayed = experiment(**walks, **{**STILL, **kind})
    stayed.run()
    assert of_kind(stayed, "move") == []
    if "optimization" not in kind:
        norms = [row["norm"] for row in of_kind(stayed, "stats") if row["worker"] == last]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-5)


@pytest.mark.slow
def test_a_center_made_of_its_workers_does_not_move():
    exp = experiment(n_workers=2, alpha=0.1, explore=True, explore_moves=True, freq_h=2, n_steps=4)
    exp.run()
    assert [(w["step"], w["worker"]) for w in of_kind(exp, "walk")] == [
        (step, k) for step in (2, 4) for k in range(3)
    ]  # fmt: skip
    assert [(w["step"], w["worker"]) for w in of_kind(exp, "move")] == [(2, 1), (2, 2)]


@pytest.mark.slow
def test_a_run_that_is_told_to_end_ends_as_it_was_measured():
    """Its bounds and changes come after its measurements."""
    exp = experiment(
        n_workers=2, alpha=0.1, hessian=True, n_eigenvalues=2, density_probes=0, freq_h=2,
        full_spectrum=True, explore=True, explore_moves=True, schedule=((2, "quit", True),),
    )  # fmt: skip
    exp.run()
    rows = of_kind(exp, "full_spectrum")
    assert [(r["step"], r["worker"]) for r in rows] == [(2, 0), (2, 1), (2, 2)]
    ends = {r["worker"]: (r["left"][0], r["right"][0]) for r in of_kind(exp, "spectrum")}
    for row in rows:
        values = row["eigenvalues"]
        np.testing.assert_allclose(
            (values[0], values[-1]), ends[row["worker"]], rtol=1e-2, atol=1e-3
        )
    assert of_kind(exp, "move") == []
    norms = {r["worker"]: r["norm"] for r in of_kind(exp, "stats") if r["step"] == 2}
    for k in range(3):
        stored = np.sqrt(sum(np.sum(w**2.0) for w in weights_of(exp, k)))
        np.testing.assert_allclose(stored, norms[k], rtol=1e-5)


@pytest.mark.slow
def test_the_center_is_that_of_the_workers_who_have_moved():
    exp = experiment(n_workers=2, alpha=0.1, explore=True, explore_moves=True, freq_h=2, n_steps=4)
    go_on = exp._conductor._go_on
    norms = []

    def look():
        go_on()
        norms.append([np.sqrt(sum(np.sum(w**2.0) for w in weights_of(exp, k))) for k in range(3)])

    exp._conductor._go_on = look
    exp.run()
    for zero, *workers in norms:
        assert zero == pytest.approx(np.mean(workers), rel=1e-5)  # rescaled to their mean norm


def read(path):
    with path.open() as file:
        return list(csv.reader(file))


@pytest.mark.slow
def test_files_have_the_columns_of_the_original(tmp_path):
    """facts D; the headers letter by letter, as util-*.lua of the original write them."""
    exp = experiment(
        tmp_path / "run", n_workers=1, n_steps=2, freq=1, lines="both", resolution=2, hessian=True,
        n_eigenvalues=2, density_steps=4, density_probes=2, sharpness=True, ascent_lr=0.05,
        explore=True, explore_from=(1,), rw_steps=4,
    )  # fmt: skip
    exp.run()
    six = ["cost_tr", "norm_tr", "corr_tr", "cost_te", "norm_te", "corr_te"]
    results = read(tmp_path / "run" / "run-results.csv")
    assert results[0] == ["i", "opt.lr", "evalCounter", "normWeights", "tr_cost", "tr_normGrad",
                          "tr_correct", "te_cost", "te_normGrad", "te_correct"]  # fmt: skip
    assert [row[:3] for row in results[1:]] == [
        [str(k), "0.2", str(step)] for step in (0, 1, 2) for k in (0, 1)
    ]
    lines = read(tmp_path / "run" / "run-interpolations.csv")
    assert lines[0] == ["i", "j", "l", "k", "params[l]:norm()", *six]
    assert [row[:4] for row in lines[1:]] == [["1", "0", str(n), "2"] for n in range(-2, 5)]
    # At l = 0 it is worker 0, at l = resolution worker 1: the losses are theirs.
    for number, k in ((0, 0), (2, 1)):
        at = next(row for row in lines[1:] if row[2] == str(number))
        own = next(row for row in results[1:] if row[0] == str(k) and row[2] == "2")
        np.testing.assert_allclose(
            [float(v) for v in at[4:]], [float(v) for v in own[3:]], rtol=1e-4
        )
    distances = read(tmp_path / "run" / "run-distances.csv")
    assert distances[0] == ["0_to_0", "1_to_0", "0_to_1", "1_to_1"]
    assert len(distances) == 2
    walks = read(tmp_path / "run" / "run-explorations.csv")
    assert walks[0] == ["for the worker ", "threshold", "step_size", "W:norm()", *six]
    assert [row[0] for row in walks[1:]] == ["1", "1"]
    for k in (0, 1):
        right, left = (
            [float(v) for (v,) in read(tmp_path / "run" / f"run-eigenvalues_{k}_{side}.csv")]
            for side in ("right", "left")
        )
        assert right == sorted(right, reverse=True)
        assert left == sorted(left)
        assert left[0] <= right[0]
    assert [row[2] for row in read(tmp_path / "run" / "run-sharpness.csv")[1:]] == ["0", "1"]
    names, values = read(tmp_path / "run" / "run-metadata.csv")
    assert dict(zip(names, values, strict=True))["n_workers"] == "1"
    table = read_table(tmp_path / "run")
    kinds = [row["kind"] for row in table]
    assert {k: kinds.count(k) for k in sorted(set(kinds))} == {
        "distances": 1, "end": 1, "line": 2, "settings": 1, "sharpness": 2, "spectrum": 2,
        "stats": 6, "walk": 1,
    }  # fmt: skip
    restored = {k: v for k, v in table[0].items() if k not in ("kind", "step")}
    assert Settings.from_dict(restored) == exp.settings
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"] == restored
    networks = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert networks == ["worker_0.keras", "worker_1.keras"]
    stored = keras.models.load_model(tmp_path / "run" / "checkpoints" / "worker_1.keras")
    for a, b in zip(stored.get_weights(), weights_of(exp, 1), strict=True):
        np.testing.assert_array_equal(a, b)

    from esgd_tf.walkers import figure_page

    assert figure_page(tmp_path / "run").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.few(1)
@pytest.mark.parametrize(("bound", "value"), [("stop_grad", 0.3), ("stop_cost", 0.6)])
def test_stopping(bound, value):
    exp = experiment(n_workers=1, n_steps=200, freq=2, **{bound: value})
    exp.run()
    assert exp.ended_by == bound
    assert exp.workers.steps < 200
    key = {"stop_grad": "gradient_norm", "stop_cost": "loss"}[bound]
    by_step = {}
    for row in of_kind(exp, "stats"):
        by_step.setdefault(row["step"], []).append(row["train"][key])
    means = [np.mean(values) for values in by_step.values()]
    assert means[-1] < value <= min(means[:-1])


def test_a_worker_that_diverges_is_named(monkeypatch):
    exp = experiment(n_workers=1, lr=1.0)
    exp.workers.model.members[0].trainable_variables[0].assign(np.full((3, 2), np.nan))
    with pytest.raises(NotFiniteLossError, match="Worker 1 has left after 0 steps"):
        exp.run()


@pytest.mark.slow
def test_nothing_is_written_of_a_worker_that_diverged_between_two_losses(tmp_path):
    exp = experiment(tmp_path / "run", n_workers=2, freq=100, freq_i=2, n_steps=4)
    count = exp.workers.advance

    def advance():
        count()
        if exp.workers.steps == 2:
            exp.workers.model.members[1].trainable_variables[0].assign(np.full((3, 2), np.nan))

    exp.workers.advance = advance
    with pytest.raises(NotFiniteLossError, match="Worker 2 has left after 2 steps: its training"):
        exp.run()
    assert {row["step"] for row in read_table(tmp_path / "run")} == {0}
    # What it would go on from is still good.
    with np.load(tmp_path / "run" / "state.npz") as stored:
        assert all(np.isfinite(stored[name]).all() for name in stored.files if name != "note")


def test_a_page_with_numbers_that_are_not_there(tmp_path):
    from esgd_tf.walkers import figure_page

    row = {"kind": "distances", "step": 1, "distances": [[0, 1, 2], [1, 0, None], [2, None, 0]]}
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n")
    assert figure_page(tmp_path).read_bytes()[:4] == b"\x89PNG"


def test_settings_refuse():
    for name, value in {
        "model": "nothing", "corrupt": "nothing", "momentum": 1.0, "lr": 0.0, "alpha": 1.5,
        "c1": 3.0, "c2": 0.55, "explore_from": (5,), "n_workers": -1, "dataset": "x", "freq": 0,
        "n_steps": 1.5, "lr ": 1,
    }.items():  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=name.strip()):
            Settings(**{name: value})
    assert Settings(n_hidden=7, n_layers=3).network == "nn-7-3"
    assert Settings(model="lenet").network == "lenet-10-20-128"
    changed = Settings(schedule=((3, "lr", 0.5),), explore_from=(1,))
    assert Settings.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert dataclasses.asdict(changed) == changed.to_dict()
    assert linear(0).count_params() == 8
    assert problem().num_classes == 2
