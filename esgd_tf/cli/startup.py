"""What every command needs around TensorFlow: a quiet start, and errors in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator

from esgd_tf.training.errors import StrategyError

__all__ = ["one_sentence", "start_tensorflow", "without_startup_messages"]


@contextlib.contextmanager
def without_startup_messages() -> Iterator[None]:
    """Keep what TensorFlow's C++ code writes to stderr while it starts, unless it fails.

    Its remarks on instruction sets and missing GPUs come before its own logging is set up, so that
    no setting silences them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except StrategyError:
            raise  # says it all
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def start_tensorflow() -> None:
    """Import TensorFlow and let it look for GPUs, quietly."""
    with without_startup_messages():
        import tensorflow as tf

        tf.config.list_logical_devices()


def one_sentence(error: BaseException) -> str:
    """Return the first line of what an exception says, for OSError with the file's name."""
    text = str(error).strip().splitlines()
    sentence = text[0] if text else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        sentence = f"{error.strerror}: {error.filename or 'while writing'}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence += " What was there before is whole: make room, then try again or go on (-rl)."
    return sentence
