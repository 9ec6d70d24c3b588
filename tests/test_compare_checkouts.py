"""Comparison of two checkouts: equal numbers pass, and every kind of difference is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scripts import imported_script

ROOT = Path(__file__).resolve().parents[1]
Numbers = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def comparison() -> Iterator[ModuleType]:
    with imported_script("compare_checkouts") as module:
        yield module


def sample() -> Numbers:
    return {
        "losses": {"total": torch.tensor(2.5), "loss_bbox": torch.tensor(0.1)},
        "gradients": {"(all)": torch.tensor(4.0, dtype=torch.float64), "bias": torch.tensor(1e-9, dtype=torch.float64)},
        "predictions": {"boxes": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))},
    }


def changed(quantity: str, name: str, change: Callable[[Tensor], Tensor]) -> Numbers:
    numbers = sample()
    numbers[quantity][name] = change(numbers[quantity][name])
    return numbers


def test_equal_numbers_are_bit_identical(comparison: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    row = comparison.report("tiny", sample(), sample(), 1e-6)
    assert row["passed"]
    assert row["largest"] == 0.0
    assert capsys.readouterr().out == "tiny: bit-identical (5 values)\n"


@pytest.mark.parametrize(
    ("quantity", "name", "change"),
    [
        ("losses", "loss_bbox", lambda value: value * (1 + 1e-4)),
        ("losses", "total", lambda value: value.double()),
        ("losses", "total", lambda value: value * float("nan")),
        ("predictions", "boxes", lambda value: value[:1]),
        ("predictions", "boxes", lambda value: value.flip(0)),
        ("gradients", "bias", lambda value: value + 1e-7),
    ],
)
def test_a_changed_number_fails_and_is_named(
    comparison: ModuleType,
    capsys: pytest.CaptureFixture[str],
    quantity: str,
    name: str,
    change: Callable[[Tensor], Tensor],
) -> None:
    assert not comparison.report("tiny", sample(), changed(quantity, name, change), 1e-6)["passed"]
    assert f"{quantity}: " in capsys.readouterr().out.split("\n")[1]


def test_rounding_passes_but_is_not_called_identical(
    comparison: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    row = comparison.report(
        "tiny", sample(), changed("losses", "total", lambda value: value.nextafter(torch.tensor(9.0))), 1e-6
    )
    assert row["passed"]
    assert 0 < row["largest"] < 1e-6
    assert "within" in capsys.readouterr().out
    # a gradient that is zero except for rounding is compared relative to the others
    assert comparison.report("tiny", sample(), changed("gradients", "bias", lambda x: 2 * x), 1e-6)["passed"]


def test_a_name_that_is_missing_on_one_side_is_a_difference(
    comparison: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = sample()
    numbers["losses"]["loss_masks"] = numbers["losses"].pop("loss_bbox")
    for old, new, place in ((sample(), numbers, "loss_bbox (only in the old)"), (numbers, sample(), "(only in the")):
        assert not comparison.report("tiny", old, new, 1e-6)["passed"]
        assert place in capsys.readouterr().out
    assert not comparison.report("tiny", sample(), "ValueError: broken", 1e-6)["passed"]
    assert "new failed: ValueError: broken" in capsys.readouterr().out


def test_a_model_of_one_checkout_alone_is_named_and_no_failure(
    comparison: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for side, names in (("old", ("both", "gone")), ("new", ("both", "added", "more"))):
        (tmp_path / side).mkdir()
        for name in names:
            torch.save(sample(), tmp_path / side / f"{name}.pt")
    old, new = (comparison.computed(tmp_path / side, ["*"]) for side in ("old", "new"))
    rows: dict[str, Any] = {}
    comparison.compare_new(old, new, 1e-6, rows)
    assert list(rows) == ["both"]
    capsys.readouterr()
    unpaired = comparison.report_unpaired(old, new)
    assert capsys.readouterr().out == (
        "only in the old, not compared: gone\nonly in the new, not compared: added, more\n"
    )
    assert [(row["model"], row["only_in"], row["passed"]) for row in unpaired] == [
        ("gone", "old", None),
        ("added", "new", None),
        ("more", "new", None),
    ]


def test_initial_weights_are_for_information_only(comparison: ModuleType) -> None:
    old, new = ({**sample(), comparison.NOT_DECISIVE: {"weight": torch.tensor(value)}} for value in (1.0, 2.0))
    assert comparison.report("tiny", old, new, 1e-6)["passed"]


def test_weights_depend_on_names_and_shared_weights_on_the_first_name(comparison: ModuleType) -> None:
    first, second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    second.weight = first.weight
    model, reordered = torch.nn.ModuleDict({"a": first, "b": second}), torch.nn.ModuleDict({"b": second, "a": first})
    comparison.fill(model)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    comparison.fill(reordered)
    assert all(torch.equal(value, expected[name]) for name, value in reordered.state_dict().items())
    assert not torch.equal(first.bias, second.bias)


def test_the_numbers_of_a_model_are_reproducible(comparison: ModuleType, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    numbers = []
    for side in ("old", "new"):
        (tmp_path / side).mkdir()
        comparison.work(ROOT, ["detr_lite0"], 1, tmp_path / side)
        numbers.append(torch.load(tmp_path / side / "detr_lite0.pt"))
    torch.set_num_threads(threads)
    differences = comparison.compare(*numbers)
    decisive = {"predictions", "losses", "gradients", "training", "weights after"}
    assert {one.quantity for one in differences if one.decisive} == decisive
    assert all(one.largest == 0 and one.compared for one in differences)
    assert all(torch.isfinite(value).all() for values in numbers[0].values() for value in values.values())
    with pytest.raises(SystemExit, match="was imported from"):
        comparison.work(tmp_path, ["detr_lite0"], 1, tmp_path)
