"""From a plan to its trainings: order, names, settings that are chosen."""

import math

import pytest

from esgd_tf.runs.experiment import OPTIMIZERS
from results._jobs import jobs_of
from results.plans import PLANS
from tests.results.plans import CHOOSING, TINY, job, summary


@pytest.mark.parametrize("name", PLANS)
def test_the_names_of_a_plan_are_unique_and_train_py_takes_its_flags(name):
    jobs = jobs_of(PLANS[name], {})
    assert len({job.name for job in jobs}) == len(jobs)
    methods = [method.name for part in PLANS[name].parts for method in part.methods]
    assert len(set(methods)) == len(methods)
    for one in jobs:
        is_known = one.flags.get("optimizer") in OPTIMIZERS
        assert not one.waits or one.waits.startswith("waits for") or not is_known, one


@pytest.mark.parametrize("name", PLANS)
def test_all_methods_of_a_part_have_the_same_gradient_evaluations(name):
    by_part = {}
    for one in jobs_of(PLANS[name], {}):
        if not one.waits:
            kind = (one.part, bool(one.candidate))
            by_part.setdefault(kind, set()).add(one.evaluations)
    assert by_part
    assert all(len(evaluations) == 1 for evaluations in by_part.values())


def tried(small=30.0, large=20.0, quiet=25.0):
    errors = {"sgd-small": small, "sgd-large": large, "entropy-quiet": quiet}
    return {
        f"{name}-choice": summary(job(CHOOSING, f"{name}-choice"), error)
        for name, error in errors.items()
    }


def test_candidates_come_first_and_then_one_seed_after_the_other():
    assert [one.name for one in jobs_of(CHOOSING, {})] == [
        "sgd-small-choice", "sgd-large-choice", "entropy-quiet-choice",
        "sgd-s1", "entropy-s1", "sgd-s2", "entropy-s2", "best-s1",
    ]  # fmt: skip


def test_candidates_hold_images_out_and_results_do_not():
    candidate = job(CHOOSING, "sgd-small-choice")
    assert candidate.flags["validation_images"] == 1750
    assert (candidate.flags["seed"], candidate.flags["epochs"]) == (0, 1)
    assert candidate.evaluations == 4
    result = job(CHOOSING, "sgd-s2", tried())
    assert "validation_images" not in result.flags
    assert (result.flags["seed"], result.flags["epochs"]) == (2, 2)
    assert result.evaluations == 10


@pytest.mark.parametrize(("small", "rate"), [(30.0, 0.2), (10.0, 0.1), (20.0, 0.1)])
def test_the_candidate_with_the_smallest_error_is_chosen_the_first_of_equals(small, rate):
    assert job(CHOOSING, "sgd-s1", tried(small=small)).flags["learning_rate"] == rate


def test_a_method_like_others_takes_the_settings_of_the_best_of_them():
    assert job(CHOOSING, "best-s1", tried()).chosen == "sgd, large"
    best = job(CHOOSING, "best-s1", tried(quiet=5.0))
    assert (best.chosen, best.flags["optimizer"]) == ("entropy, quiet", "entropy-sgd")
    assert best.evaluations == 30


def test_a_result_waits_until_all_its_candidates_have_been_tried():
    some = tried()
    del some["sgd-small-choice"]
    assert job(CHOOSING, "sgd-s1", some).waits == "waits for sgd-small-choice"
    assert not job(CHOOSING, "entropy-s1", some).waits


def test_the_scope_grows_to_its_end_whatever_the_length_of_the_run():
    for name, updates in (("entropy-s1", 5), ("best-s1", 15)):
        flags = job(CHOOSING, name, tried(quiet=5.0)).flags
        assert math.isclose(flags["gamma"] * (1 + flags["scoping"]) ** updates, 10.0, rel_tol=1e-4)


def test_a_summary_of_other_flags_does_not_count():
    one = job(TINY, "sgd-s1")
    found = summary(one, 10.0)
    assert one.is_done({"sgd-s1": found})
    other = found | {"flags": found["flags"] | {"epochs": 3}}
    assert not one.is_done({"sgd-s1": other})
    assert not one.is_done({})


def test_what_train_py_does_not_take_waits_and_says_why():
    import dataclasses

    part = dataclasses.replace(TINY.parts[0], flags={"epochs": 0})
    refused = job(dataclasses.replace(TINY, parts=(part,)), "sgd-s1").waits
    assert refused.startswith("train.py does not take it: ")
    assert "--epochs=0" in refused
