"""Where attacks run: the threads and the device of this process."""

import torch


def prepare(threads: int, gpu: bool) -> str:
    """Set torch's threads and return the device: `cuda` where one is asked for and there, else `cpu`."""
    torch.set_num_threads(max(1, threads))
    return "cuda" if gpu and torch.cuda.is_available() else "cpu"
