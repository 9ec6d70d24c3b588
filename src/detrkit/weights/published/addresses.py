"""Web addresses as text; nothing here opens one, so that paths are told from addresses without loading the web."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from detrkit.errors import DataError

__all__ = ["is_url", "name_in", "refuse_other_schemes"]


def is_url(text: str) -> bool:
    """Whether this is a web address (http or https) rather than a path."""
    return text[:8].lower().startswith(("http://", "https://"))


def name_in(url: str) -> str:
    """The last part of the path of a URL, decoded; it may hold anything."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def refuse_other_schemes(text: str) -> None:
    """Refuse addresses that are neither a path nor http or https.

    Raises:
        DataError: such an address, for example ``ftp://`` or ``file://``.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme.replace("+", "").isalnum() and not is_url(text):
        raise DataError(f"{text}: only http:// and https:// are fetched; for other files give a path")
