"""Architectures by name.

Nothing here loads TensorFlow, and neither does importing an architecture's module, which loads
Keras inside its function. So the command line can list and check names at once.

Every module of this package whose name has no leading underscore is imported when a name is first
looked up. An architecture in another package is known once its module is imported::

    from esgd_tf.models import register

    @register("mlp-{width}", examples=("mlp-64",))
    def mlp(input_shape, num_classes, *, dropout, seed, width):
        ...  # import keras here, return a keras.Model that ends in logits
"""

from __future__ import annotations

import functools
import importlib
import numbers
import pkgutil
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from esgd_tf import _checks

if TYPE_CHECKING:
    import keras

InputShape = tuple[int, int, int]
_Builder = TypeVar("_Builder", bound=Callable[..., "keras.Model"])

# These modules of the package hold no architecture; the second would load TensorFlow.
_NOT_ARCHITECTURES = frozenset({"registry", "batch_norm"})


class _Entry(NamedTuple):
    regex: re.Pattern[str]
    builder: Callable[..., keras.Model]
    examples: tuple[str, ...]
    check: Callable[..., None] | None


_entries: dict[str, _Entry] = {}


def register(
    name_or_pattern: str,
    *,
    examples: tuple[str, ...] = (),
    check: Callable[..., None] | None = None,
) -> Callable[[_Builder], _Builder]:
    """Make the decorated function the architecture of a name.

    The function is called as ``f(input_shape, num_classes, dropout=, seed=)`` and returns a
    Keras model that ends in logits. In a pattern each ``{field}`` stands for a whole number,
    which is passed to the function as one more keyword: ``"wrn-{depth}-{width}"`` gives
    ``depth=28, width=10`` for the name ``"wrn-28-10"``.

    Args:
        name_or_pattern: str. The name, or a pattern with fields.
        examples: tuple of str. For a pattern, the matching names that ``names()`` lists. Defaults
            to ().
        check: callable. Called with the fields as keywords before anything is built; raises
            ValueError with one clear sentence when their values make no network. Defaults to None,
            which checks nothing.

    Returns:
        The decorator, which returns the function unchanged.

    Raises:
        ValueError: If another function already has this name or pattern.
    """
    parts = []
    for literal, field, _, _ in string.Formatter().parse(name_or_pattern):
        parts.append(re.escape(literal))
        if field is not None:
            parts.append(f"(?P<{field}>[0-9]+)")
    regex = re.compile("".join(parts))

    def decorator(builder: _Builder) -> _Builder:
        old = _entries.get(name_or_pattern)
        # A notebook cell or a reloaded module defines the same function again, which is allowed.
        if old is not None and _origin(old.builder) != _origin(builder):
            raise ValueError(
                f"The model name {name_or_pattern!r} is taken by {'.'.join(_origin(old.builder))}."
            )
        listed = examples if regex.groupindex else (name_or_pattern,)
        _entries[name_or_pattern] = _Entry(regex, builder, listed, check)
        return builder

    return decorator


def names() -> tuple[str, ...]:
    """Return names that ``build`` accepts, sorted.

    Of a pattern only its examples are listed. The patterns of this package are ``lenet-A-B-H``,
    a LeNet without batch normalisation of A and B filters and H hidden units; ``nn-H-L``, a fully
    connected network of L hidden layers of H units; and ``wrn-D-K``, a wide residual network of
    depth D = 6n + 4 and widening factor K, such as ``wrn-28-10``.
    """
    _discover()
    return tuple(sorted(name for entry in _entries.values() for name in entry.examples))


def check_name(name: str) -> None:
    """Check that ``build`` knows a name.

    Args:
        name: str. The name.

    Raises:
        ValueError: If no architecture has this name, or its numbers make no network.
    """
    _find(name)


def build(
    name: str,
    input_shape: InputShape,
    num_classes: int,
    *,
    dropout: float | None = None,
    seed: int | None = None,
    sync_bn: bool = False,
) -> keras.Model:
    """Build the network of a name, with logits as its output.

    Args:
        name: str. One of ``names()``, or any ``lenet-A-B-H``, ``nn-H-L`` or ``wrn-D-K``.
        input_shape: tuple of three ints. Height, width and channels of one image.
        num_classes: int >= 1. Number of classes, the width of the logits.
        dropout: float in [0, 1). Rate of the hidden dropout layers; an architecture that also drops
            inputs does so at 0.4 times this rate (0.2 at 0.5, as published). Defaults to None,
            which means the architecture's own: 0.5 for mnistfc, mnistconv and allcnn as in the
            released code of Entropy-SGD, 0 for the others.
        seed: int. The seed of the initial weights and the dropout masks. Defaults to None, which
            lets Keras choose them (as ``keras.utils.set_random_seed`` determines).
        sync_bn: bool. Whether batch normalisation under tf.distribute uses the statistics of the
            batch of all replicas. Otherwise each replica normalises its own part. Defaults to
            False.

    Returns:
        A functional model from ``[batch, height, width, channels]`` to
        ``[batch, num_classes]``.

    Raises:
        ValueError: If the name is unknown, or the input is too small for this architecture, or
            an argument is out of range.
    """
    entry, fields = _find(name)
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(n, numbers.Integral) and n >= 1 for n in shape):
        raise ValueError(
            f"`input_shape` must be (height, width, channels) of one image, in whole numbers "
            f"of at least 1; got {input_shape!r}."
        )
    num_classes = _checks.integer("num_classes", num_classes, at_least=1)
    if dropout is not None:
        dropout = _checks.real("dropout", dropout, at_least=0, below=1)
    model = entry.builder(shape, num_classes, dropout=dropout, seed=seed, **fields)
    if sync_bn:
        from esgd_tf import _keras  # noqa: PLC0415 - loads TensorFlow, as the builder has done

        for layer in _keras.layers_in(model):
            if hasattr(layer, "synchronized"):
                layer.synchronized = True
    return model


@functools.cache
def _discover() -> None:
    """Import the modules of this package, so that their architectures register themselves."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_") and module.name not in _NOT_ARCHITECTURES:
            importlib.import_module(f"{__package__}.{module.name}")


def _find(name: str) -> tuple[_Entry, dict[str, int]]:
    _discover()
    # Names before patterns, so that a registered name may be a special case of a pattern.
    for entry in sorted(_entries.values(), key=lambda entry: entry.regex.groups):
        match = entry.regex.fullmatch(name)
        if match:
            fields = {field: int(digits) for field, digits in match.groupdict().items()}
            if entry.check is not None:
                entry.check(**fields)
            return entry, fields
    known = sorted(re.sub(r"{(\w+)}", r"<\1>", pattern) for pattern in _entries)
    raise ValueError(f"Unknown model {name!r}: choose one of {', '.join(known)}.")


def _origin(function: Callable[..., object]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
