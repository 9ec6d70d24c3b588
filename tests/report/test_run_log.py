"""The log of a run as series of numbers."""

from __future__ import annotations

from detrkit.report.run_log import seconds_at


def test_pauses_between_sessions_do_not_count() -> None:
    rows = [("start", 100.0), ("train", 110.0), ("resume", 500.0), ("train", 507.0)]
    assert list(seconds_at({"event": event, "time": time} for event, time in rows)) == [0.0, 10.0, 10.0, 17.0]


def test_a_log_whose_beginning_is_lost_counts_from_its_first_row() -> None:
    assert list(seconds_at({"event": "train", "time": time} for time in (1.7e9, 1.7e9 + 3))) == [0.0, 3.0]
