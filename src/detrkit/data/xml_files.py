"""Reading XML files in any encoding: Python's parser knows no multi-byte ones, such as GB2312 and Shift_JIS."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from detrkit.errors import DataError
from detrkit.files import file_content

__all__ = ["read_xml"]

_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""")
# What files mean that declare these: the extended forms that programs write.
_EXTENDED = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "iso8859-1": "cp1252"}


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DataError: the file is missing, not XML, or not in the encoding that it names.
    """
    data = file_content(path, "annotation file")
    try:
        return ElementTree.fromstring(_text(data, path))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is not readable XML ({error})") from error


def _text(data: bytes, path: Path) -> str | bytes:
    """The text without its declaration, or the bytes where the parser finds out the encoding itself (UTF-16)."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data
    marked = data.startswith(codecs.BOM_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8)
    declared = _DECLARATION.match(data)
    name = declared[1].decode("ascii") if declared and not marked else "utf-8"
    body = data[declared.end() :] if declared else data
    try:
        codec = codecs.lookup(name).name
        return body.decode(_EXTENDED.get(codec, codec)).lstrip()
    except (LookupError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not text in the encoding {name} that it names; save it as UTF-8") from error
