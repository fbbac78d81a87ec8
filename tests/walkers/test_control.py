"""Changes in mid-run: schedules, control.json, the prompt."""

import io
import json
import os

import numpy as np
import pytest

from esgd_tf.walkers.control import Change, ControlError, checked, read_schedule
from esgd_tf.walkers.control_file import ControlFile
from esgd_tf.walkers.prompt import Prompt
from esgd_tf.walkers.settings import Settings, SettingsError
from tests.walkers.helpers import experiment, gradient, of_kind, problem, weights_of

HELD = {"lr": 0.1, "momentum": 0.5, "alpha": 0.0, "n_steps": 100}


def test_schedules_in_json_and_csv(tmp_path):
    expected = ((3, "lr", 0.5), (3, "alpha", 0.25), (7, "walk", 1), (9, "quit", True))
    (tmp_path / "s.json").write_text(
        json.dumps([{"step": 7, "name": "walk", "value": 1}, [3, "lr", 0.5], [3, "alpha", 0.25],
                    [9, "quit", True]])
    )  # fmt: skip
    (tmp_path / "s.csv").write_text(
        "step,name,value\n3,lr,0.5\n3,alpha,.25\n\n7, walk, 1\n9,quit,yes\n"
    )
    (tmp_path / "bare.csv").write_text("3,lr,0.5\n3,alpha,.25\n7,walk,1\n9,quit,true")
    for name in ("s.json", "s.csv", "bare.csv"):
        assert read_schedule(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "3,lr", "line 1: must have a step, a name and a value"),
        ("a.csv", "3,lr,0.1\n-1,lr,1", "line 2: step must be a whole number, 0 or more, not -1"),
        ("a.csv", "3,lt,0.1", "line 1: there is no 'lt'; there are lr, momentum"),
        ("a.csv", "3,lr,x", "line 1: lr must be a number, not 'x'"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "{}", "must hold a list"),
        ("a.json", "[[1, 2]]", "entry 1: must have a step"),
        ("a.json", '[[1, "momentum", 1]]', "entry 1: momentum must be at least 0 and below 1"),
        pytest.param("a.json", "[" * 100_000, "is no JSON (it is nested too deep)", id="lists"),
        pytest.param(
            "a.json", '{"step":' * 100_000, "is no JSON (it is nested too deep)", id="objects"
        ),
        ("a.json", '[[1, "lr", 1' + "0" * 400 + "]]", "entry 1: lr must be a number"),
        ("a.json", '[[1, "n_steps", 1e300]]', "n_steps must be a whole number, at most 2147483647"),
        ("a.json", '[[1e300, "lr", 0.1]]', "step must be at most 2147483647, not"),
        ("a.json", '[[1, "lr", [[[0.1]]]]]', "entry 1: lr must be a number"),
    ],
)
def test_bad_schedules(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ControlError, match=name) as caught:
        read_schedule(tmp_path / name)
    assert sentence in str(caught.value)
    with pytest.raises(ControlError, match="No such file"):
        read_schedule(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [("lr", "0.5", 0.5), ("n_steps", 7.0, 7), ("walk", "2", 2), ("quit", "yes", True),
     ("alpha", 1, 1.0)],
)  # fmt: skip
def test_values(name, value, found):
    assert checked(name, value, n_workers=2) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0), ("lr", True), ("lr", None), ("lr", float("nan")), ("momentum", 1), ("alpha", 1.5),
     ("alpha", -1), ("n_steps", 0), ("n_steps", 1.5), ("walk", 3), ("walk", -1), ("quit", 7),
     ("quit", None), ("mom", 1)],
)  # fmt: skip
def test_bad_values(name, value):
    with pytest.raises(ControlError):
        checked(name, value, n_workers=2)


def test_how_large_alpha_may_be():
    assert checked("alpha", 5, n_workers=2, coupling="rsgd") == 5.0
    assert checked("alpha", 0.5, n_workers=2, coupling="easgd") == 0.5
    # The center would go beyond the mean.
    with pytest.raises(ControlError, match=r"at most 0\.333333"):
        checked("alpha", 0.34, n_workers=3, coupling="easgd")
    with pytest.raises(SettingsError, match=r"alpha=0.34: must be at most 0\.333333"):
        Settings(n_workers=3, alpha=0.34, coupling="easgd")
    with pytest.raises(SettingsError, match="optimization=LBFGS: must be auto"):
        Settings(coupling="rsgd", optimization="LBFGS")


class TestControlFile:
    @pytest.fixture
    def file(self, tmp_path):
        file = ControlFile(tmp_path / "control.json", 2, "elastic")
        file.write(HELD)
        return file

    @pytest.fixture
    def edit(self, tmp_path):
        def write(**values):
            path = tmp_path / "control.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

        return write

    def test_shows_what_is_in_force(self, file, tmp_path):
        shown = json.loads((tmp_path / "control.json").read_text())
        assert shown == {**HELD, "walk": None, "quit": False}
        assert file.read() == ([], [])

    def test_an_edit_is_seen_once(self, file, edit):
        edit(lr=0.05, walk=1)
        changes, complaints = file.read()
        assert changes == [Change("lr", 0.05, "control.json"), Change("walk", 1, "control.json")]
        assert complaints == []
        assert file.read() == ([], [])
        # Touched, but the same.
        edit()
        assert file.read() == ([], [])
        edit(lr=0.1)
        assert file.read()[0] == [Change("lr", 0.1, "control.json")]
        edit(walk=0)  # a worker, and no "no"
        assert file.read() == ([Change("walk", 0, "control.json")], [])

    def test_shows_or_does_not(self, file, edit, tmp_path):
        assert file.shows(HELD)
        assert not file.shows({**HELD, "lr": 0.2})
        edit(walk=1)
        file.read()
        assert not file.shows(HELD)
        (tmp_path / "control.json").write_text("{")
        file.read()
        assert file.shows(HELD)  # nobody's edit is to be lost

    def test_an_edit_that_was_not_read_is_not_written_over(self, file, edit):
        edit(lr=0.05)
        file.write({**HELD, "alpha": 0.5})
        assert file.read()[0] == [Change("lr", 0.05, "control.json")]

    def test_bad_content_is_one_sentence(self, file, edit, tmp_path):
        (tmp_path / "control.json").write_text('{"lr": ')
        changes, complaints = file.read()
        assert changes == []
        assert len(complaints) == 1
        assert "no JSON" in complaints[0]
        assert file.read() == ([], [])
        (tmp_path / "control.json").write_text("[1]")
        assert "holds no names" in file.read()[1][0]
        (tmp_path / "control.json").write_text('{"lr": -1, "speed": 3, "alpha": 0.5}')
        changes, complaints = file.read()
        assert changes == [Change("alpha", 0.5, "control.json")]
        assert len(complaints) == 1
        assert "lr must be above 0, not -1" in complaints[0]
        assert "there is no 'speed'" in complaints[0]
        (tmp_path / "control.json").unlink()
        assert "is gone" in file.read()[1][0]
        assert file.read() == ([], [])

    @pytest.mark.parametrize("part", ["[", '{"lr":', '{"lr":['])
    def test_nested_too_deep(self, file, tmp_path, part):
        (tmp_path / "control.json").write_text(100_000 * part)
        changes, (complaint,) = file.read()
        assert changes == []
        assert complaint == ("control.json is no JSON and changes nothing (it is nested too deep)")
        assert file.shows(HELD)
        assert file.read() == ([], [])

    def test_numbers_beyond_all_bounds(self, file, edit):
        edit(lr=10**400, n_steps=10**12, walk=1e300)
        changes, (complaint,) = file.read()
        assert changes == []
        for name in ("lr must be a number", "n_steps must be a whole", "walk must be a whole"):
            assert name in complaint

    @pytest.mark.parametrize("kind", ["folder", "pipe"])
    def test_what_is_no_file_is_told_once(self, file, tmp_path, kind):
        """And is not waited for, nor written over, nor does the run end by it."""
        path = tmp_path / "control.json"
        path.unlink()
        path.mkdir() if kind == "folder" else os.mkfifo(path)
        told = ([], ["control.json is no file: nothing can be changed by it"])
        assert file.read() == told
        assert file.read() == ([], [])
        file.write({**HELD, "lr": 0.7})
        new = ControlFile(path, 2, "elastic")
        new.write(HELD)
        assert new.read() == told
        assert new.shows(HELD)
        path.rmdir() if kind == "folder" else path.unlink()
        assert "is gone" in new.read()[1][0]
        new.write(HELD)
        path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.3}))
        assert new.read() == ([Change("lr", 0.3, "control.json")], [])


class TestPrompt:
    def ask(self, answers, step=10):
        out = io.StringIO()
        prompt = Prompt(10, 2, "elastic", io.StringIO(answers), out)
        assert prompt.is_due(10)
        assert not prompt.is_due(11)
        return list(prompt.ask(step, HELD)), out.getvalue(), prompt

    def test_reads_until_an_empty_line(self):
        changes, out, prompt = self.ask("lr 0.05\nmomentum=0.9\nsteps 30\nwalk 2\n\nlr 7\n")
        assert [(c.name, c.value) for c in changes] == [
            ("lr", 0.05), ("momentum", 0.9), ("n_steps", 40), ("walk", 2)
        ]  # fmt: skip
        assert {c.source for c in changes} == {"prompt"}
        assert "step 10 of 40  lr 0.05  momentum 0.9  alpha 0" in out
        assert prompt.is_due(20)

    def test_quit_ends_the_questions(self):
        changes, _, _ = self.ask("quit\nlr 5\n")
        assert [(c.name, c.value) for c in changes] == [("quit", True)]

    def test_nonsense_is_asked_again(self):
        changes, out, _ = self.ask("faster\nlr\nlr x\nalpha 2\nsteps 0\nalpha 1\n\n")
        assert [(c.name, c.value) for c in changes] == [("alpha", 1.0)]
        assert out.count("What can be said") == 5

    def test_the_end_of_a_pipe_is_the_end_of_the_questions(self):
        changes, out, prompt = self.ask("lr 0.3")
        assert [(c.name, c.value) for c in changes] == [("lr", 0.3)]
        assert "no more answers" in out
        assert not prompt.is_due(20)


def by_hand(weights, rates, momenta):
    """Worker 0 by gradient descent, with a rate and a momentum for each step."""
    x, y = problem().train
    velocity = [np.zeros_like(w) for w in weights]
    for lr, momentum in zip(rates, momenta, strict=True):
        slopes = gradient(weights, x, y)
        velocity = [momentum * v - lr * g for v, g in zip(velocity, slopes, strict=True)]
        weights = [w + v for w, v in zip(weights, velocity, strict=True)]
    return weights


def test_a_schedule_changes_what_it_says(tmp_path):
    """Also the stochastic worker, whose minibatch is all the data here: the same recursion."""
    exp = experiment(
        tmp_path / "run", {"say": None}, n_workers=1, batch_size=24, momentum=0.0, n_steps=3,
        freq=50, schedule=((1, "lr", 0.4), (2, "momentum", 0.5), (2, "n_steps", 6)),
    )  # fmt: skip
    expected = by_hand(
        weights_of(exp, 0), [0.2, 0.4, 0.4, 0.4, 0.4, 0.4], [0, 0, 0.5, 0.5, 0.5, 0.5]
    )
    exp.run()
    for k in (0, 1):
        for found, wanted in zip(weights_of(exp, k), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert exp.workers.steps == 6
    shown = json.loads((tmp_path / "run" / "control.json").read_text())
    assert [shown[n] for n in ("lr", "momentum", "alpha", "n_steps")] == [0.4, 0.5, 0.0, 6]
    changed = [(r["step"], r["name"], r["value"], r["source"]) for r in of_kind(exp, "control")]
    assert changed[:3] == [
        (1, "lr", 0.4, "schedule"), (2, "momentum", 0.5, "schedule"), (2, "n_steps", 6, "schedule")
    ]  # fmt: skip


def test_alpha_comes_and_goes():
    exp = experiment(
        n_workers=2, n_steps=12, freq=1, schedule=((4, "alpha", 1.0), (8, "alpha", 0.0))
    )
    exp.run()
    losses = {(r["step"], r["worker"]): r["train"]["loss"] for r in of_kind(exp, "stats")}
    # With alpha = 1 both are thrown onto the center of before the step.
    assert losses[4, 1] != losses[4, 2]
    for step in range(5, 9):
        assert losses[step, 1] == pytest.approx(losses[step, 2], rel=1e-6)
    assert losses[9, 1] != losses[9, 2]
    # Then worker 0 goes on alone, from the center, downhill.
    assert [losses[s, 0] for s in range(8, 13)] == sorted(
        (losses[s, 0] for s in range(8, 13)), reverse=True
    )


@pytest.mark.slow
def test_an_edit_while_it_runs(tmp_path):
    said = []

    def say(line):
        said.append(line)
        path = tmp_path / "other" / "control.json"
        if line.startswith("step 1 of"):
            path.write_text("{")
        if line.startswith("step 2 of"):
            path.write_text('{"lr": 0.7, "n_steps": 4}')

    exp = experiment(tmp_path / "other", {"say": say}, n_workers=1, freq=1)
    exp.run()
    assert exp.workers.steps == 4
    assert exp.workers.lr == 0.7
    assert next(line for line in said if line.startswith("WARNING")).count("no JSON") == 1
    assert "step 2: lr is 0.7 now, was 0.2 (control.json)" in said
    assert {r["lr"] for r in of_kind(exp, "stats") if r["step"] > 2} == {0.7}
    assert {r["lr"] for r in of_kind(exp, "stats") if r["step"] <= 2} == {0.2}


def test_an_edit_while_the_prompt_waits(tmp_path, monkeypatch):
    path = tmp_path / "run" / "control.json"

    class Answers(io.StringIO):
        def readline(self, *size):
            if not self.tell():
                path.write_text(json.dumps({**json.loads(path.read_text()), "momentum": 0.75}))
            return super().readline(*size)

    monkeypatch.setattr("sys.stdin", Answers("lr 0.3\n\n"))
    exp = experiment(tmp_path / "run", {"ask_every": 2}, n_workers=0)
    exp.run()
    assert (exp.workers.lr, exp.workers.momentum) == (0.3, 0.75)
    found = [(r["source"], r["step"]) for r in of_kind(exp, "control")]
    assert found == [("prompt", 0), ("control.json", 0)]
    held = json.loads(path.read_text())
    assert (held["lr"], held["momentum"]) == (0.3, 0.75)


def test_what_cannot_be_changed_does_not_stay_in_the_file(tmp_path):
    path = tmp_path / "run" / "control.json"

    def say(line):
        if line.startswith("step 2 of"):
            path.write_text('{"alpha": 0.3, "lr": -1}')

    exp = experiment(tmp_path / "run", {"say": say}, n_workers=0)
    exp.run()
    held = {"lr": 0.2, "momentum": 0.5, "alpha": 0.0, "n_steps": 6}
    assert json.loads(path.read_text()) == {**held, "walk": None, "quit": False}
    texts = [r["text"] for r in of_kind(exp, "complaint")]
    assert ["lr must be above 0" in texts[0], "no center" in texts[1]] == [True, True]


@pytest.mark.slow
def test_the_center_of_easgd_follows_alpha():
    """From 0 to 0.3 before the first step: as if it had been 0.3."""
    late = experiment(n_workers=2, coupling="easgd", weight_init_std=0.5,
                      schedule=((0, "alpha", 0.3),))  # fmt: skip
    early = experiment(n_workers=2, coupling="easgd", weight_init_std=0.5, alpha=0.3)
    for exp in (late, early):
        exp.run()
    for k in range(3):
        for a, b in zip(weights_of(late, k), weights_of(early, k), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_two_walks_at_a_step_are_two(tmp_path):
    exp = experiment(n_workers=0, rw_steps=3, schedule=((2, "walk", 0), (2, "walk", 0)))
    exp.run()
    first, second = of_kind(exp, "walk")
    assert first["losses"][0] == second["losses"][0]
    assert first["losses"][1] != second["losses"][1]


@pytest.mark.slow
def test_quit_and_walk_by_a_schedule():
    exp = experiment(n_workers=1, rw_steps=3, schedule=((2, "walk", 1), (4, "quit", True)))
    exp.run()
    assert exp.workers.steps == 4
    assert exp.ended_by == "quit (schedule)"
    (walk,) = of_kind(exp, "walk")
    assert (walk["worker"], walk["step"]) == (1, 2)
    assert of_kind(exp, "end") == []  # nothing is written down


def test_a_folder_in_place_of_the_control_file_does_not_end_a_run(tmp_path):
    said = []
    path = tmp_path / "run" / "control.json"
    path.mkdir(parents=True)
    exp = experiment(
        tmp_path / "run", {"say": said.append}, n_workers=0, schedule=((2, "lr", 0.7),)
    )
    exp.run()
    assert exp.workers.steps == 6
    assert exp.workers.lr == 0.7
    (line,) = (line for line in said if line.startswith("WARNING"))
    assert line == "WARNING: control.json is no file: nothing can be changed by it"


@pytest.mark.parametrize(
    ("schedule", "end", "told"),
    [
        (((9, "lr", 0.5),), 6, "lr 0.5 at step 9 will"),
        (((6, "lr", 0.5),), 6, "lr 0.5 at step 6 will"),
        (((7, "walk", 0), (8, "quit", True)), 6, "walk 0 at step 7 and 1 more will"),
        (((3, "n_steps", 4), (5, "lr", 0.5)), 4, "lr 0.5 at step 5 will"),
        (((3, "quit", True), (4, "lr", 0.5)), 3, "lr 0.5 at step 4 will"),
        (((6, "n_steps", 8), (7, "lr", 0.5)), 8, None),
        (((2, "quit", False), (5, "lr", 0.5), (6, "walk", 0)), 6, None),
    ],
)
@pytest.mark.few(2)
def test_what_a_schedule_asks_for_too_late_is_told_at_once(schedule, end, told):
    said = []
    exp = experiment(options={"say": said.append}, n_workers=0, rw_steps=3, schedule=schedule)
    exp.run()
    assert exp.workers.steps == end
    warnings = [line for line in said if line.startswith("WARNING")]
    assert len(warnings) == (told is not None)
    if told:
        assert said[0] == (
            f"WARNING: the schedule's {told} never act: the run ends after {end} steps"
        )


def test_what_comes_too_late_since_the_run_was_cut_short_is_told_at_its_end(tmp_path):
    said = []

    def say(line):
        said.append(line)
        if line.startswith("step 2 of"):
            (tmp_path / "run" / "control.json").write_text('{"n_steps": 3}')

    exp = experiment(tmp_path / "run", {"say": say}, n_workers=0, schedule=((4, "lr", 0.5),))
    exp.run()
    assert exp.workers.steps == 3
    told = "the schedule's lr 0.5 at step 4 will never act: the run ends after 3 steps"
    assert said.count(f"WARNING: {told}") == 1
    assert [r["text"] for r in of_kind(exp, "complaint")] == [told]


def test_settings_without_effect_and_without_bound():
    with pytest.raises(SettingsError, match="full_spectrum=True: has no effect without hessian"):
        Settings(full_spectrum=True)
    Settings(full_spectrum=True, hessian=True)
    with pytest.raises(
        SettingsError, match=r"n_steps=1000.*: must be a whole number, at most 2147"
    ):
        Settings(n_steps=10**400)
