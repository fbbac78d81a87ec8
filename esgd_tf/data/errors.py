"""The exception that `esgd_tf.data` raises, and plain words for TensorFlow's messages."""

from __future__ import annotations

import re

__all__ = ["DataError", "plain_reason"]


class DataError(Exception):
    """Data that cannot be obtained or cannot be trusted.

    The message is one sentence for the person at the command line: what was wrong, where, and what
    to do about it. No partly written file is left behind when it is raised.
    """


# TensorFlow adds the names of graph nodes and operations, which say nothing about the file.
_OF_THE_GRAPH = re.compile(r"\{\{.*?\}\}|\[Op:\w+\]( name:.*)?|\[\[.*?\]\]|\(original op:.*?\)")
_PLAIN = (
    (r"truncated record at (\d+)", "it ends in the middle of the record at byte {}"),
    (r"Is this even a TFRecord file", "it does not begin as TFRecord files do"),
    (r"corrupted record at (\d+)", "the record at byte {} does not match its checksum"),
    (r"Could not parse example|Can't parse serialized", "a record is no tf.train.Example with the "
     "features that it should have"),
    (r"Incompatible shapes at component \d+: expected \[\?,(.*?)\] but got \[\d+,(.*?)\]",
     "images are of shape [{1}] and not [{0}]"),
    (r"expected to contain (\d+) elements but contained (?:only|at least) (\d+)",
     "{1} records are there and not {0}"),
    (r"No such file or directory", "there is no such file"),
    (r"(Unknown image file format|Unable to decode|Invalid PNG|Invalid JPEG|Expected image)",
     "the image of a record cannot be decoded"),
)  # fmt: skip


def plain_reason(error: BaseException) -> str:
    """Return what an exception says about a file, in one line and without TensorFlow's node names.

    Args:
        error: exception. Any exception. Of TensorFlow's errors only the message is used.
    """
    text = str(getattr(error, "message", None) or error)
    for pattern, plain in _PLAIN:
        found = re.search(pattern, text)
        if found:
            return plain.format(*found.groups())
    lines = (line.strip() for line in _OF_THE_GRAPH.sub("", text).splitlines())
    return next((line for line in lines if line), "") or type(error).__name__
