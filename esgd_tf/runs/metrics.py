"""Measures of a classifier: accuracy, likelihood and calibration.

With logits z_i, labels y_i and p_i = softmax(z_i), for n images:

    accuracy    a = (1/n) Σ [argmax z_i = y_i]
    NLL         -(1/n) Σ log p_i[y_i], in nats
    ECE         Σ_m (n_m / n) |acc(B_m) - conf(B_m)|

where B_m holds the n_m images whose confidence max_k p_i[k] lies in ((m - 1)/M, m/M], and acc and
conf are the means of correctness and confidence over B_m: Guo, Pleiss, Sun and Weinberger, "On
calibration of modern neural networks", ICML 2017, arXiv 1706.04599, equation 3, with their M = 15.
The interval of the accuracy is E. B. Wilson's score interval (JASA 22, 1927).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ECE_BINS",
    "ClassificationMetrics",
    "classification_metrics",
    "expected_calibration_error",
    "log_softmax",
    "wilson_interval",
]

ECE_BINS = 15


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """The result of `classification_metrics`.

    Attributes:
        images: n, the number of images.
        accuracy: Share of images whose largest logit belongs to their label.
        accuracy_interval: 95% Wilson interval of the accuracy.
        nll: Mean negative log likelihood, nats per image.
        ece: Expected calibration error, in [0, 1].
    """

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    nll: float
    ece: float

    @property
    def error(self) -> float:
        """1 - accuracy."""
        return 1.0 - self.accuracy


def classification_metrics(
    logits: NDArray[np.floating], labels: NDArray[np.integer]
) -> ClassificationMetrics:
    """Measure a classifier's outputs.

    Args:
        logits: NumPy array of shape [n, classes]. The network's outputs.
        labels: NumPy array of integers, of shape [n]. The true classes, in 0 ... classes - 1.

    Raises:
        ValueError: There are no images, the shapes do not match, or a logit is not finite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            "Logits must be [n, classes] and labels [n] with n at least 1, not "
            f"{list(logits.shape)} and {list(labels.shape)}."
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            "The network's outputs are not finite: its weights or BatchNorm statistics are NaN or "
            "infinite, or the images are."
        )
    log_p = log_softmax(logits)
    correct = logits.argmax(axis=1) == labels
    return ClassificationMetrics(
        images=len(labels),
        accuracy=float(correct.mean()),
        accuracy_interval=wilson_interval(int(correct.sum()), len(labels)),
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        ece=expected_calibration_error(np.exp(log_p.max(axis=1)), correct),
    )


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities, [n, classes], in float64."""
    # SciPy takes half a second to load, and commands that only list runs do not need it.
    from scipy import special  # noqa: PLC0415

    return special.log_softmax(logits.astype(np.float64), axis=1)


def expected_calibration_error(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """Return the ECE of the module's docstring.

    Args:
        confidences: NumPy array of shape [n]. The probability of each predicted class, in (0, 1].
        correct: NumPy array of bools, of shape [n]. Whether each prediction was right.
        bins: int >= 1. M, the number of bins, which have equal widths. Defaults to ECE_BINS.
    """
    # Bins are closed at their upper end; rounding may put a certain prediction just above 1.
    numbers = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    # n_m |acc - conf| = |Σ correct - Σ confidence| over the bin.
    gaps = np.bincount(numbers, weights=correct.astype(np.float64) - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion.

    Unlike the textbook p +- z sqrt(p (1 - p) / n) it stays inside [0, 1] and has a width at p = 1.

    Args:
        successes: int in [0, n]. k, the number of successes.
        trials: int >= 1. n, the number of trials.
        confidence: float in (0, 1). The probability that such an interval contains the true
            proportion. Defaults to 0.95.
    """
    from scipy import stats  # noqa: PLC0415

    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
