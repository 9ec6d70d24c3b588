"""Rows that are alike but for their numbers: the numbers that JSON says, or nothing, whatever is done to the text."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from detrkit.data.uniform_rows import UniformRows, uniform_rows

ROWS: list[dict[str, Any]] = [
    {"image_id": 7, "category_id": 18, "bbox": [1, 2.5, -3, 40.25], "score": 0.25},
    {"image_id": 12, "category_id": 1, "bbox": [10.75, 0, 3, 4], "score": 1},
    {"image_id": 1, "category_id": 118, "bbox": [1.5, 2, 333, 4.5], "score": 0.125},
]


def text_of(rows: list[dict[str, Any]], **options: Any) -> bytes:
    """Rows as they stand in a list, without its brackets and the space around them."""
    return json.dumps(rows, **options)[1:-1].strip().encode()


def flat(rows: list[dict[str, Any]]) -> list[Any]:
    """All numbers of rows."""
    values = [value for row in rows for value in row.values()]
    return [number for value in values for number in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("space", [b"", b" ", b"\n "])
def test_columns(options: dict[str, Any], count: int, space: bytes) -> None:
    found = uniform_rows(space + text_of(ROWS[:count], **options))
    assert found is not None
    assert len(found) == count
    assert found.keys == {"image_id", "category_id", "bbox", "score"}
    images = found.whole("image_id")
    assert images is not None
    assert images.tolist() == [7, 12, 1][:count]
    assert found.whole("score") is None, "not all are whole"
    assert found.whole("bbox") is found.numbers("bbox") is found.boxes("score") is found.whole("gone") is None
    boxes, scores = found.boxes("bbox"), found.numbers("score")
    assert boxes is not None
    assert scores is not None
    assert boxes.tolist() == [row["bbox"] for row in ROWS[:count]]
    assert scores.tolist() == [row["score"] for row in ROWS[:count]]


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "7"},
        {"image_id": None},
        {"image_id": True},
        {"score": 5e25},
        {"x-e-5": 1},
        {"score": float("nan")},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, [3], 4]},
        {"bbox": {}},
        {"more": 1},
        {"x2": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_rows_are_none(change: dict[str, Any], place: int) -> None:
    rows = [{**row, **change} if index == place else row for index, row in enumerate(ROWS)]
    assert uniform_rows(text_of(rows)) is None
    assert uniform_rows(b"") is None
    assert uniform_rows(b"{}") is None


def test_low_scores_with_exponents() -> None:
    rows = [{**ROWS[0], "score": score} for score in (0.5, 5e-05, 0.5e-7, 1e-300)]
    for some in (rows, rows[1:], rows[3:]):
        found = uniform_rows(text_of(some))
        assert found is not None
        assert found.table.ravel().tolist() == flat(some)
    assert uniform_rows(text_of(rows).replace(b"e-", b"\1-")) is None


def test_a_whole_number_beyond_64_bits_is_not_whole() -> None:
    found = uniform_rows(text_of([{**row, "image_id": 2**70} for row in ROWS]))
    assert found is not None
    assert found.whole("image_id") is None


@pytest.mark.parametrize(
    "signs", [b'0.,-[]{}": e+\1', b"0123456789.-", bytes(range(256))], ids=["json", "numbers", "all"]
)
def test_damaged_text_is_read_as_json_reads_it_or_not_at_all(signs: bytes) -> None:
    chance, whole = random.Random(0), text_of(ROWS)
    read = 0
    for _ in range(4000):
        text = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(text) + 1)
            text[place : place + chance.randint(0, 1)] = bytes(chance.choices(signs, k=chance.randint(0, 2)))
        found = uniform_rows(bytes(text))
        if found is not None:
            assert_is_json(bytes(text), found)
            read += 1
    assert read > 20 or len(signs) == 256


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "b5": , "c": 2}, {"a": 1, "b5": , "c": 2}',
        b'{"a": 1, "b": 2}, {"a5": , "b": 2}',
        b'{"a": 1, "b": 2}, {"a": 1 5, "b": 2}',
        b'{"a": 1, "b": 2}, {"a": 01, "b": 2}',
        b'{"a": 1, "b": 2}, {"a": 1.2.3, "b": 2}',
        b'{"a": 1, "b": 2}; {"a": 1, "b": 2}',
        b'{"a": 1, "b": 2}, {"a": 1, "b": 2},',
        b'{"a": 1, "b": 2}, {"a": 1, "b": 2} 3',
        b'{"a": 1, "a": 2}, {"a": 1, "a": 2}',
        b'{"\\u0061": 1}, {"\\u0061": 1}',
        b'{"a": 1}, {"a": -}',
        b'{"a": 1}, {"a": e-1}',
        b'{"a": 1}, {"a": 1e-}',
        b'{"a": 1}, {"ae-": 1}',
        b'{"a": 1}, {"a": }1',
        b'{"a": 1}, 1{"a": }',
        b'{"a": 1}, {1"a": }',
        b'{ "a": 1}, { 1"a": }',
        b'{ "a": 1 }, { 1 "a":  }',
        b'{"b": [1, 2]}, {"b": [1, ]2}',
        b'{"b": [1, 2]}, {"b": 1[, 2]}',
        b'{"b": [1, 2], "c": 3}, {"b": [1, ]2, "c": 3}',
        b'{"b":[1,2] ,"c":3} ,{"b":[1,]2 ,"c":3}',
    ],
)
def test_text_that_is_not_json_or_only_seems_to_be_alike(text: bytes) -> None:
    assert uniform_rows(text) is None


def assert_is_json(text: bytes, found: UniformRows) -> None:
    """The numbers and keys are those of the JSON."""
    rows = json.loads(b"[" + text + b"]")
    assert found.table.ravel().tolist() == list(map(float, flat(rows)))
    assert all(found.keys == row.keys() for row in rows)
    assert len(found) == len(rows)
