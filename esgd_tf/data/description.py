"""Check the JSON files that describe a prepared data set before TFDS reads them.

TFDS builds the classes that `features.json` names, and imports the module of a class that it does
not know, so that a folder of data could run code. The two files are therefore checked here first.
They may name only the classes that this library and TFDS' own builders of these sets write.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

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
# The keys under which features.json names classes, in its present form and in that of TFDS before
# 4.5. Protobuf's JSON accepts either spelling.
_NAMING = ("pythonClassName", "python_class_name", "type")
# With these keys of the older form, TFDS would read class names from any file.
_REFUSED = ("names_file", "namesFile", "vocab_filename")
# A description is a few kilobytes; this is far more than any needs.
_LONGEST = 1 << 20


def check_description(folder: Path, entry: Entry) -> None:
    """Refuse a prepared set whose description names unknown Python classes or another data set.

    Args:
        folder: Path. The folder of `features.json` and `dataset_info.json`.
        entry: Entry. The data set that the folder must hold.

    Raises:
        DataError: A file is missing, damaged or refused.
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


def _read(path: Path, entry: Entry) -> dict[str, object]:
    try:
        if not path.is_file():  # reading a pipe would wait for its writer
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


def _pairs(value: object) -> Iterator[tuple[str, object]]:
    """Return all keys of all objects in a JSON value, nested ones included, with their values."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here
