"""MkDocs: recipes become part of the site, so that links to ``../recipes/`` work there as in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, *, config: Any) -> Files:
    """Adds every recipe below ``recipes/`` of the site."""
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave the folder of the pages stay inside the site."""
    return markdown.replace("](../recipes/", "](recipes/")


def on_page_content(html: str, **_: Any) -> str:
    """Roles of Sphinx in docstrings, such as ``:func:``, are no Markdown; the name behind them is."""
    return re.sub(r":(?:class|func|meth|mod|data|attr):(?=<code>)", "", html)
