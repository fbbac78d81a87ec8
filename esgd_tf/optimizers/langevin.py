"""The update rules of Entropy-SGD as pure functions of tensors: no Keras, no state.

Entropy-SGD descends the negative local entropy

    -F(x, gamma) = -log ∫ exp(-f(x') - gamma/2 |x - x'|^2) dx',
    -∇F(x, gamma) = gamma (x - <x'>),

where x is the anchor and <.> the mean under exp(-f(x') - gamma/2 |x - x'|^2). The mean is estimated
by L steps of stochastic gradient Langevin dynamics on fresh minibatches. At the start of each outer
update t = 1, 2, ...

    x' = mean = x,  v = 0

and then, L times,

    q    = ∇f(x'; minibatch) + weight_decay x'
    v    = momentum v + q
    s    = q + momentum v   (Nesterov),   v   (otherwise)
    x'   = x' - eta' s - min(eta' gamma(t), 1) (x' - x) + sqrt(2 eta') noise N(0, I)
    mean = averaging mean + (1 - averaging) x'

after which the outer optimizer takes a step with the gradient r = x - mean.

Sources: Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide valleys", ICLR 2017,
arXiv 1611.01838, Algorithm 1, with the conventions of the authors' released code where the two
differ: the noise is sqrt(2 eta') noise (printed: sqrt(eta') noise), `averaging` weighs the OLD
mean (printed: the new sample), and gamma is left out of r (printed: gamma r; the paper's section
on scoping leaves it out too).

Hazards that the original codes fell into, and these rules do not:

* Beyond eta' gamma(t) = 2 each step overshoots the anchor by more than the last, and x' runs away:
  scoping gets there in any run that is long enough. Here the pull min(eta' gamma(t), 1) ends at 1,
  where a step starts from the anchor: the limit of a vanishing scope. Below, it is the originals'.

* The proximal term and the noise never enter the velocity. In the originals the branch without
  Nesterov aliases velocity and step, and both leak in.
* momentum = 0 is plain Langevin dynamics. In the original Lua code the gradient vanishes there.

These functions are the reference: they define a step, in arithmetic that works for TensorFlow
tensors as well as for NumPy arrays. Training runs only `outer_gradient`; its Langevin steps run
in `_inner_loop.py`, on variables and by TensorFlow's fused kernels (`_kernels.py`): written as
here, a step would pass over the weights about thirty times, with the kernels about half as often,
and for tens of millions of weights these passes are the cost of the update. `tests/optimizers/`
holds the two equal: `test_kernels.py` step by step in float64, `test_golden.py` both of them on the
trajectories of the original codes, and the `helpers.reference` of the other tests is made of these
functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["LangevinState", "langevin_step", "outer_gradient", "start"]

# A tf.Tensor or a NumPy array: the rules are arithmetic and hold for both.
Array = Any


class LangevinState(NamedTuple):
    """The state of one inner loop between steps; all three have the shape of the weights.

    Attributes:
        weights: x', the Langevin weights.
        velocity: v, the inner velocity (in units of the gradient).
        mean: Running average of x'.
    """

    weights: Array
    velocity: Array
    mean: Array


def start(anchor: Array) -> LangevinState:
    """Return the state at the start of an outer update: x' = mean = x and v = 0.

    Args:
        anchor: array or tensor of the weights' shape. x, the weights that the outer loop updates.
    """
    return LangevinState(weights=anchor, velocity=anchor * 0, mean=anchor)


def langevin_step(
    state: LangevinState,
    anchor: Array,
    gradient: Array,
    *,
    learning_rate: float,
    gamma: float,
    averaging: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    displacement: Array | None = None,
) -> LangevinState:
    """Take one Langevin step; the top of this module has the equations.

    Args:
        state: LangevinState. The state before the step.
        anchor: array or tensor of the weights' shape. x.
        gradient: array or tensor of the weights' shape. The minibatch gradient of the loss at
            `state.weights`.
        learning_rate: float > 0. eta', the inner step size.
        gamma: float >= 0. gamma(t), the scope; above 1 / eta' it acts as 1 / eta'.
        averaging: float in [0, 1). The weight of the old mean.
        momentum: float in [0, 1). Momentum of the inner velocity. Defaults to 0.0.
        nesterov: bool. Whether the step looks ahead along the velocity. Defaults to False.
        weight_decay: float >= 0. L2 coefficient, added to the gradient before the momentum.
            Defaults to 0.0.
        displacement: array or tensor of the weights' shape. The thermal displacement sqrt(2 eta')
            noise N(0, I), sampled by the caller. Defaults to None, which means no displacement.

    Returns:
        The state after the step.
    """
    weights, velocity, mean = state
    gradient = gradient + weight_decay * weights
    velocity = momentum * velocity + gradient
    step = gradient + momentum * velocity if nesterov else velocity
    pull = min(learning_rate * gamma, 1.0)
    weights = weights - learning_rate * step - pull * (weights - anchor)
    if displacement is not None:
        weights = weights + displacement
    mean = averaging * mean + (1 - averaging) * weights
    return LangevinState(weights, velocity, mean)


def outer_gradient(anchor: Array, mean: Array, gamma: float | None = None) -> Array:
    """Return r = x - mean, the gradient handed to the outer optimizer.

    Args:
        anchor: array or tensor of the weights' shape. x.
        mean: array or tensor of the weights' shape. The running average of x' after the last
            Langevin step.
        gamma: float >= 0. A factor on r, as in Algorithm 1; the authors leave it out in practice,
            so that a growing gamma does not work against the annealed learning rate. Defaults to
            None, which leaves it out.
    """
    difference = anchor - mean
    return difference if gamma is None else gamma * difference
