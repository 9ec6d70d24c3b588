"""How scores are printed."""

from __future__ import annotations

import io

from rich.console import Console

from detrkit.cli.console import print_score
from detrkit.metrics.score import ScoreJson

NUMBERS = {"AP": 0.443, "AP50": 0.662, "AP75": 0.477, "APs": None, "APm": 0.475, "APl": 0.641, "AR1": 0.3}


def printed(metrics: dict[str, float | None], iou_type: str) -> list[str]:
    stream = io.StringIO()
    per_class: dict[str, dict[str, float | None]] = {"bolt": {"AP": 0.4, "AP50": 0.6, "AP75": 0.5}}
    score: ScoreJson = {"protocol": "coco", "iou_type": iou_type, "metrics": metrics, "per_class": per_class}
    print_score(score, title="COCO", console=Console(file=stream, width=100))
    return ["".join(sign if sign.isascii() else " " for sign in line) for line in stream.getvalue().splitlines()]


def test_masks_and_boxes_are_rows_of_one_table() -> None:
    lines = printed({**NUMBERS, "box_AP": 0.506, "box_AP50": 0.7, "box_AP75": None}, "segm")
    rows = [line.split() for line in lines]
    masks = rows.index(["masks", "0.443", "0.662", "0.477", "-", "0.475", "0.641"])
    assert rows[masks - 2] == ["of", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert rows[masks + 1] == ["boxes", "0.506", "0.700", "-"]
    assert ["masks", "0.300"] in rows
    assert not any("box_" in line for line in lines)
    assert any("not defined" in line for line in lines)


def test_boxes_alone_have_no_heading() -> None:
    rows = [line.split() for line in printed(NUMBERS, "bbox")]
    assert ["0.443", "0.662", "0.477", "-", "0.475", "0.641"] in rows
    assert not any(row[:1] == ["boxes"] for row in rows)
