"""Run the notebooks beside this script, and write their outputs into them for the site.

    python3 docs/notebooks/execute.py

takes about two minutes on one core and needs nbclient and ipykernel. In git the notebooks have no
outputs: a copy of the repository that builds the site runs this first. With a folder as argument,
the notebooks with their outputs are written there, and those beside this script stay as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(path.name for path in FOLDER.glob("*.ipynb")))


def executed(name: str, folder: Path) -> Any:
    """Return a notebook with its outputs.

    Args:
        name: str. The file beside this script.
        folder: Path. The working directory of its kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the message shows it.
    """
    import nbclient  # noqa: PLC0415 - needed for this alone
    import nbformat  # noqa: PLC0415

    # TensorFlow's notes on the machine are no part of a page.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # So that the kernel finds a checkout as it is.
    paths = [str(FOLDER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def main() -> None:
    """Run all, one after the other."""
    import nbformat  # noqa: PLC0415

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name in NOTEBOOKS:
        nbformat.write(executed(name, FOLDER), target / name)
        sys.stdout.write(f"{target / name}\n")


if __name__ == "__main__":
    main()
