"""Train a remover of a protection's perturbation: `python -m dladiff.training.remover --help`.

The attacker protects photos of people of its own and learns from the pairs. Progress is one JSON object a line, also in
OUT.jsonl. The same command continues where it stopped; a finished one returns at once.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dladiff.core.pixels import to_float
from dladiff.errors import DladiffError, ModelError
from dladiff.training.pairs import Pair, load_pairs, split
from dladiff.training.remover_network import FACTOR, KIND, Remover, fresh, removed, write

CLEAN_SHARE = 0.2
"""Share of a batch that is clean photos, of which nothing has to be removed."""
WARM_UP = 100
"""Most steps in which the learning rate rises; in short trainings it is a tenth."""
CHECKED = 32
"""Most held-out photos measured at a check."""
FLOOR = 1e-3
"""Half-width of the loss's quadratic part, [0, 1] units: a quarter of a grey level."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the result depends on, beside the photos."""

    steps: int
    batch: int
    patch: int
    """Side of the square patches, pixels."""
    rate: float
    """Highest learning rate of AdamW."""
    held_out: float
    """Share of the people who take no part."""
    seed: int


def batch_of(pairs: list[Pair], step: int, options: Options) -> tuple[Tensor, Tensor]:
    """Return protected and clean patches of step `step`, `b 3 patch patch` each; the same for every call."""
    rng = np.random.default_rng([options.seed, step])
    inputs, targets = [], []
    for _ in range(options.batch):
        pair = pairs[int(rng.integers(len(pairs)))]
        sides = [max(options.patch, side) for side in pair.clean.shape[:2]]
        y, x = (int(rng.integers(side - options.patch + 1)) for side in sides)
        flip, is_clean = rng.random(2) < (0.5, CLEAN_SHARE)
        patches = []
        for photo in (pair.clean if is_clean else pair.protected, pair.clean):
            edges = [(0, side - own) for side, own in zip(sides, photo.shape[:2], strict=True)]
            patch = np.pad(photo, (*edges, (0, 0)), mode="edge")[y : y + options.patch, x : x + options.patch]
            patches.append(to_float(np.ascontiguousarray(patch[:, ::-1] if flip else patch)))
        inputs.append(patches[0])
        targets.append(patches[1])
    return torch.cat(inputs), torch.cat(targets)


def loss_of(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of sqrt(d^2 + FLOOR^2) - FLOOR over the differences d (Charbonnier et al. 1994)."""
    return ((found - wanted).square() + FLOOR**2).sqrt().mean() - FLOOR


def rate_at(step: int, options: Options) -> float:
    """Return the learning rate of a step: a rise, then half a cosine to zero."""
    rise = min(1.0, (step + 1) / min(WARM_UP, max(1, options.steps // 10)))
    return options.rate * rise * (0.5 + 0.5 * math.cos(math.pi * step / options.steps))


def measured(network: Remover, pairs: list[Pair]) -> dict[str, float]:
    """Return the mean squared difference of held-out photos to their originals, before and after, in grey levels^2."""
    before = after = 0.0
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(CHECKED, len(pairs))).astype(int)]
    device = next(network.parameters()).device
    for pair in chosen:
        clean, protected = to_float(pair.clean), to_float(pair.protected)
        before += float((protected - clean).square().mean()) * 255**2 / len(chosen)
        found = removed(network, protected.to(device)).cpu()
        after += float((found - clean).square().mean()) * 255**2 / len(chosen)
    return {"before": round(before, 3), "after": round(after, 3)}


def train(
    pairs: list[Pair], out: Path, options: Options, every: int, device: torch.device, say: Callable[[Any], None]
) -> Remover:
    """Train or continue, with a check and saved weights after each `every` steps; return the network.

    Raises PairsError, and ModelError: the state beside `out` is of other settings or damaged.
    """
    learnt, held_out = split(pairs, options.held_out)
    network = fresh(options.seed).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state = out.with_name(out.name + ".state")
    step, shown = _restore(state, network, optimiser, options), math.nan
    people = {name: len({p.person for p in part}) for name, part in (("people", learnt), ("held_out_people", held_out))}
    say({"pairs": len(learnt), "held_out_pairs": len(held_out), **people, "parameters": _count(network), "step": step})
    while step < options.steps:
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, options)
        inputs, targets = (part.to(device) for part in batch_of(learnt, step, options))
        loss = loss_of(inputs + network(inputs), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step, value = step + 1, float(loss.detach())
        shown = value if math.isnan(shown) else 0.95 * shown + 0.05 * value
        if step % every == 0 or step == options.steps:
            _save(state, network, optimiser, options, step)
            write(out, network.state_dict(), {"kind": KIND})
            say({"step": step, "loss": round(shown, 6), "held_out": measured(network, held_out)})
    return network.eval().requires_grad_(False)


def _count(network: Remover) -> int:
    return sum(p.numel() for p in network.parameters())


def _save(path: Path, network: Remover, optimiser: torch.optim.Optimizer, options: Options, step: int) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    write(path, tensors, {"step": str(step), "options": json.dumps(asdict(options))})


def _restore(path: Path, network: Remover, optimiser: torch.optim.Optimizer, options: Options) -> int:
    """Load the state of an earlier call; return its number of steps, 0 without one."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if json.loads(about["options"]) != asdict(options):
            raise ModelError(f"{path} is of a training with other settings; repeat them, or name another --out")
        network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, kind = name.split(".")
                moments.setdefault(int(index), {})[kind] = tensor
        optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
        return int(about["step"])
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises classes of safetensors, torch and json
        raise ModelError(f"{path} is damaged; delete it to train from the start") from error


def main() -> int:
    """Train a remover; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, nargs=2, required=True, metavar=("CLEAN", "PROTECTED"))
    parser.add_argument("--out", type=Path, required=True, help="safetensors file of the weights")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8, help="patches a step")
    parser.add_argument("--patch", type=int, default=96, help="side of a patch, px")
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the people who only measure it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between two checks and saved states")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if min(given.steps, given.batch, given.every, given.patch) < 1 or given.patch % FACTOR:
        parser.error(f"--steps, --batch, --every are 1 at least, --patch is a multiple of {FACTOR}")
    if not 0 < given.held_out < 1 or not 0 < given.rate < 1 or given.seed < 0:
        parser.error("--held-out and --rate lie between 0 and 1, --seed is 0 at least")
    log = given.out.with_name(given.out.name + ".jsonl")

    def say(fact: Any) -> None:
        line = json.dumps(fact)
        print(line, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")

    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        pairs, left_out = load_pairs(*given.pairs)
        if left_out:
            say({"left_out": left_out})
        names = ("steps", "batch", "patch", "rate", "held_out", "seed")
        options = Options(**{name: getattr(given, name) for name in names})
        train(pairs, given.out, options, given.every, torch.device(given.device), say)
    except (DladiffError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
