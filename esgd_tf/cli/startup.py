"""Helpers for every command that uses TensorFlow: a quiet start, and errors in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from esgd_tf.training.errors import StrategyError

__all__ = [
    "one_sentence",
    "plain_warnings",
    "say",
    "start_tensorflow",
    "without_startup_messages",
]

# The real destinations of standard error while it is captured.
_kept_from: list[int] = []
# TensorFlow's names of nodes of its graph: {{node a/b}}, [[a/b]], [Op:MatMul] name: x
_NODES = re.compile(r"\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:.*")


@contextlib.contextmanager
def without_startup_messages() -> Iterator[None]:
    """Keep what TensorFlow's C++ code writes to stderr while it starts, unless it fails.

    Its remarks on instruction sets and missing GPUs come before its own logging is set up, so that
    no setting can silence them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        _kept_from.append(stderr)
        try:
            yield
        except (StrategyError, KeyboardInterrupt):
            raise  # its message is complete
        except BaseException:
            kept.seek(0)
            with contextlib.suppress(OSError):
                os.write(stderr, kept.read())
            raise
        finally:
            _kept_from.remove(stderr)
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def plain_warnings(name: str) -> Iterator[None]:
    """Let warnings be sentences of the command, without the line of code that they came from.

    Args:
        name: str. The command's name, which stands in front of the sentence.
    """

    def sentence(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if not issubclass(category, UserWarning):
            return plain(message, category, *where, **more)
        return f"{name}: {message}\n"

    plain, warnings.formatwarning = warnings.formatwarning, sentence
    try:
        yield
    finally:
        warnings.formatwarning = plain


def start_tensorflow() -> None:
    """Import TensorFlow and let it look for GPUs, quietly."""
    with without_startup_messages():
        import tensorflow as tf

        tf.config.list_logical_devices()


def say(text: str) -> None:
    """Print a line to standard error, also while TensorFlow's messages are kept."""
    if _kept_from:
        with contextlib.suppress(OSError):
            os.write(_kept_from[-1], f"{text}\n".encode(errors="backslashreplace"))
    else:
        print(text, file=sys.stderr, flush=True)


def one_sentence(error: BaseException) -> str:
    """Return the message of an exception in one line, without names internal to its library.

    For an OSError that is the reason with the file's name; for TensorFlow's errors it is the cause,
    without its place in the graph.
    """
    if isinstance(error, MemoryError):
        return f"There is not enough memory{_detail(error)}: {_SMALLER}."
    if isinstance(error, OSError) and error.strerror:
        sentence = f"{error.strerror}: {error.filename or 'while writing'}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence += " What was there before is whole: make room, then try again or go on (-rl)."
        return sentence
    tensorflow = sys.modules.get("tensorflow")
    errors = getattr(tensorflow, "errors", None)
    if errors is not None and isinstance(error, errors.OpError):
        return _of_tensorflow(error, errors)
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


_SMALLER = "choose a smaller network, a smaller batch, or fewer replicas"


def _detail(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f" ({text[0].rstrip('.')})" if text else ""


def _of_tensorflow(error: Exception, errors: object) -> str:
    # TensorFlow tells at length where in the graph an error arose; its cause comes near the end.
    message = str(getattr(error, "message", "") or "")
    lines = [_NODES.sub("", line).strip() for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Additional")]
    text = lines[-1] if lines else type(error).__name__
    if isinstance(error, errors.ResourceExhaustedError):  # type: ignore[attr-defined]
        shape = re.search(r"shape\s*\[([\d,]+)\]", message)
        what = f" for a tensor of shape [{shape[1]}]" if shape else ""
        return f"There is not enough memory{what}: {_SMALLER}."
    return f"TensorFlow stopped: {text.rstrip('.')}."
