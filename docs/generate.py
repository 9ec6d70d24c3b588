"""Writes the generated sections of these pages, from recipes, registry, configuration and recorded results.

python docs/generate.py            # write
python docs/generate.py --check    # write nothing; exit code 1 and the names of the pages where something differs

A section stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; what is around it is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from generator import commands, configuration, gpu, grids, measured, models, processes, published, steps
from generator.headers import HeaderError

DOCS = Path(__file__).resolve().parent

SECTIONS: dict[str, Callable[[], str]] = {
    **published.SECTIONS,
    **commands.SECTIONS,
    **processes.SECTIONS,
    **measured.SECTIONS,
    **grids.SECTIONS,
    **gpu.SECTIONS,
    **steps.SECTIONS,
    **models.SECTIONS,
    **configuration.SECTIONS,
}

_SECTION = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, sections: Mapping[str, Callable[[], str]], page: str) -> str:
    """The text of a page with its sections made anew.

    Raises:
        SystemExit: the page asks for a section that does not exist, or a section has no end.
    """
    for name in re.findall(r"<!-- generated: (.+?) -->", text):
        if name not in sections:
            raise SystemExit(f"{page}: there is no section '{name}'; known: {', '.join(sorted(sections))}")
    if text.count("<!-- generated: ") != text.count("<!-- end -->"):
        raise SystemExit(f"{page}: every '<!-- generated: NAME -->' needs one '<!-- end -->'")
    return _SECTION.sub(lambda found: f"{found[1]}\n{sections[found[2]]().strip()}\n\n{found[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated sections of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    check = parser.parse_args(arguments).check
    different, used = [], set()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        used.update(re.findall(r"<!-- generated: (.+?) -->", text))
        try:
            new = filled(text, SECTIONS, page.name)
        except HeaderError as error:
            raise SystemExit(str(error)) from None
        if new != text:
            different.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if unused := SECTIONS.keys() - used:
        raise SystemExit(f"no page has the section {', '.join(sorted(unused))}")
    for name in different:
        print(f"docs/{name}: {'differs; run: python docs/generate.py' if check else 'written'}")
    return int(check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
