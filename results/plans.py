"""The plans of `results/run.py`: which trainings, in which order. Data only.

A plan is a list of parts, and a part a list of methods, each of which is trained with every seed:
first all methods with the first seed, then all with the second. Flags are those of train.py under
their long names, and those of a method go before those of its part and its plan. One is not
train.py's:

    "scope": (a, b)    gamma grows from a at the start to b at the end, whatever the length of the
                       run: --gamma a, and --scoping as it takes for that

An epoch of train.py is as many gradient evaluations for every method: SAM, which takes two a step,
makes half the steps.

Settings are chosen without the test images: each of a method's `candidates` is trained once, with
seed 0, on training images of which `validation` are held out, and the one with the smallest error
on those is then trained on all training images, with the seeds of the part. The step size falls to
0 by half a cosine, but for SWA, which averages at a constant one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["PLANS", "Method", "Part", "Plan"]

Flags = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Args:
        name: str. What its runs are called; unique in the plan.
        label: str. What figures and tables call it.
        flags: mapping. Flags of train.py.
        candidates: mapping from names to flags. Settings of which one is chosen on held-out images.
            Defaults to {}, which leaves nothing to choose.
        like: tuple of str. Names of methods of the plan; this one takes the flags and the choice
            of the one with the smallest error on the held-out images. Defaults to (), for none.
    """

    name: str
    label: str
    flags: Flags = dataclasses.field(default_factory=dict)
    candidates: Mapping[str, Flags] = dataclasses.field(default_factory=dict)
    like: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """Methods that are compared with each other.

    Args:
        title: str. What stands above its table.
        flags: mapping. Flags of all its methods.
        methods: tuple of Method. In the order of their value.
        seeds: tuple of ints. The seeds. Defaults to (1, 2, 3).
        is_validation: bool. Whether its runs are evaluated on held-out images. Defaults to False.
    """

    title: str
    flags: Flags
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    is_validation: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `python3 results/run.py NAME` trains.

    Args:
        title: str. What stands above its page.
        flags: mapping. Flags of all runs.
        validation: int >= 1. Training images that are held out where settings are chosen.
        parts: tuple of Part. In the order of their value.
        choice: mapping. Flags of the candidates beside those of their method, such as fewer
            epochs. Defaults to {}, which changes nothing.
        seconds: float > 0. A guess of the seconds of a gradient evaluation on one core, until a
            summary says more. Defaults to 0.1.
    """

    title: str
    flags: Flags
    validation: int
    parts: tuple[Part, ...]
    choice: Flags = dataclasses.field(default_factory=dict)
    seconds: float = 0.1


def _rates(*values: float) -> dict[str, Flags]:
    """Return candidates that differ in the step size."""
    return _each("learning_rate", "lr", *values)


def _each(name: str, short: str, *values: float) -> dict[str, Flags]:
    """Return candidates that differ in one flag."""
    return {f"{short}{value:g}": {name: value} for value in values}


# What the rivals' flags are called: the only place that says so. A rival whose -opt train.py
# does not know yet waits; `--list` says so.
_SAM = {"optimizer": "sam"}
_ASAM = {"optimizer": "asam"}
_LPF = {"optimizer": "lpf-sgd"}
_SWA = {"optimizer": "swa"}
_EMA = {"optimizer": "ema"}
_LOOKAHEAD = {"optimizer": "lookahead"}
_RHO, _LPF_GAMMA, _SWA_START, _SWA_RATE = "rho", "lpf_gamma", "swa_start", "swa_lr"

_SGD = {"optimizer": "momentum", "momentum": 0.9}
_RSGD = {"optimizer": "rsgd", "replicas": 3, "momentum": 0.9}


def _entropy(steps: int, **others: Any) -> dict[str, Any]:
    return {
        "optimizer": "entropy-sgd", "langevin_steps": steps, "learning_rate": 1.0,
        "langevin_learning_rate": 0.05, "scope": (0.1, 10.0), **others,
    }  # fmt: skip


def _methods(rate: float) -> tuple[Method, ...]:
    """Return the methods, each with candidates, around a step size of SGD."""
    rates = _rates(rate / 2, rate, rate * 2)
    inner = _each("langevin_learning_rate", "inner", rate / 2, rate, rate * 2)
    at = {"learning_rate": rate}
    averages = {
        f"start{start:g}-lr{factor * rate:g}": {_SWA_START: start, _SWA_RATE: factor * rate}
        for start in (0.5, 0.75) for factor in (0.2, 1.0)
    }  # fmt: skip
    return (
        Method("sgd", "SGD-Nesterov", _SGD, rates),
        Method("entropy-sgd-5", "Entropy-SGD, L = 5", _entropy(5), inner),
        Method("entropy-sgd-20", "Entropy-SGD, L = 20", _entropy(20), inner),
        Method("sam", "SAM", _SAM | at, _each(_RHO, "rho", 0.05, 0.1, 0.2)),
        Method("rsgd", "rSGD, 3 replicas", _RSGD, rates),
        Method("swa", "SWA", _SWA | at, averages),
        Method("lookahead", "Lookahead", _LOOKAHEAD, rates),
        Method("asam", "ASAM", _ASAM | at, _each(_RHO, "rho", 0.5, 1.0, 2.0)),
        Method("ema", "EMA", _EMA, rates),
        Method("lpf-sgd", "LPF-SGD", _LPF | at, _each(_LPF_GAMMA, "gamma", 5e-4, 2e-3)),
    )  # fmt: skip


_COSINE = {"lr_schedule": "cosine", "batch_size": 128, "bn_reestimate": 0}

# LeNet with 20 and 50 filters and 500 units, which is probably the SmallConvNet of the poster of
# Pittorino et al.: there SGD has 16.5 % and their best method 14.7 % at 300 effective epochs.
_ON_CIFAR = tuple(
    method for method in _methods(0.05) if method.name not in ("entropy-sgd-20", "lpf-sgd", "ema")
)
_RIVALS = ("rsgd", "sam", "swa", "lookahead", "asam")
_LENET = Plan(
    "LeNet on CIFAR-10, with flips and crops",
    {
        **_COSINE, "preset": "conv-cifar10", "dataset": "cifar10", "model": "lenet-20-50-500",
        "augmentation": "flip_crop", "preprocessing": "meanstd", "dropout": 0.0,
        "weight_decay": 1e-4,
    },
    validation=5000,
    choice={"epochs": 30},
    seconds=0.08,
    parts=(
        Part("100 effective epochs", {"epochs": 100}, _ON_CIFAR),
        Part(
            "300 effective epochs", {"epochs": 300},
            (
                Method("sgd-300", "SGD-Nesterov", like=("sgd",)),
                Method("entropy-sgd-5-300", "Entropy-SGD, L = 5", like=("entropy-sgd-5",)),
                Method("best-rival-300", "best rival", like=_RIVALS),
            ),
        ),
        # Error against effective epochs, with a spread of five.
        Part(
            "100 effective epochs, plain SGD and two more seeds", {"epochs": 100},
            (
                Method("plain-sgd", "SGD", {"optimizer": "sgd"}, _rates(0.1, 0.2, 0.4)),
                Method("sgd-more", "SGD-Nesterov", like=("sgd",)),
                Method("entropy-sgd-5-more", "Entropy-SGD, L = 5", like=("entropy-sgd-5",)),
            ),
            seeds=(4, 5),
        ),
        Part(
            "100 effective epochs, plain SGD", {"epochs": 100},
            (Method("plain-sgd-first", "SGD", like=("plain-sgd",)),),
        ),
    ),
)  # fmt: skip

# Everything overfits here: 8,750 training images, and neither augmentation nor dropout.
_EMBEDDED = {
    **_COSINE, "preset": "quickstart", "dataset": "fashion_mnist_small", "model": "lenet-10-20-128",
    "augmentation": "none", "preprocessing": "meanstd", "dropout": 0.0, "weight_decay": 0.0,
}  # fmt: skip


def _with_decay(name: str, method: Method) -> Method:
    """Return a method of which the weight decay is chosen, and nothing else."""
    return dataclasses.replace(
        method, name=name, label=f"{method.label}, weight decay",
        candidates=_each("weight_decay", "l2-", 1e-4, 5e-4, 1e-3, 2e-3),
    )  # fmt: skip


_OVERFIT = _methods(0.05)
_BY_NAME = {method.name: method for method in _OVERFIT}
_AT = {"learning_rate": 0.05}
_DECAYED = (
    _with_decay("sgd-decay", Method("sgd", "SGD-Nesterov", _SGD | _AT)),
    _with_decay("entropy-sgd-20-decay", Method("", "Entropy-SGD, L = 20", _entropy(20))),
    _with_decay("entropy-sgd-5-decay", Method("", "Entropy-SGD, L = 5", _entropy(5))),
    _with_decay("sam-decay", Method("", "SAM", _SAM | _AT | {_RHO: 0.1})),
)
# What each setting does, for the page on tuning: one or two of them at a time.
_GRID = (
    *(
        Method(f"scope{scope:g}-L{steps}", f"scope to {scope:g}, L = {steps}",
               _entropy(steps, scope=(scope / 100, scope)))
        for scope in (1.0, 10.0, 100.0) for steps in (5, 20, 60)
    ),
    *(
        Method(f"noise{noise:g}", f"noise {noise:g}, L = 20", _entropy(20, noise=noise))
        for noise in (0.0, 1e-3, 1e-2)
    ),
    *(
        Method(f"noise{noise:g}-l2-{decay:g}", f"noise {noise:g}, weight decay {decay:g}, L = 20",
               _entropy(20, noise=noise, weight_decay=decay))
        for noise in (1e-4, 1e-2) for decay in (1e-4, 5e-4, 2e-3)
    ),
)  # fmt: skip
_OVERFITTING = Plan(
    "LeNet on 8,750 images of Fashion-MNIST, without augmentation",
    _EMBEDDED,
    validation=1750,
    seconds=0.015,
    parts=(
        Part("60 effective epochs", {"epochs": 60}, _OVERFIT),
        Part("60 effective epochs, with a weight decay that was chosen", {"epochs": 60}, _DECAYED),
        Part("Settings of Entropy-SGD, 60 effective epochs, error on held-out images",
             {"epochs": 60}, _GRID, is_validation=True),
        Part(
            "200 effective epochs", {"epochs": 200},
            (
                Method("sgd-200", "SGD-Nesterov", like=("sgd",)),
                Method("entropy-sgd-20-200", "Entropy-SGD, L = 20", like=("entropy-sgd-20",)),
                Method("sgd-decay-200", "SGD-Nesterov, weight decay", like=("sgd-decay",)),
                Method("entropy-sgd-20-decay-200", "Entropy-SGD, L = 20, weight decay",
                       like=("entropy-sgd-20-decay",)),
                Method("best-rival-200", "best rival", like=_RIVALS),
            ),
        ),
    ),
)  # fmt: skip

# The images that are held out keep their true labels, as the test images do.
_LABEL_NOISE = Plan(
    "The same with wrong labels: who memorises least?",
    _EMBEDDED,
    validation=1750,
    seconds=0.015,
    parts=tuple(
        Part(
            f"{100 * share:.0f} % wrong labels, 60 effective epochs",
            {"epochs": 60, "corrupt": f"label_noise:{share:g}"},
            tuple(
                dataclasses.replace(_BY_NAME[name], name=f"{name}-noise{100 * share:.0f}")
                for name in ("sgd", "entropy-sgd-20", "entropy-sgd-5", "sam", "swa", "lookahead",
                             "rsgd")
            ),
        )
        for share in (0.2, 0.4)
    ),
)  # fmt: skip

#: By the name that `results/run.py` takes. Convergence (error against epochs) is of "lenet".
PLANS: dict[str, Plan] = {
    "lenet": _LENET,
    "overfitting": _OVERFITTING,
    "label_noise": _LABEL_NOISE,
}
