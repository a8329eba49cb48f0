"""Where attacks run: the threads and the device of this process."""

import torch

from dladiff.service import chosen_device


def prepare(threads: int, gpu: bool) -> str:
    """Set torch's threads and return the device, `cuda` or `cpu`. Raises ModelError: a GPU asked for and not there."""
    torch.set_num_threads(max(1, threads))
    return chosen_device(gpu).type
