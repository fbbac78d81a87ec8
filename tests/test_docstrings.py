"""Every Args entry says what it takes: its type, its meaning, and its default, as the code has it.

The form is Keras' own:

    momentum: float in [0, 1). Momentum of the inner velocity. Defaults to 0.9.

No TensorFlow here: the sources are read, not imported. `python3 tests/test_docstrings.py PATH ...`
prints what is wrong in some files or folders.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_FILES = sorted((ROOT / "esgd_tf").rglob("*.py"))

# How an entry may begin: the kind of thing that is taken, in words or by its name in code.
_TYPES = (
    r"an? |None|ints?\b|floats?\b|bool\b|str\b|bytes\b|lists?\b|tuples?\b|dict\b|set\b|pairs?\b|"
    r"sequences?\b|iterables?\b|iterators?\b|mapping\b|callable\b|path\b|type\b|class\b|module\b|"
    r"(NumPy )?arrays?\b|tensors?\b|scalar\b|variables?\b|models?\b|layers?\b|object\b|enum\b|"
    r"exception\b|generator\b|context manager\b|files?\b|anything\b|nested\b|optional\b|number\b|"
    r"collections?\b|matplotlib\.|scipy\.|\d or \d|flags\.\w+|(pathlib\.)?Path\b|`[\w.]+|"
    r"keras\.|tf\.|np\.|\"|(bool|u?int|float)\d+\b|"
    r"one of\b|any\b"
)
# Our own classes, by their names.
_CLASSES = {name for path in _FILES for name in re.findall(r"^class (\w+)", path.read_text(), re.M)}


def problems(path: Path) -> Iterator[str]:
    """Yield a line for every entry of a file that is not of the form."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        entries = _entries(ast.get_docstring(node) or "")
        if entries is None:
            continue
        where = f"{path}:{node.lineno} {node.name}"
        arguments = _arguments(node)
        if arguments is None:
            continue
        for name in arguments.keys() - entries.keys():
            # What a dataclass works out for itself is an attribute.
            if isinstance(node, ast.ClassDef) and f"    {name}: " in ast.get_docstring(node):
                continue
            yield f"{where}: {name} is not documented"
        for name, text in entries.items():
            if name.lstrip("*") != name:
                continue
            if name not in arguments:
                yield f"{where}: {name} is no argument"
                continue
            yield from (f"{where}: {name}: {w}" for w in _wrong(text, arguments[name]))


def _wrong(text: str, default: ast.expr | None) -> Iterator[str]:
    first = re.match(r"\w+", text)
    if not re.match(rf"(?:{_TYPES})", text) and not (first and first.group() in _CLASSES):
        yield f"does not begin with a type: {text[:50]!r}"
        return
    meaning = re.sub(r"\s*Defaults? to .*", "", text)
    if not re.search(r"[^.]\. \S", meaning):
        yield f"has a type but no meaning after it: {text[:60]!r}"
    if not text.endswith((".", ".)")):
        yield f"is no sentence: {text[-30:]!r}"
    said = re.search(r"Defaults to (.+?)[.,;:]?(?:\s|$)(?![\w])", text + " ") or re.search(
        r"Defaults to (.+?)[.,;](?:\s|$)", text + " "
    )
    if default is None:
        if said:
            yield f"has no default, but names {said.group(1)}"
    elif not said:
        yield f"does not name its default, {ast.unparse(default)}"
    else:
        texts = re.findall(r"Defaults to (.+?)(?=[.,;:]?(?:\s|$))", text)
        if not any(_same(t, default) for t in (*texts, said.group(1))):
            yield f"says that it defaults to {said.group(1)}, not {ast.unparse(default)}"


def _same(said: str, default: ast.expr) -> bool:
    said = said.strip("`")
    try:
        return ast.literal_eval(said) == ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return said.replace('"', "'") == ast.unparse(default)


def _arguments(node: ast.FunctionDef | ast.ClassDef) -> dict[str, ast.expr | None] | None:
    """Return the default of each argument by its name: of a class, those of `__init__`."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if inits:
            return _arguments(inits[0])
        if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            return None  # what takes its arguments is elsewhere
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return {n.target.id: n.value for n in fields if isinstance(n.target, ast.Name)}
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    missing = [None] * (len(positional) - len(a.defaults))
    found = dict(zip((p.arg for p in positional), [*missing, *a.defaults], strict=True))
    found |= dict(zip((p.arg for p in a.kwonlyargs), a.kw_defaults, strict=True))
    return {name: d for name, d in found.items() if name not in ("self", "cls")}


def _entries(docstring: str) -> dict[str, str] | None:
    """Return what stands under "Args:", by name; None where there is no such section."""
    section = re.search(r"^Args:\n((?:(?: {4}.*)?\n?)+)", docstring, flags=re.MULTILINE)
    if section is None:
        return None
    entries: dict[str, str] = {}
    for line in section.group(1).splitlines():
        start = re.match(r" {4}(\*{0,2}\w+): ?(.*)", line)
        if start:
            entries[start.group(1)] = start.group(2)
        elif line.strip() and entries:
            entries[list(entries)[-1]] += " " + line.strip()
    return entries


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_argument_has_its_type_its_meaning_and_its_default(path):
    assert not list(problems(path))


def test_wrong_entries_are_seen(tmp_path):
    path = tmp_path / "m.py"
    head = 'def f(momentum: float = 0.9, *, rate: float) -> None:\n    """Do.\n\n    Args:\n'
    good = "        rate: float > 0. Step size.\n"
    for entry, wrong in {
        "float in [0, 1). Momentum of the velocity. Defaults to 0.9.": None,
        "float in [0, 1). Momentum of the velocity. Defaults to 0.8.": "defaults to 0.8",
        "float in [0, 1). Momentum of the velocity.": "does not name its default",
        "Momentum of the velocity. Defaults to 0.9.": "does not begin with a type",
        "float in [0, 1). Defaults to 0.9.": "no meaning",
    }.items():
        path.write_text(f'{head}        momentum: {entry}\n{good}    """\n')
        found = list(problems(path))
        assert len(found) == (0 if wrong is None else 1), (entry, found)
        assert wrong is None or wrong in found[0]
    path.write_text(f'{head}{good}    """\n')
    assert "momentum is not documented" in next(problems(path))


if __name__ == "__main__":
    for given in sys.argv[1:] or ["esgd_tf"]:
        place = Path(given)
        for source in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            print(*problems(source), sep="\n")
