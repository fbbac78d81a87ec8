"""From a plan to the trainings it asks for, in their order. No TensorFlow here.

Which settings a training has may rest on the errors of others (`plans.py`), so that the list is
made anew from the summaries whenever one has been added.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from esgd_tf.cli.flags import FlagError, define_flags, parse
from esgd_tf.cli.presets import presets
from esgd_tf.cli.settings import make_settings
from esgd_tf.data.catalog import ENTRIES
from esgd_tf.runs.settings import Settings
from results.plans import Method, Part, Plan

__all__ = ["Job", "Summaries", "jobs_of"]

#: By the names of the jobs.
Summaries = Mapping[str, Mapping[str, Any]]
# The seed with which candidates are trained; results have others.
_SEED_OF_CHOICE = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One training, and what is known of it before it has begun.

    Attributes:
        name: What its summary is called.
        part: The title of its part of the plan.
        method: The name of its method.
        label: What figures and tables call the method.
        seed: The seed.
        candidate: The candidate that is tried; "" for a result.
        chosen: The candidate that was chosen, with its method; "" if there was nothing to choose.
        flags: Flags of train.py, by their long names.
        evaluations: Gradient evaluations; 0 where they are not known yet.
        waits: Why it cannot be trained yet, in words; "" if it can.
    """

    name: str
    part: str
    method: str
    label: str
    seed: int
    candidate: str
    chosen: str
    flags: Mapping[str, Any]
    evaluations: int
    waits: str

    @property
    def folder(self) -> str:
        """The name of its run folder: other flags, another folder."""
        flags = json.dumps(self.flags, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"

    @property
    def words(self) -> list[str]:
        """Its flags as words of a command line."""
        return [f"--{name}={value}" for name, value in self.flags.items()]

    def is_done(self, summaries: Summaries) -> bool:
        """Whether there is a summary of a training with these flags.

        Args:
            summaries: mapping. The summaries, by name.
        """
        found = summaries.get(self.name)
        return not self.waits and found is not None and found["flags"] == dict(self.flags)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The settings that were chosen for a method.

    Attributes:
        flags: The flags of the method, and of the candidate.
        words: What was chosen; "" if there was nothing to choose.
        error: Its error on the held-out images; None if nothing was trained for it.
    """

    flags: Mapping[str, Any]
    words: str
    error: float | None


class _UntriedError(Exception):
    """Something must be trained first, which the message names."""


def jobs_of(plan: Plan, summaries: Summaries) -> list[Job]:
    """Return all trainings of a plan, in the order in which they are to be trained.

    Args:
        plan: Plan. The plan.
        summaries: mapping. The summaries that there are, by the names of the jobs.
    """
    return list(_jobs(plan, summaries))


def _jobs(plan: Plan, summaries: Summaries) -> Iterator[Job]:
    for part in plan.parts:
        for method in part.methods:
            yield from _candidates(plan, part, method).values()
        for seed in part.seeds:
            for method in part.methods:
                yield _result(plan, part, method, seed, summaries)


def _candidates(plan: Plan, part: Part, method: Method) -> dict[str, Job]:
    """Return the trainings by which the settings of a method are chosen, by candidate."""
    made = {}
    for name, flags in method.candidates.items():
        all_flags = {
            **plan.flags, **part.flags, **method.flags, **plan.choice, **flags,
            "validation_images": plan.validation, "seed": _SEED_OF_CHOICE,
        }  # fmt: skip
        job = Job(
            name=f"{method.name}-{name}-choice", part=part.title, method=method.name,
            label=method.label, seed=_SEED_OF_CHOICE, candidate=name, chosen="", flags=all_flags,
            evaluations=0, waits="",
        )  # fmt: skip
        made[name] = _checked(job)
    return made


def _result(plan: Plan, part: Part, method: Method, seed: int, summaries: Summaries) -> Job:
    job = Job(
        name=f"{method.name}-s{seed}", part=part.title, method=method.name, label=method.label,
        seed=seed, candidate="", chosen="", flags={}, evaluations=0, waits="",
    )  # fmt: skip
    try:
        choice = _choose(plan, part, method, summaries)
    except _UntriedError as waits:
        return dataclasses.replace(job, waits=str(waits))
    flags = {**plan.flags, **part.flags, **choice.flags, "seed": seed}
    if part.is_validation:
        flags["validation_images"] = plan.validation
    return _checked(dataclasses.replace(job, flags=flags, chosen=choice.words))


def _choose(plan: Plan, part: Part, method: Method, summaries: Summaries) -> _Choice:
    """Return the settings with the smallest error on the held-out images; the first of equals.

    Raises:
        _UntriedError: Not all have been tried yet.
    """
    if method.like:
        of_name = {m.name: (p, m) for p in plan.parts for m in p.methods}
        choices = [_choose(plan, *of_name[name], summaries) for name in method.like]
        if len(choices) == 1:
            return choices[0]
        # Those without candidates have no error by which they could be chosen.
        return min(
            (c for c in choices if c.error is not None), key=lambda choice: choice.error or 0.0
        )
    jobs = _candidates(plan, part, method)
    if not jobs:
        return _Choice(method.flags, "", None)
    for job in jobs.values():
        if not job.is_done(summaries):
            raise _UntriedError(job.waits or f"waits for {job.name}")
    errors = {name: float(summaries[job.name]["final"]["error"]) for name, job in jobs.items()}
    best = min(errors, key=errors.__getitem__)
    flags = {**method.flags, **method.candidates[best]}
    return _Choice(flags, f"{method.name}, {best}", errors[best])


def _checked(job: Job) -> Job:
    """Return a job with the flags that train.py takes, or with the reason why it takes them not."""
    try:
        settings = _settings(job)
        flags = _with_scope(job.flags, settings)
    except FlagError as error:
        return dataclasses.replace(job, waits=f"train.py does not take it: {error}")
    return dataclasses.replace(job, flags=flags, evaluations=_evaluations(settings))


def _settings(job: Job) -> Settings:
    """Return the settings of a job as train.py makes them."""
    fv = define_flags()
    words = [f"--{name}={value}" for name, value in job.flags.items() if name != "scope"]
    parse(fv, ["train.py", *words])
    return make_settings(fv, presets())


def _evaluations(settings: Settings) -> int:
    """Return the gradient evaluations of a run, but for rounding."""
    e = settings.experiment
    images = ENTRIES[e.dataset].num_train - e.validation_images
    passes = e.replicas if e.budget == "each" else 1
    return -(-images // e.batch_size) * e.epochs * passes


def _with_scope(flags: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the flags with --gamma and --scoping for "scope", from a first to a last value."""
    changed = dict(flags)
    if "scope" in changed:
        first, last = changed.pop("scope")
        updates = _evaluations(settings) // settings.experiment.langevin_steps
        changed["gamma"] = first
        changed["scoping"] = float(f"{(last / first) ** (1 / updates) - 1:.6g}")
    return changed
