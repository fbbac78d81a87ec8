"""Every command and every block of Python in the documents runs, as it is written there."""

import concurrent.futures

import pytest

from tests.docs import folder
from tests.docs.blocks import DOCUMENTS, DocumentError, blocks, chains

CHAINS = chains([block for document in DOCUMENTS for block in blocks(document)])


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What each chain of blocks that was asked for gave: two at a time, in the documents' order."""
    root = tmp_path_factory.mktemp("documents")
    variables = folder.environment(root / "environment")
    folder.material(root / "material")
    wanted = [
        item.callspec.params["name"]
        for item in request.session.items
        if getattr(item, "originalname", None) == test_the_documents_commands_run.__name__
    ]

    def run(number, name):
        path = root / f"chain-{number}"
        folder.copy(path, root / "material", CHAINS[name])
        printed, wrong = "", []
        for block in CHAINS[name]:
            if block.runs:
                printed = folder.run(block, path, variables)
            elif block.kind == "output":
                same, missing = folder.looks_like(block, printed)
                if not same:
                    wrong.append(f"{block}: {sorted(missing)} is not in\n{printed}")
        return wrong

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(run, i, name) for i, name in enumerate(wanted)}
        yield futures


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_the_documents_commands_run(name, results):
    assert results[name].result() == []


def test_all_documents_have_something_to_run():
    assert {name.partition(":")[0] for name in CHAINS} >= {"README.md", "CONTRIBUTING.md"}
    assert sum(block.runs for chain in CHAINS.values() for block in chain) > 15


TEXT = "## A\n\n{marks}\n\n    {line}\n"


@pytest.mark.parametrize(
    ("marks", "line", "says"),
    [
        ("", "some words", "neither a command, nor Python, nor marked"),
        ("<!-- ci: text -->", "python3 train.py", "marked as text"),
        ("<!-- ci: skip -->", "python3 train.py", "does not say what, or why"),
        ("<!-- ci: forget: it -->", "python3 train.py", "is no mark"),
        ("<!-- ci: text -->\n\nWords.", "python3 train.py", "no block of code follows"),
        ('<!-- ci: after "B" -->', "python3 train.py", "no section 'B'"),
        ('<!-- ci: skip "GPU": none here -->', "python3 train.py", "no line has the text 'GPU'"),
    ],
)
def test_what_is_neither_run_nor_marked_is_an_error(marks, line, says):
    with pytest.raises(DocumentError, match=says):
        for chain in chains(blocks("README.md", TEXT.format(marks=marks, line=line))).values():
            assert [block.script for block in chain] == []


def test_marks_change_the_lines_that_they_name():
    marks = '<!-- ci: add "train.py": -e 1 -->\n<!-- ci: skip "GPU": none here -->'
    lines = "python3 train.py  # words\n    python3 -m other\n    python3 train.py GPU:0"
    (block,) = blocks("README.md", TEXT.format(marks=marks, line=lines))
    assert block.script.splitlines() == ["python3 train.py -e 1", "python3 -m other", ":"]
    (block,) = blocks("README.md", TEXT.format(marks="<!-- ci: skip: why -->", line="python3 x"))
    assert not block.runs


def test_output_that_is_no_longer_printed_is_found():
    text = TEXT.format(marks="<!-- ci: output -->", line="accuracy   87.54 %  (interval)")
    (block,) = blocks("README.md", text)
    assert folder.looks_like(block, "accuracy 12 % (interval)")[0]
    assert not folder.looks_like(block, "precision 12 % (interval)")[0]
