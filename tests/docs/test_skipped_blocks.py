"""Python blocks that the sweep of all documents skips, run here.

One has a function that reads names of its block and of the prelude, which need one namespace for
both; the other needs a package that is in no extra.
"""

import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.docs.folder import looks_like

# As `folder.PYTHON`, but with one namespace for the block and its functions.
SCRIPT = """
import tests.docs.prelude as prelude


class Names(dict):
    def __missing__(self, name):
        if not hasattr(prelude, name):
            raise KeyError(name)
        return self.setdefault(name, getattr(prelude, name))


exec(compile({content!r}, {name!r}, "exec"), Names(__name__="__main__"))
"""


def run_skipped(document, folder):
    """Run the skipped Python block of a document; return what it printed, and the block after."""
    found = blocks(document)
    (at,) = (i for i, block in enumerate(found) if block.kind == "python" and not block.runs)
    script = folder / "block.py"
    script.write_text(SCRIPT.format(content=found[at].content, name=str(found[at])))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
               f"exec(open({str(script)!r}).read())"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, found[at + 1] if at + 1 < len(found) else None


@pytest.mark.slow
def test_the_loop_of_ones_own(tmp_path):
    printed, output = run_skipped("docs/howto/custom_loops.md", tmp_path)
    assert output.kind == "text"
    assert looks_like(output, printed)[0]
    losses = [float(line.split()[-1]) for line in printed.splitlines() if "loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert "holds its anchor" in printed


@pytest.mark.slow
def test_keras_tuner(tmp_path):
    pytest.importorskip("keras_tuner")
    printed, _ = run_skipped("docs/howto/keras_tuner.md", tmp_path)
    # What was scored is what was saved: the anchor.
    words = printed.splitlines()[-1].replace(",", "").split()
    assert words[4] == words[-1]
