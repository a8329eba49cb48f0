"""driver: what a run says at its end: trying again is only advised where it can help."""

from typing import Any

import pytest

from pipeline.run.driver import Summary


def result(status: str, *reasons: str) -> dict[str, Any]:
    rows = [{"status": "failed", "reason": reason} for reason in reasons]
    return {"status": status, "reason": f"no photo can be used: {'; '.join(reasons)}", "rows": rows}


@pytest.mark.parametrize(
    ("earlier", "results", "again"),
    [
        ((), [result("failed", "the file is truncated; copy it again from its source")], False),
        ((), [result("failed", "JPEG 2000 is not supported; convert it to JPEG or PNG")], False),
        ((), [result("done", "the file is damaged (OSError); copy it again from its source")], False),
        ((), [result("failed", "cannot reach S3; check the network")], True),
        ((), [result("failed", "too large: 9 pixels is more than max_pixels = 1; make it smaller or raise it")], True),
        ((), [result("failed", "the file is empty", "access denied to s3://b/1.jpg")], True),
        (("the file is empty",), [], False),
        (("the file is empty", "CUDA out of memory"), [], True),
        ((), [result("quarantined")], True),
    ],
)
def test_trying_again_is_advised_only_where_it_can_help(
    earlier: tuple[str, ...], results: list[dict[str, Any]], again: bool
) -> None:
    summary = Summary(planned=1, photos=2, todo=1, failed=1, reasons=earlier, results=results)
    (line,) = summary.advice("out")
    assert ("--retry-failed" in line) is again
    assert ("replace those files" in line) is not again
