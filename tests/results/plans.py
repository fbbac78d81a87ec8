"""A plan of two trainings of two epochs of five steps, and summaries written by hand."""

from results._jobs import jobs_of
from results.plans import Method, Part, Plan

FLAGS = {"preset": "quickstart", "model": "lenet-2-3-8", "batch_size": 1750, "bn_reestimate": 0}
TINY = Plan(
    "A tiny plan",
    FLAGS,
    validation=1750,
    parts=(
        Part(
            "two epochs",
            {"epochs": 2},
            (
                Method("sgd", "SGD", {"optimizer": "momentum"}),
                Method("entropy", "Entropy-SGD", {"optimizer": "entropy-sgd", "langevin_steps": 3}),
            ),
            seeds=(1,),
        ),
    ),
)
CHOOSING = Plan(
    "A plan with settings that are chosen",
    FLAGS,
    validation=1750,
    choice={"epochs": 1},
    parts=(
        Part(
            "two epochs",
            {"epochs": 2},
            (
                Method("sgd", "SGD", {"optimizer": "momentum"},
                       {"small": {"learning_rate": 0.1}, "large": {"learning_rate": 0.2}}),
                Method("entropy", "Entropy-SGD",
                       {"optimizer": "entropy-sgd", "langevin_steps": 2, "scope": (0.1, 10.0)},
                       {"quiet": {"noise": 0.0}}),
            ),
            seeds=(1, 2),
        ),
        Part("six epochs", {"epochs": 6}, (Method("best", "best", like=("sgd", "entropy")),), (1,)),
    ),
)  # fmt: skip


def job(plan, name, summaries=()):
    return next(job for job in jobs_of(plan, dict(summaries)) if job.name == name)


def summary(job, error, **others):
    """A summary as if the job had ended with this error."""
    final = {"error": error, "loss": 1.0, "train_error": 1.0, "train_loss": 0.1,
             "gap": error - 1.0, "gradient_evaluations": 20, "seconds": 10.0}  # fmt: skip
    measures = {
        "quantization": {f"error at {bits} bits (%)": error + 4 - bits for bits in (4, 3, 2)},
        "spectrum": {"largest eigenvalue": 3.0, "smallest eigenvalue": -1.0},
    }
    curve = {"epoch": [1.0, 2.0], "gradient_evaluations": [10, 20], "error": [2 * error, error]}
    return {
        "run": job.name, "method": job.method, "label": job.label, "seed": job.seed,
        "chosen": job.chosen, "flags": dict(job.flags), "split": "test", "final": final,
        "measures": measures, "missing": {}, "curve": curve, "made_by": "a machine", **others,
    }  # fmt: skip
