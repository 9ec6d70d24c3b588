"""PNG files whose pixels are numbers; bytes are put together here, since Pillow cannot write all kinds."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.label_maps import read_class_png, read_panoptic_png
from detrkit.errors import DataError


def png(path: Path, *, depth: int, kind: int, size: tuple[int, int], rows: list[bytes]) -> Path:
    """A PNG of this bit depth and colour type, its rows unfiltered."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("depth", "row", "values"),
    [
        (1, bytes([0b01010000]), [0, 1, 0, 1]),
        (2, bytes([0b00011011]), [0, 1, 2, 3]),
        (4, bytes([0x01, 0x2F]), [0, 1, 2, 15]),
        (8, bytes([0, 1, 2, 255]), [0, 1, 2, 255]),
        (16, struct.pack(">4H", 0, 1, 256, 65535), [0, 1, 256, 65535]),
    ],
)
def test_gray_values_are_those_in_the_file(tmp_path: Path, depth: int, row: bytes, values: list[int]) -> None:
    """Pillow stretches 2 and 4 bits: 1 becomes 85 or 17."""
    read = read_class_png(png(tmp_path / "a.png", depth=depth, kind=0, size=(4, 1), rows=[row]))
    assert read.tolist() == [values]
    assert read.dtype == (np.uint16 if depth == 16 else np.uint8)


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Pillow would give their high bytes, which are other ids."""
    path = png(tmp_path / "a.png", depth=16, kind=2, size=(1, 1), rows=[struct.pack(">3H", 1, 2, 3)])
    with pytest.raises(DataError, match="is a 16-bit RGB PNG, but COCO panoptic files are 8-bit RGB"):
        read_panoptic_png(path)


def test_ids_are_little_endian(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", depth=8, kind=2, size=(2, 1), rows=[bytes([1, 2, 3, 255, 255, 255])])
    assert read_panoptic_png(path).tolist() == [[1 + 256 * 2 + 65536 * 3, 2**24 - 1]]


def test_missing_files_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: no such PNG file$"):
        read_class_png(tmp_path / "a.png")
    Image.new("L", (1, 1)).save(tmp_path / "A.png")
    with pytest.raises(DataError, match=r"a\.png: no such PNG file; 'A\.png' is there"):
        read_class_png(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"x/a\.png: no such PNG file: the folder .*x is not there"):
        read_class_png(tmp_path / "x" / "a.png")
