"""What a prepared set says of itself, looked through before TFDS reads it.

TFDS builds the classes that `features.json` names, and imports the module of a class that it does
not know: a folder of data would run code. So the two files are checked here first, and only the
classes that this library writes (and TFDS' own builders of these sets) may stand in them. Imports
no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError

__all__ = ["check_description"]

_FEATURES = "tensorflow_datasets.core.features."
_CLASSES = {
    _FEATURES + name
    for name in (
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "class_label_feature.ClassLabel",
        "text_feature.Text",
    )
}
# Where the two forms of features.json, of today and of TFDS before 4.5, name classes; protobuf's
# JSON takes either spelling.
_NAMING = ("pythonClassName", "python_class_name", "type")
# The older form could have names read from any file.
_REFUSED = ("names_file", "namesFile", "vocab_filename")
# Far more than ever is needed: a description is a few kilobytes.
_LONGEST = 1 << 20


def check_description(folder: Path, entry: Entry) -> None:
    """Refuse a prepared set whose description names foreign classes, or another set.

    Args:
        folder: Path. Where `features.json` and `dataset_info.json` lie.
        entry: Entry. What the data set must be.

    Raises:
        DataError: A file is missing or damaged, or says what it must not.
    """
    features = _read(folder / "features.json", entry)
    for key, value in _pairs(features):
        if key in _REFUSED or (key in _NAMING and isinstance(value, str) and value not in _CLASSES):
            raise DataError(
                f"{folder / 'features.json'} is refused: it names {value!r}, which is none of the "
                f"features that {entry.name} has; data is never run as code: remove that folder "
                "and prepare the set again."
            )
    info = _read(folder / "dataset_info.json", entry)
    if info.get("name") != entry.name:
        raise DataError(
            f"{folder} does not hold {entry.name}: its dataset_info.json names the set "
            f"{info.get('name')!r}; put the right records there, or load that set by its own name."
        )


def _read(path: Path, entry: Entry) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path.name} is missing or no file")
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"{path.name} is far too long")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"{path.name} holds no JSON object")
    except RecursionError:
        reason = f"{path.name} is nested too deep"
    except json.JSONDecodeError as error:
        reason = f"{path.name} is no JSON: {error}"
    except (OSError, ValueError) as error:
        reason = str(error)
    else:
        return found
    raise DataError(
        f"The description of {entry.name} in {path.parent} is damaged ({reason}); remove that "
        "folder and prepare the set again."
    )


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Return all keys of all objects in some JSON, with their values."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here
