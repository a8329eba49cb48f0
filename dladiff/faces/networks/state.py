"""Published weights as safetensors: read, and put into a network that must have a place for each needed tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dladiff.errors import ModelError

State = dict[str, Tensor]
"""Name to tensor."""
MAX_TENSORS = 4096
"""Largest number of tensors of a file; EVA02-CLIP-L's has about 900."""


def read_state(file: Path, prefix: str = "") -> State:
    """Return the tensors of a safetensors file whose names begin with `prefix`, without it. Raises ModelError."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]
            if len(names) > MAX_TENSORS:
                raise ModelError(f"{file} holds {len(names)} tensors; expected at most {MAX_TENSORS}")
            return {name.removeprefix(prefix): opened.get_tensor(name).float() for name in names}
    except ModelError:
        raise
    except Exception as error:  # safetensors raises several classes of its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file} is no readable safetensors file: {why}; convert or fetch it again") from error


def built(file: Path, what: str, build: Callable[[State], nn.Module], state: State) -> nn.Module:
    """Return `build(state)` with the tensors loaded, in evaluation mode.

    Tensors that the network has no place for are left out. Raises ModelError: one is missing or has another shape.
    """
    try:
        network = build(state)
    except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError, StopIteration) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file} does not hold the weights of {what}: {why}; fetch and convert it again") from error
    wanted = network.state_dict()
    lacking = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if lacking or wrong:
        fault = f"lacks {lacking[0]}" if lacking else f"{wrong[0]} has the shape {tuple(state[wrong[0]].shape)}"
        raise ModelError(f"{file} does not hold the weights of {what}: {fault}; fetch and convert it again")
    if strange := next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None):
        raise ModelError(f"{file} is damaged: {strange} holds numbers that are not finite; fetch it again")
    network.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    return network.eval().requires_grad_(False)


def numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of consecutive numbers from 0 in names `prefix.0...`, `prefix.1...`."""
    found = {name.removeprefix(f"{prefix}.").partition(".")[0] for name in state if name.startswith(f"{prefix}.")}
    count = 0
    while str(count) in found:
        count += 1
    return count
