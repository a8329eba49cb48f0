"""grouped: what the method says of several groups is one task's account."""

from dladiff.core.exchange import IdentityOut
from pipeline.run.grouped import together


def test_groups_are_reported_as_one_task() -> None:
    def out(seconds: float, peak: int, note: str) -> IdentityOut:
        trace = {"Layer 1": {"loss": [seconds]}, f"Layer 2, {peak}": {"a": [1.0]}}
        steps = {"static_surrogate": {"training": 10}}
        return IdentityOut([], {"detect": seconds}, peak, "cpu", [], {}, note, steps=steps, trace=trace)

    alone = out(1.0, 5, "lowered")
    assert together([alone]) is alone
    both = together([alone, out(2.0, 3, "lowered")])
    assert (both.seconds, both.peak_memory_bytes) == ({"detect": 3.0}, 5)
    assert both.steps == {"static_surrogate": {"training": 20}}
    assert both.trace == {"Layer 1": {"loss": [1.0, 2.0]}, "Layer 2, 5": {"a": [1.0]}, "Layer 2, 3": {"a": [1.0]}}
    assert both.note == "worked on in 2 groups of photos that each fit max_task_bytes; lowered"
