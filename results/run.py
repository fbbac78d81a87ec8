#!/usr/bin/env python3
"""Trains what is missing of a plan, and keeps small summaries in the repository.

Command:          python3 results/run.py PLAN --cores 1
                  python3 results/run.py PLAN --list        (what is done, what is pending)
                  python3 results/run.py PLAN --draw        (tables and figures, from the summaries)
Expected time:    as --list says: hours to days, in as many parts as one likes
Expected result:  results/PLAN/summaries/*.json; with --draw results/PLAN/table.md and figures

The plans are in results/plans.py. What has a summary is done; what was cut goes on where it stood,
so that this can be stopped at any time (Ctrl-C, SIGTERM, --until, --minutes), and started again on
this machine or, with the summaries, on another. Two of them may work on one plan: neither takes
what the other trains. Settings that are chosen on held-out images are chosen from the summaries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esgd_tf.cli.tables import cut
from results._jobs import Job, Summaries, jobs_of
from results._plots import draw
from results._shared import ROOT
from results._summaries import lacking, read_summaries
from results._trainings import Children, FailedError, Places, StoppedError, TakenError, train
from results.plans import PLANS, Plan

__all__ = ["main"]

# After so many failures in a row something is wrong that is none of a single training's.
_FAILURES = 3
# Columns of a line of --list.
_WIDTH = 100


def main(argv: Sequence[str] | None = None, plans: Mapping[str, Plan] = PLANS) -> int:
    """Run the command.

    Args:
        argv: sequence of str. The words after the command's name. Defaults to None, which takes
            those of the process.
        plans: mapping. The plans by name. Defaults to PLANS.

    Returns:
        The exit status: 0; 1 if a training failed; 128 + the signal's number after a signal.

    Raises:
        SystemExit: A word or a file is wrong; the message is one sentence.
    """
    options = _parser().parse_args(argv)
    if options.plan not in plans:
        raise SystemExit(
            f"run.py: There is no plan {options.plan!r}: choose one of {', '.join(plans)}."
        )
    plan, out = plans[options.plan], options.out / options.plan
    summaries = read_summaries(out / "summaries")
    if options.list:
        print(_listed(plan, summaries))
        return 0
    if options.draw:
        print("\n".join(f"written: {path}" for path in draw(plan, options.plan, summaries, out)))
        return 0
    known = {name for job in jobs_of(plan, summaries) for name in (job.name, job.method)}
    for name in options.only or ():
        if name not in known:
            raise SystemExit(
                f"run.py: --only {name}: the plan has no such training or method; see --list."
            )
    _pin(options.cores)
    places = Places(
        options.plan, options.runs / options.plan, out / "summaries", options.data_dir,
        options.raw_dir,
    )  # fmt: skip
    with Children(_deadline(options), options.cores) as children:
        try:
            return _train_all(plan, places, children, options.only)
        except StoppedError as stopped:
            print(f"Stopped ({stopped}). The same command goes on.", flush=True)
            return stopped.status


def _train_all(plan: Plan, places: Places, children: Children, only: Sequence[str] | None) -> int:
    """Train, one after the other, and return the exit status."""
    passed: set[str] = set()
    failures, status = 0, 0
    while True:
        # Anew each time: a summary may decide the settings of others, and another machine's may
        # have come.
        summaries = read_summaries(places.summaries)
        jobs = [
            job for job in jobs_of(plan, summaries)
            if not only or job.name in only or job.method in only
        ]  # fmt: skip
        todo = [job for job in jobs if job.name not in passed and _is_due(job, summaries, places)]
        if not todo:
            break
        job = todo[0]
        print(f"{time.strftime('%H:%M')} {job.name} ({_took(_estimate(plan, job, summaries))})",
              flush=True)  # fmt: skip
        try:
            train(job, places, children, summaries.get(job.name))
            failures = 0
        except TakenError:
            passed.add(job.name)
            print("  is being trained by another: passed over", flush=True)
        except FailedError as error:
            passed.add(job.name)
            failures, status = failures + 1, 1
            print(f"  {error}", flush=True)
            if failures == _FAILURES:
                print(f"{_FAILURES} trainings in a row failed: ending here.", flush=True)
                return status
    print(_summed_up(plan, read_summaries(places.summaries)), flush=True)
    return status


def _is_due(job: Job, summaries: Summaries, places: Places) -> bool:
    """Whether a job can be trained, or measured once more, now."""
    if not job.is_done(summaries):
        return not job.waits
    # What `landscape` has learnt since can be measured where the run is.
    is_here = (places.runs / job.folder / "config.json").exists()
    return is_here and not job.candidate and bool(lacking(summaries[job.name]))


def _estimate(plan: Plan, job: Job, summaries: Summaries) -> float:
    """Return the seconds that a training takes: as those of its method, of its plan, or a guess."""
    if job.is_done(summaries):
        return 0.0
    of_plan, of_method = [], []
    for summary in summaries.values():
        final = summary["final"]
        of_plan.append(final["seconds"] / final["gradient_evaluations"])
        if summary["method"] == job.method:
            of_method.append(of_plan[-1])
    speeds = sorted(of_method or of_plan) or [plan.seconds]
    return job.evaluations * speeds[len(speeds) // 2]


def _listed(plan: Plan, summaries: Summaries) -> str:
    jobs = jobs_of(plan, summaries)
    lines, part = [plan.title], ""
    for job in jobs:
        if job.part != part:
            part = job.part
            lines += ["", part]
        if job.is_done(summaries):
            final = summaries[job.name]["final"]
            error = f"{final['error']:6.2f} % {'validation' if job.candidate else ''}".rstrip()
            lines.append(f"  done     {job.name:<40} {error}")
        elif job.waits:
            lines.append(cut(f"  waits    {job.name:<40} {job.waits}", _WIDTH))
        else:
            lines.append(f"  pending  {job.name:<40} {_took(_estimate(plan, job, summaries))}")
    return "\n".join([*lines, "", _summed_up(plan, summaries)])


def _summed_up(plan: Plan, summaries: Summaries) -> str:
    jobs = jobs_of(plan, summaries)
    done = sum(job.is_done(summaries) for job in jobs)
    waiting = sum(bool(job.waits) for job in jobs)
    seconds = sum(_estimate(plan, job, summaries) for job in jobs)
    return (
        f"{done} of {len(jobs)} trainings are done, {waiting} wait for others; those that can be "
        f"trained now take {_took(seconds)}."
    )


def _took(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _deadline(options: argparse.Namespace) -> float | None:
    """Return until when to train, in the seconds of `time.time`; None for no end.

    Raises:
        SystemExit: --until is no time of day.
    """
    if options.minutes is not None:
        return time.time() + 60 * float(options.minutes)
    if options.until is None:
        return None
    try:
        clock = time.strptime(options.until, "%H:%M")
    except ValueError:
        raise SystemExit(
            f"run.py: --until {options.until}: give a time of day such as 15:30."
        ) from None
    now = time.localtime()
    today = (now.tm_year, now.tm_mon, now.tm_mday, clock.tm_hour, clock.tm_min, 0, 0, 0, -1)
    end = time.mktime(today)
    return end if end > time.time() else end + 24 * 3600


def _pin(cores: int) -> None:
    """Keep this process, and what it starts, on the first cores of those that it may use."""
    if hasattr(os, "sched_setaffinity"):  # on Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", metavar="PLAN", help=", ".join(PLANS))
    parser.add_argument("--cores", type=_at_least_one, default=1, help="CPU cores; by default 1")
    parser.add_argument("--list", action="store_true", help="only show what is done and pending")
    parser.add_argument("--draw", action="store_true", help="only make the tables and figures")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="only this training or method; may be repeated")  # fmt: skip
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--until", metavar="HH:MM", help="stop at this time of day")
    end.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--data_dir", default="tfrecords", help="where prepared data lie")
    parser.add_argument("--raw_dir", help="folder with the archives of the data sets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "plans",
                        help="where run folders lie")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "results",
                        help="where the folders of plans lie, with summaries")  # fmt: skip
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
