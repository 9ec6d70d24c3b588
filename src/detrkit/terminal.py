"""Text from files and from the web on a terminal: names cannot steer it."""

from __future__ import annotations

import os
import sys
import unicodedata

__all__ = ["one_line", "printable", "say"]

# Control characters, line and paragraph separators, and marks that turn the direction of the text around.
_CONTROL = {"Cc", "Zl", "Zp"}
_DIRECTION = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text with what would steer the terminal written out (``\\x1b``); line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in "\n\t" or not _steers(sign) else ascii(sign)[1:-1] for sign in text)


def one_line(text: str) -> str:
    """The text as one printable line."""
    return printable(" ".join(text.splitlines()))


def say(text: str) -> None:
    """Print printable text on stderr; of several processes of a training only the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text), file=sys.stderr)


def _steers(sign: str) -> bool:
    # a surrogate (Cs) stands for a byte of a file name that is not text: printing it raises
    return unicodedata.category(sign) in _CONTROL | {"Cs"} or sign in _DIRECTION
