"""The divergence between two coins, and its inverse, in which PAC-Bayes bounds are written.

    kl(q‖p) = q ln(q/p) + (1 - q) ln((1 - q)/(1 - p)),   0 ln 0 = 0
    kl⁻¹(q, c) = max{p : kl(q‖p) <= c}

Where a bound says kl(q‖p) <= c of an error q that was measured and an error p that was not, p is at
most kl⁻¹(q, c). That is 1 - e^{-c} at q = 0, and nowhere more than q + sqrt(c/2) (Pinsker).

Sources: Langford and Seeger, "Bounds for averaging classifiers", 2001; Dziugaite and Roy,
"Computing nonvacuous generalization bounds", UAI 2017, section 2.2 (there by Newton's method; here
by SciPy's `brentq`, which cannot leave its bracket).
"""

from __future__ import annotations

import math

from esgd_tf import _checks

__all__ = ["kl_bernoulli", "kl_inverse"]


def kl_bernoulli(q: float, p: float) -> float:
    """Return kl(q‖p), in nats.

    Args:
        q: float in [0, 1]. The probability under the first distribution.
        p: float in [0, 1]. The probability under the second. Where it is 0 or 1 and q is not the
            same, the divergence is infinite.

    Raises:
        ValueError: A probability is out of range.
    """
    q = _checks.real("q", q, at_least=0, at_most=1)
    p = _checks.real("p", p, at_least=0, at_most=1)
    if (p == 0 and q > 0) or (p == 1 and q < 1):
        return math.inf
    # `log1p` keeps the digits of 1 - p where p is small.
    heads = q * math.log(q / p) if q else 0.0
    tails = (1 - q) * (math.log1p(-q) - math.log1p(-p)) if q < 1 else 0.0
    return max(heads + tails, 0.0)


def kl_inverse(q: float, budget: float) -> float:
    """Return the largest p with kl(q‖p) <= budget.

    Args:
        q: float in [0, 1]. The probability that is known.
        budget: float >= 0. The divergence that is allowed, in nats; infinity allows p = 1.

    Raises:
        ValueError: The probability or the budget is out of range.
    """
    from scipy.optimize import brentq

    q = _checks.real("q", q, at_least=0, at_most=1)
    if budget != math.inf:
        budget = _checks.real("budget", budget, at_least=0)
    # The largest number below 1. No p above it can be told from 1.
    last = 1 - 2.0**-53
    if q >= last or kl_bernoulli(q, last) <= budget:
        return 1.0
    if q == 0:
        return -math.expm1(-budget)
    if budget == 0:
        return q
    return float(brentq(lambda p: kl_bernoulli(q, p) - budget, q, last, xtol=1e-15))
