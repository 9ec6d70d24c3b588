from __future__ import annotations

import json

from detrkit.metrics import Score


def test_to_json_is_plain_and_keeps_undefined_numbers_as_null() -> None:
    score = Score("coco", "bbox", {"AP": 0.5, "APl": None}, {"cell": {"AP": None}}, headline=("AP",))
    assert json.loads(json.dumps(score.to_json())) == {
        "protocol": "coco",
        "iou_type": "bbox",
        "metrics": {"AP": 0.5, "APl": None},
        "per_class": {"cell": {"AP": None}},
    }
