"""The blocks of code in the documents, each with what is marked before it: see CONTRIBUTING.md."""

import dataclasses
import re
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "tfrecords/README.md", *(
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))
))  # fmt: skip

# What a line that is a command starts with.
COMMAND = re.compile(r"\s*(python3|pip|ruff|mypy|bash|tensorboard|for|docker|git|cd) ")
MARK = re.compile(r"<!-- ci: (?P<action>[a-z]+)(?: \"(?P<text>.*?)\")?(?P<rest>.*?) -->")
COMMENT = re.compile(r"\s{2,}# .*$")
# Served: started, waited for until it names its address, and ended.
SERVED = (
    "{line} > served.log 2>&1 & until grep -q http:// served.log; do "
    "kill -0 $! || {{ cat served.log; exit 1; }}; sleep 1; done; kill $!"
)


class DocumentError(Exception):
    """A block or a mark in a document is not one that can be run; the message says which."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a comment before a block says: `<!-- ci: ACTION "TEXT": REST -->`."""

    action: str
    text: str | None
    rest: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        document: Where it stands.
        line: The number of its first line there.
        section: The heading of second order above it.
        kind: "shell", "python", "output" or "text".
        content: As it is written.
        marks: Those before it.
    """

    document: str
    line: int
    section: str
    kind: str
    content: str
    marks: tuple[Mark, ...]

    def __str__(self):
        return f"{self.document}:{self.line}"

    def of(self, action):
        """The marks with an action."""
        return [mark for mark in self.marks if mark.action == action]

    @property
    def runs(self):
        """Whether there is anything in it to run."""
        return self.kind in ("shell", "python") and not any(m.text is None for m in self.of("skip"))

    @property
    def script(self):
        """The lines of the shell as they are run."""
        lines = self.content.splitlines()
        for mark in self.marks:
            if mark.action not in ("add", "skip", "serves") or mark.text is None:
                continue
            hit = [i for i, line in enumerate(lines) if mark.text in line]
            if not hit:
                raise DocumentError(f"{self}: no line has the text {mark.text!r} of its mark")
            for i in hit:
                line = COMMENT.sub("", lines[i])
                if mark.action == "add":
                    lines[i] = f"{line} {mark.rest}"
                else:
                    lines[i] = SERVED.format(line=line) if mark.action == "serves" else ":"
        return "\n".join(lines)


def blocks(document, text=None):
    """Return all blocks of a document.

    Raises:
        DocumentError: A block is neither a command nor Python nor marked, or a mark is wrong.
    """
    section, marks, found = "", [], []
    tokens = MarkdownIt().parse((ROOT / document).read_text() if text is None else text)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and token.tag == "h2":
            section = following.content
        elif token.type == "html_block" and "<!-- ci:" in token.content:
            marks += [_mark(document, line) for line in token.content.strip().splitlines()]
        elif token.type in ("fence", "code_block"):
            found.append(_block(document, token, section, tuple(marks)))
            marks = []
        elif marks:
            raise DocumentError(f"{document}: no block of code follows a mark in {section!r}")
    return found


def _mark(document, line):
    match = MARK.fullmatch(line)
    actions = ("add", "env", "skip", "serves", "workers", "after", "output", "text")
    if not match or match["action"] not in actions:
        raise DocumentError(f"{document}: {line} is no mark")
    rest = match["rest"].removeprefix(":").strip()
    if match["action"] in ("add", "skip", "env") and not rest:
        raise DocumentError(f"{document}: {line} does not say what, or why")
    return Mark(match["action"], match["text"], rest)


def _block(document, token, section, marks):
    line = token.map[0] + 1
    actions = {mark.action for mark in marks}
    first = token.content.splitlines()[0]
    if token.type == "fence" and token.info == "python":
        kind = "python"
    elif COMMAND.match(first):
        kind = "shell"
    elif actions & {"output", "text"}:
        kind = "output" if "output" in actions else "text"
    else:
        raise DocumentError(
            f"{document}:{line}: neither a command, nor Python, nor marked: {first}"
        )
    if kind in ("shell", "python") and actions & {"output", "text"}:
        raise DocumentError(f"{document}:{line}: is to be run, but marked as text: {first}")
    return Block(document, line, section, kind, token.content, marks)


def chains(all_blocks):
    """Return the sections of all documents, in lists of blocks that share a folder, in order."""
    found = {}
    leads = {}
    for block in all_blocks:
        here = (block.document, block.section)
        for mark in block.of("after"):
            if (block.document, mark.text) not in leads:
                raise DocumentError(f"{block}: there is no section {mark.text!r} before this one")
            leads[here] = leads[block.document, mark.text]
        leads.setdefault(here, here)
        found.setdefault(leads[here], []).append(block)
    return {
        f"{document}: {section}": chain
        for (document, section), chain in found.items()
        if any(block.runs for block in chain)
    }
