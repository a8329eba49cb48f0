"""How many photos of a run may fail while it still counts as a success (`max_failed`)."""

import re

ALLOWANCE = re.compile(r"(?P<count>[0-9]{1,12})|(?P<share>[0-9]{1,3}(?:\.[0-9]{1,6})?)%")


def allowance_fault(text: str) -> str | None:
    """Return what is wrong with a `max_failed`, or None."""
    found = ALLOWANCE.fullmatch(text)
    if found is None or (found["share"] and float(found["share"]) > 100):
        return f"expected a number of photos (5) or a share of them (1%), not {text!r}"
    return None


def within(text: str, failed: int, photos: int) -> bool:
    """Return whether `failed` of `photos` are no more than `max_failed` allows."""
    found = ALLOWANCE.fullmatch(text)
    assert found is not None  # checked with the settings
    if found["count"]:
        return failed <= int(found["count"])
    return failed * 100 <= float(found["share"]) * photos
