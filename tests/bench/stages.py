"""Seconds of each stage of one identity under the tiny profile: `make bench`. Compare ratios within one run only."""

import numpy as np
import skimage.data
from rich.console import Console
from rich.table import Table

from dladiff.core.exchange import PhotoIn
from dladiff.service import Protector


def main() -> None:
    """Protect one portrait with the profile's own and the paper's schedule on one thread, and print the stages."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])
    table = Table("schedule", "stage", "seconds", "share", title="one identity, one photo of 256 px, one thread")
    for preset in (None, "paper"):
        protector = Protector({"profile": "tiny", "preset": preset}, seed=0, threads=1)
        seconds = protector.protect_identity("a", [PhotoIn(key="a", pixels=photo)], []).seconds
        total = sum(seconds.values())
        for stage, value in [*seconds.items(), ("all", total)]:
            table.add_row(preset or "tiny", stage, f"{value:.1f}", f"{value / total:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
