"""How long actors idle at the end of a run, in a simulation: `python -m tests.bench.tail`.

The sizes of the identities are drawn with a seed from models of the published distributions: VGGFace2 has 9,131
identities of 80 to 843 photos, 362 on average; CelebA-HQ has 30,000 photos of 6,217 identities, 1 to 28 each. They are
no copies of the collections' lists.
"""

import argparse
import heapq
import random
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

SECONDS = 150.0  # of a photo: at this rate a task of 64 photos takes 2.7 hours
NOISE = 0.1  # standard deviation of the logarithm of a task's time
STRAGGLERS, SLOWER = 0.001, 4.0  # share of tasks on a slow or disturbed worker, and how much longer they take


def vggface2(rng: random.Random) -> list[int]:
    """Return photos by identity: a normal distribution cut at the published limits, 362 on average."""
    found: list[int] = []
    while len(found) < 9131:
        size = round(rng.gauss(361, 115))
        if 80 <= size <= 843:
            found.append(size)
    return found


def celeba_hq(rng: random.Random) -> list[int]:
    """Return photos by identity: a geometric distribution cut at the published limits, 4.8 on average."""
    sizes, share = range(1, 29), 0.81
    found = rng.choices(sizes, [share**size for size in sizes], k=6217)
    while (more := 30_000 - sum(found)) != 0:  # the published total
        place = rng.randrange(len(found))
        found[place] = min(28, max(1, found[place] + (1 if more > 0 else -1)))
    return found


def split(sizes: Sequence[int], most: int) -> list[int]:
    """Return photos by task, as the plan splits identities: parts of equal size."""
    tasks: list[int] = []
    for size in sizes:
        count = -(-size // most)
        part = -(-size // count)
        tasks += [min(part, size - part * i) for i in range(count)]
    return tasks


def simulate(
    times: Sequence[float], expected: Sequence[float], actors: int, *, twice: bool = False
) -> tuple[float, float]:
    """Return the seconds of the run, and the seconds that actors idle, summed. Tasks start in the given order.

    `twice`: a free actor without a task starts the running task that has the longest time left once more; the first
    that ends counts.
    """
    free = [(0.0, actor) for actor in range(actors)]
    ends: list[float] = []
    for time in times:
        now, actor = heapq.heappop(free)
        heapq.heappush(free, (now + time, actor))
        ends.append(now + time)
    if twice:
        last = sorted(((end, number) for number, end in enumerate(ends)), reverse=True)[:actors]
        idle = sorted(now for now, _ in free)[: actors - 1]
        for (end, number), now in zip(last, idle, strict=False):
            ends[number] = min(end, now + expected[number])
    end = max(ends)
    return end, end * actors - sum(times)


def main() -> None:
    """Print a table for each collection."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=64, help="max_photos_per_task")
    args = parser.parse_args()
    for collection in (vggface2, celeba_hq):
        table = Table(
            "actors", "order", "tasks", "hours", "longest task, share of the run", "tail, hours", "idle share"
        )
        for actors in (32, 128):
            for order in ("names", "longest first", "longest first, stragglers twice"):
                rows = [_row(collection, actors, order, args.most, seed) for seed in range(args.seeds)]
                mean = [sum(values) / len(values) for values in zip(*rows, strict=True)]
                shown = (f"{mean[0]:.0f}", f"{mean[1]:.1f}", f"{mean[2]:.2%}", f"{mean[3]:.2f}", f"{mean[4]:.3%}")
                table.add_row(str(actors), order, *shown)
        table.title = f"{collection.__name__}, mean of {args.seeds} seeds"
        Console(width=140).print(table)


def _row(
    collection: Callable[[random.Random], list[int]], actors: int, order: str, most: int, seed: int
) -> tuple[float, ...]:
    rng = random.Random(seed)
    tasks = split(collection(rng), most)
    if order != "names":
        tasks.sort(reverse=True)
    expected = [SECONDS * photos for photos in tasks]
    slow = (SLOWER if rng.random() < STRAGGLERS else 1.0 for _ in tasks)
    times = [time * rng.lognormvariate(0, NOISE) * factor for time, factor in zip(expected, slow, strict=True)]
    end, idle = simulate(times, expected, actors, twice="twice" in order)
    return len(tasks), end / 3600, max(expected) / end, idle / actors / 3600, idle / actors / end


if __name__ == "__main__":
    main()
