"""driver: what a run says at its end, and its exit code: trying again is only advised where it can help."""

from typing import Any

import pytest

from pipeline.run.driver import Summary
from pipeline.run.totals import SHOWN, SHOWN_ROWS, Totals


def result(status: str, *reasons: str) -> dict[str, Any]:
    rows = [{"status": "failed", "reason": reason} for reason in reasons]
    about = {"identity": "a", "photos": len(rows), "failed_photos": len(rows)}
    return about | {"status": status, "reason": f"no photo can be used: {'; '.join(reasons)}", "rows": rows}


@pytest.mark.parametrize(
    ("earlier", "results", "again"),
    [
        (False, [result("failed", "the file is truncated; copy it again from its source")], False),
        (False, [result("failed", "JPEG 2000 is not supported; convert it to JPEG or PNG")], False),
        (False, [result("done", "the file is damaged (OSError); copy it again from its source")], False),
        (False, [result("failed", "cannot reach S3; check the network")], True),
        (
            False,
            [result("failed", "too large: 9 pixels is more than max_pixels = 1; make it smaller or raise it")],
            True,
        ),
        (False, [result("failed", "the file is empty", "access denied to s3://b/1.jpg")], True),
        (False, [result("failed", "the file is empty")], False),
        (True, [result("failed", "the file is empty")], True),
        (False, [result("quarantined")], True),
    ],
)
def test_trying_again_is_advised_only_where_it_can_help(
    earlier: bool, results: list[dict[str, Any]], again: bool
) -> None:
    summary = Summary(planned=1, photos=2, todo=1, failed=1, may_recover=earlier, ended=Totals.of(results))
    (line,) = summary.advice("out")
    assert ("--retry-failed" in line) is again
    assert ("replace those files" in line) is not again


def ended(status: str, photos: int, failed: int) -> dict[str, Any]:
    return {"identity": "a", "status": status, "photos": photos, "failed_photos": failed, "reason": "", "rows": []}


@pytest.mark.parametrize(
    ("allowed", "changes", "code"),
    [
        (None, {"ended": Totals.of([ended("done", 100, 1)]), "lost_photos": 1}, 1),
        ("0", {"ended": Totals.of([ended("done", 100, 1)]), "lost_photos": 1}, 1),
        ("1", {"ended": Totals.of([ended("done", 100, 1)]), "lost_photos": 1}, 0),
        ("1%", {"ended": Totals.of([ended("done", 100, 1)]), "lost_photos": 1}, 0),
        ("0.9%", {"ended": Totals.of([ended("done", 100, 1)]), "lost_photos": 1}, 1),
        ("1%", {"ended": Totals.of([ended("done", 99, 0), ended("failed", 1, 1)]), "failed": 1}, 0),
        ("1%", {"ended": Totals.of([ended("done", 98, 0), ended("quarantined", 2, 2)]), "quarantined": 1}, 1),
        ("100%", {"ended": Totals.of([ended("failed", 4, 4)]), "failed": 1}, 0),
        ("0", {"failed": 3, "quarantined": 1, "lost_photos": 2}, 0),  # all of earlier runs
        (None, {"failed": 3}, 1),
        ("100%", {"left": 1, "skipped": 1, "ended": Totals.of([ended("late", 4, 4)])}, 1),  # can still be done
        ("0", {"left_out": {"unread": 1}}, 1),
        ("1", {"left_out": {"unread": 1}}, 0),
    ],
)
def test_failures_within_the_allowance_are_a_success(allowed: str | None, changes: dict[str, Any], code: int) -> None:
    summary = Summary(planned=9, photos=100, todo=2, max_failed=allowed, **changes)
    assert summary.exit_code == code
    said = any("within max_failed" in line for line in summary.advice("out"))
    assert said == (allowed is not None and code == 0 and (summary.failed_photos > 0 or summary.unread > 0))


def test_what_is_kept_of_a_run_does_not_grow_with_it() -> None:
    row = {"status": "protected", "reason": "", "psnr": 30.0, "similarity": []}
    totals = Totals()
    for number in range(10 * SHOWN):
        status = "failed" if number % 100 == 50 else "done"
        rows = [row] * 200
        totals.add(
            {"identity": str(number), "status": status, "photos": 200, "failed_photos": 0, "reason": "", "rows": rows}
        )
    assert (totals.tasks, totals.photos, len(totals.shown)) == (10 * SHOWN, 2000 * SHOWN, SHOWN)
    assert sum(len(result["rows"]) for result in totals.shown) <= SHOWN_ROWS
    assert [r["identity"] for r in totals.shown if r["status"] == "failed"] == [str(n * 100 + 50) for n in range(10)]
    for number in range(2 * SHOWN):
        totals.add(ended("failed", 1, 1) | {"identity": f"late {number}"})
    assert [r["identity"] for r in totals.shown] == [f"late {n}" for n in range(SHOWN, 2 * SHOWN)]  # the last failures
