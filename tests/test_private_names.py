"""No module but `esgd_tf/_keras.py` uses what Keras and TensorFlow keep to themselves.

The sources are read, not imported. A name with a leading underscore that is read from an object,
and that nothing in `esgd_tf` defines, is somebody else's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "esgd_tf").rglob("*.py"))
THE_ROOM = ROOT / "esgd_tf" / "_keras.py"
# Private to a library other than Keras and TensorFlow, or to the language.
_OTHERS = {
    "_asdict", "_fields", "_replace",  # of named tuples, and public
}  # fmt: skip
# Names of Keras that a subclass of ours overrides, or that we set, so that we "define" them too.
_HOOKS = {
    "_dtype_policy", "_maybe_symbolic_build",
    "_apply_weight_decay", "_clip_gradients", "_distributed_tf_update_step",
    "_update_model_variables_moving_average",
}  # fmt: skip

_CALLED = ("self._distributed_tf_update_step",)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def defined(trees: dict[Path, ast.Module]) -> set[str]:
    """Return every private name that `esgd_tf` gives to something of its own."""
    names: set[str] = set()
    for path, tree in trees.items():
        if path == THE_ROOM:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    names |= {path.stem for path in trees}
    return {name for name in names if _is_private(name)} - _HOOKS


def foreign(path: Path, tree: ast.Module, ours: set[str]) -> Iterator[str]:
    """Yield the private names of others that a module uses."""
    where = f"{path.relative_to(ROOT)}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            # A hook calls its own, and that of its base class.
            allowed = dotted.startswith("super().") or dotted in _CALLED
            if _is_private(node.attr) and node.attr not in ours | _OTHERS and not allowed:
                yield f"{where}:{node.lineno} {dotted}"
            if dotted in ("keras.src", "tf.__internal__", "tf.python"):
                yield f"{where}:{node.lineno} {dotted}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith(("keras.src", "tensorflow.python")):
                yield f"{where}:{node.lineno} from {node.module}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith(("keras.src", "tensorflow.python")):
                    yield f"{where}:{node.lineno} import {name.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = getattr(node.args[1], "value", None)  # where it is a text
            if isinstance(name, str) and _is_private(name) and name not in ours | _OTHERS:
                yield f"{where}:{node.lineno} {ast.unparse(node)}"


def uses() -> list[str]:
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    ours = defined(trees)
    return [
        use for path, tree in trees.items() if path != THE_ROOM for use in foreign(path, tree, ours)
    ]


def test_private_names_of_keras_and_tensorflow_have_one_room():
    assert not uses()


def test_private_names_are_seen():
    code = (
        "import keras\n"
        "def f(model):\n"
        "    model._our_own = 1\n"
        "    model._compile_loss\n"
        "    keras.src.random\n"
        "    getattr(model, '_loss_tracker')\n"
        "    return model._our_own, model.__class__\n"
    )
    tree = ast.parse(code)
    path = ROOT / "esgd_tf" / "imagined.py"
    found = list(foreign(path, tree, defined({path: tree})))
    assert sorted(use.split(" ", 1)[1] for use in found) == [
        "getattr(model, '_loss_tracker')",
        "keras.src",
        "model._compile_loss",
    ]
