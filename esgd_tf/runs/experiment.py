"""The settings of a training run: the numbers of its experiment, and its devices and limits.

config.py has the papers' experiments as values of `Experiment`. Every field says in its metadata
what it may be, what it means, and for which optimizers (`esgd_tf/runs/setting.py`); `train.py
--help` shows that. This module loads no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from esgd_tf.data.catalog import AUGMENTATIONS, DATASETS, PREPROCESSINGS
from esgd_tf.data.corruption import CORRUPTIONS
from esgd_tf.models import names as model_names
from esgd_tf.runs.setting import Choice, Growing, Names, Number, Switch, Text, Whole, setting

__all__ = [
    "GRADIENTS_PER_STEP",
    "GROUPS",
    "OPTIMIZERS",
    "REPLICATED",
    "STRATEGIES",
    "Experiment",
    "RunSettings",
]

OPTIMIZERS = (
    "entropy-sgd", "entropy-adam", "sgd", "momentum", "adam", "rsgd", "easgd", "parle",
    "sam", "asam", "lpf-sgd", "swa", "ema", "lookahead",
)  # fmt: skip
#: The gradient evaluations of a step, where they are not one in every replica.
GRADIENTS_PER_STEP = {"sam": 2, "asam": 2}
#: The optimizers that train several replicas of the network.
REPLICATED = ("rsgd", "easgd", "parle")
# The same names as in `esgd_tf.training.strategies`, which needs TensorFlow.
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
# With 10,000 minibatches an epoch, 64-bit counters of gradient evaluations are far from full.
_MOST_EPOCHS = 1_000_000

_WHAT, _GOING_ON, _ALGORITHM, _REPLICAS, _RIVALS, _DATA, _DEVICES, _RUN = GROUPS = (
    "What to train",
    "Going on",
    "The algorithm",
    "Replicas (rsgd, easgd, parle)",
    "Rivals (sam, asam, lpf-sgd, swa, ema, lookahead)",
    "Data",
    "Devices",
    "The run",
)


def _is_entropy_sgd(optimizer: str, inner_loop: bool) -> bool:
    return optimizer == "entropy-sgd"


def _has_momentum(optimizer: str, inner_loop: bool) -> bool:
    return optimizer not in ("sgd", "adam")


def _may_have_inner_loop(optimizer: str, inner_loop: bool) -> bool:
    # With -L, rsgd and easgd are replicas of Entropy-SGD.
    return optimizer.startswith("entropy-") or optimizer in REPLICATED


def _has_inner_loop(optimizer: str, inner_loop: bool) -> bool:
    always = optimizer.startswith("entropy-") or optimizer == "parle"
    return always or (optimizer in REPLICATED and inner_loop)


def _has_noise(optimizer: str, inner_loop: bool) -> bool:
    return _has_inner_loop(optimizer, inner_loop) and optimizer != "parle"


def _is_replicated(optimizer: str, inner_loop: bool) -> bool:
    return optimizer in REPLICATED


def _is_rsgd(optimizer: str, inner_loop: bool) -> bool:
    return optimizer == "rsgd"


def _is(*names: str) -> Callable[[str, bool], bool]:
    return lambda optimizer, inner_loop: optimizer in names


def _grows(optimizer: str, inner_loop: bool) -> bool:
    return optimizer in ("rsgd", "parle")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The numbers of one experiment, which decide what a run computes, except for its seed.

    `python3 train.py --help` says what each of them is; so does the help in its metadata.
    """

    dataset: str = setting(Choice(DATASETS), "data set", _WHAT, short="d")
    model: str = setting(
        Text(),
        f"architecture: {', '.join(model_names())} or another wrn-DEPTH-WIDTH",
        _WHAT,
        short="m",
    )
    optimizer: str = setting(
        Choice(OPTIMIZERS),
        "momentum is SGD with Nesterov momentum; rsgd, easgd and parle train replicas by it: "
        "Replicated-SGD, elastic averaging, Parle; sam, asam, lpf-sgd, swa, ema and lookahead are "
        "rivals around it",
        _WHAT,
        short="opt",
        rank=0,
    )
    epochs: int = setting(
        Whole(1, _MOST_EPOCHS),
        "effective epochs: passes over the data, for every optimizer. Other than the preset's, it "
        "stretches the preset's --lr_drops",
        _WHAT,
        short="e",
        may_change=True,
    )
    learning_rate: float = setting(
        Number(), "step size; for entropy-* that of the outer update", _ALGORITHM, short="lr"
    )
    lr_drops: tuple[float, ...] = setting(
        Growing(), "effective epochs after which the step size drops", _ALGORITHM
    )
    lr_factor: float = setting(
        Number(above=0), "what the step size is multiplied by at a drop", _ALGORITHM
    )
    weight_decay: float = setting(
        Number(), "L2 coefficient, as a term in the gradient", _ALGORITHM, short="l2"
    )
    dropout: float = setting(
        Number(below=1), "rate of the dropout layers; input dropout is scaled along", _ALGORITHM
    )
    # The default is from lua; the paper gives 128 for CIFAR-10 only.
    batch_size: int = setting(
        Whole(1), "images per gradient evaluation, over all devices", _WHAT, short="b", default=128
    )
    preprocessing: str = setting(Choice(PREPROCESSINGS), "of the images", _DATA, default="meanstd")
    augmentation: str = setting(
        Choice(AUGMENTATIONS), "of the training images", _DATA, default="none"
    )
    # The default is ours, 6,400 images; lua feeds the whole evaluation set.
    bn_reestimate: int = setting(
        Whole(0),
        "training batches from which BatchNorm statistics are estimated before each evaluation; 0 "
        "keeps the moving averages",
        _DATA,
        default=50,
    )
    lr_schedule: str = setting(
        Choice(("drops", "cosine")),
        "of the step size: drops at --lr_drops, or half a cosine from its start to 0 over the run",
        _ALGORITHM,
        default="drops",
        is_quiet=True,
    )
    validation_images: int = setting(
        Whole(0),
        "training images held out, to evaluate on instead of the test images: to choose settings "
        "by",
        _DATA,
        default=0,
        is_quiet=True,
    )
    # paper: Nesterov's, 0.9
    momentum: float = setting(
        Number(below=1),
        "Nesterov momentum of SGD; for entropy-* of the inner loop",
        _ALGORITHM,
        default=0.9,
        means=_has_momentum,
        instead="see -opt momentum",
    )
    langevin_steps: int = setting(
        Whole(0),
        "L, gradient evaluations per outer update",
        _WHAT,
        short="L",
        default=0,
        means=_may_have_inner_loop,
        rank=1,
    )
    # The default is from the paper.
    langevin_learning_rate: float = setting(
        Number(above=0),
        "inner step size",
        _ALGORITHM,
        short="langevin_lr",
        default=0.1,
        means=_has_inner_loop,
    )
    gamma: float = setting(
        Number(),
        "scope before the first outer update",
        _ALGORITHM,
        default=0.0,
        means=_has_inner_loop,
    )
    scoping: float = setting(
        Number(),
        "relative growth of the scope per outer update",
        _ALGORITHM,
        default=0.0,
        means=_has_inner_loop,
    )
    # The default is from answer; the paper's text says 1e-3 for MNIST.
    noise: float = setting(
        Number(),
        "thermal noise of the inner loop: the term is sqrt(2 langevin_lr) noise N(0, I)",
        _ALGORITHM,
        default=1e-4,
        means=_has_noise,
    )
    # As in lua, this is the weight of the OLD mean; the paper prints 0.75 for the new sample.
    averaging: float = setting(
        Number(below=1),
        "weight of the old mean of the Langevin weights",
        _ALGORITHM,
        default=0.75,
        means=_has_inner_loop,
    )
    corrupt: str = setting(
        Text(),
        f"what is done to the data first: {', '.join(CORRUPTIONS)}, some with a number "
        "(label_noise:0.2), several joined by +; see docs/corruption.png",
        _DATA,
        default="none",
        is_quiet=True,
    )
    corruption_seed: int = setting(
        Whole(0),
        "of --corrupt, apart from --seed: several runs see one data set",
        _DATA,
        default=0,
        is_quiet=True,
    )
    # As in lua, the outer update has none; the paper says Nesterov's in both.
    outer_momentum: float = setting(
        Number(below=1),
        "Nesterov momentum of the outer update of entropy-sgd",
        _ALGORITHM,
        default=0.0,
        means=_is_entropy_sgd,
    )
    replicas: int = setting(
        Whole(1),
        "interacting copies of the network",
        _REPLICAS,
        default=1,
        means=_is_replicated,
        rank=0,
    )
    coupling_gamma: float | None = setting(
        Number(),
        "strength of the coupling at the start: gamma of rsgd (measured where not given), alpha of "
        "easgd, rho of parle",
        _REPLICAS,
        default=None,
        means=_is_replicated,
        may_be_none=True,
    )
    coupling_every: int = setting(
        Whole(1),
        "updates from one coupling to the next",
        _REPLICAS,
        default=1,
        means=_is_replicated,
    )
    focusing: str = setting(
        Choice(("none", "exponential", "linear", "cosine")),
        "how the coupling of rsgd grows",
        _REPLICAS,
        default="none",
        means=_is_rsgd,
    )
    # The default is from sdnn.
    focusing_growth: float = setting(
        Number(above=0),
        "factor by which it grows over the run",
        _REPLICAS,
        default=1e4,
        means=_is_rsgd,
    )
    coupling_max: float | None = setting(
        Number(),
        "where that growth ends: --lr times it should not be above 1 / K",
        _REPLICAS,
        default=None,
        means=_grows,
        may_be_none=True,
    )
    # The default is from sdnn.
    initialization: str = setting(
        Choice(("independent", "same")),
        "of the replicas",
        _REPLICAS,
        default="independent",
        means=_is_replicated,
        rank=2,
    )
    budget: str = setting(
        Choice(("shared", "each")),
        "of an epoch: one pass over the data that replicas share, or a pass of each",
        _REPLICAS,
        default="shared",
        means=_is_replicated,
        rank=1,
    )
    # sam; asam's released code has 0.5 for CIFAR-10
    rho: float = setting(
        Number(),
        "radius of the perturbation; of asam in units of the weights",
        _RIVALS,
        default=0.05,
        means=_is("sam", "asam"),
    )
    # asam: the default of its class
    asam_eta: float = setting(
        Number(),
        "what asam adds to the size of each weight",
        _RIVALS,
        default=0.01,
        means=_is("asam"),
    )
    # lpf: for wide ResNets
    lpf_gamma: float = setting(
        Number(),
        "noise of lpf-sgd relative to each filter, at the start",
        _RIVALS,
        default=5e-4,
        means=_is("lpf-sgd"),
    )
    lpf_samples: int = setting(
        Whole(1),
        "parts of a minibatch, each with noise of its own",
        _RIVALS,
        default=8,
        means=_is("lpf-sgd"),
    )
    lpf_growth: float = setting(
        Number(above=0),
        "factor by which that noise grows over the run, along a cosine; at least 1",
        _RIVALS,
        default=1.0,
        means=_is("lpf-sgd"),
    )
    # swa: 161 of 200 epochs
    swa_start: float = setting(
        Number(below=1),
        "part of the run after which weights are averaged, once an effective epoch",
        _RIVALS,
        default=0.75,
        means=_is("swa"),
    )
    swa_lr: float | None = setting(
        Number(),
        "step size while averaging, to which --lr falls before; without it, --lr_drops",
        _RIVALS,
        default=None,
        means=_is("swa"),
        may_be_none=True,
    )
    # ours: no source for images
    ema: float = setting(
        Number(below=1),
        "weight of the old moving average",
        _RIVALS,
        default=0.999,
        means=_is("ema"),
    )
    # lookahead
    lookahead_steps: int = setting(
        Whole(1),
        "k, fast steps for each slow one",
        _RIVALS,
        default=5,
        means=_is("lookahead"),
    )
    lookahead_alpha: float = setting(
        Number(above=0),
        "slow step size, at most 1",
        _RIVALS,
        default=0.8,
        means=_is("lookahead"),
    )

    @property
    def gradients_per_step(self) -> int:
        """Gradient evaluations of a step: one in every replica, two of SAM."""
        return GRADIENTS_PER_STEP.get(self.optimizer, self.replicas)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings of how a run is carried out: its seed, devices, precision and limits."""

    seed: int = setting(
        Whole(0), "of weights, data order, augmentation, dropout and noise", _WHAT, short="s",
        default=42, rank=90,
    )  # fmt: skip
    strategy: str = setting(
        Choice(STRATEGIES),
        "auto: multi_worker where TF_CONFIG or SLURM name several workers, mirrored for two GPUs "
        "or more, else none",
        _DEVICES,
        default="auto",
        may_change=True,
        is_quiet=True,
    )
    devices: list[str] | None = setting(
        Names(),
        "devices to use, such as GPU:0,GPU:1; by default all GPUs",
        _DEVICES,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    logical_devices: int | None = setting(
        Whole(1),
        "split the GPU, or the CPU, into so many devices: to try out on one what is meant for "
        "several",
        _DEVICES,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    tpu: str | None = setting(
        Text(),
        "name or address of the TPU; by default the local one",
        _DEVICES,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    scale_lr: bool = setting(
        Switch(),
        "multiply the rate of the minibatch gradient (--langevin_lr with an inner loop, else --lr) "
        "by the batch size over the preset's",
        _DEVICES,
        default=False,
        is_quiet=True,
    )
    sync_bn: bool = setting(
        Switch(),
        "let BatchNorm see the batch of all devices, not each its own part",
        _DEVICES,
        default=False,
        is_quiet=True,
    )
    jit_compile: str = setting(
        Choice(("auto", "true", "false")),
        "compile the step with XLA; auto: on a GPU, yes",
        _DEVICES,
        default="auto",
        may_change=True,
        rank=60,
    )
    mixed_precision: str = setting(
        Choice(("none", "bfloat16", "float16")),
        "half precision of activations; weights and the optimizer stay float32",
        _DEVICES,
        default="none",
    )
    checkpoint_steps: int | None = setting(
        Whole(1),
        "save every so many gradient evaluations, not only after each epoch",
        _RUN,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    keep_every: int | None = setting(
        Whole(1),
        "keep the checkpoint of every so many epochs for good, for `python3 -m esgd_tf landscape "
        "--plane`",
        _RUN,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    on_nan: str = setting(
        Choice(("stop", "skip")),
        "what to do when a gradient is not finite: stop with the state before it, or leave that "
        "minibatch out, on every device",
        _RUN,
        default="stop",
        may_change=True,
        is_quiet=True,
    )
    limit_steps: int | None = setting(
        Whole(1),
        "stop after so many gradient evaluations, and evaluate on at most as many batches: to try "
        "things out",
        _RUN,
        default=None,
        may_change=True,
        may_be_none=True,
    )
    monitor: int = setting(
        Whole(0),
        "training and test images on which every replica, center and ensemble are measured after "
        "each epoch; 0 for none",
        _REPLICAS,
        default=2000,
        may_change=True,
        means=_is_replicated,
        rank=90,
    )
