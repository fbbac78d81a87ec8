"""A hook of MkDocs: the results belong to the site too, without a copy of them in docs/."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tables and pictures of results/ under results/.

    Args:
        files: Files. The files of docs/.
        config: MkDocsConfig. The configuration.
    """
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".md", ".png"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
