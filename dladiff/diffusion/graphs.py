"""CUDA graphs: the kernels of a step that is taken many times, recorded once and launched together.

A step of these networks is thousands of small kernels; a host that launches them one by one is slower than the GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]
"""A step: tensors in, tensors out. Whatever else it reads or changes lies where it lay, in tensors that stay."""

WARM = 2
"""Steps taken as they are before one is recorded: libraries choose their kernels, optimisers make their state."""


class Graphs:
    """Records steps on a CUDA device; elsewhere, or not `on`, a step is taken as it is.

    The recordings of one instance share their memory, since only one runs at a time. They keep it, so a step that is
    taken as it is beside them needs its own on top: where kinds of steps take turns, let each be taken before the first
    is recorded, and be `ready` then.
    """

    def __init__(self, device: torch.device, on: bool = True) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle() if on and device.type == "cuda" else None
        self.ready = True

    @property
    def on(self) -> bool:
        """Tell whether steps are recorded."""
        return self.pool is not None

    def of(self, step: Step) -> Step:
        """Return the same step, recorded from its third call on. It is always called with tensors of the same shapes.

        Raises torch.OutOfMemoryError, as the step itself does.
        """
        return _Recording(step, self) if self.on else step


class _Recording:
    """Takes a step: as it is, then from its recording. Recording takes no step: the replay after it does."""

    def __init__(self, step: Step, graphs: Graphs) -> None:
        self.step, self.graphs, self.calls = step, graphs, 0
        self.aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.calls < WARM or (self.graph is None and not self.graphs.ready):
            self.calls += 1
            return self._warm(inputs)
        if self.graph is None:
            self.graph = self._record(inputs)
        for held, given in zip(self.inputs, inputs, strict=True):
            if held.shape != given.shape:
                raise ValueError(f"recorded with a tensor of {tuple(held.shape)}, called with {tuple(given.shape)}")
            held.copy_(given)
        self.graph.replay()
        return tuple(each.clone() for each in self.outputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self.inputs = tuple(each.detach().clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.graphs.pool):
                self.outputs = self.step(*self.inputs)
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # the end of the broken recording hides it
                raise error.__context__ from None
            if "out of memory" in str(error):  # as the driver says it
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        return graph

    def _warm(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """On a stream of its own, which recording asks for."""
        usual = torch.cuda.current_stream()
        self.aside.wait_stream(usual)
        with torch.cuda.stream(self.aside):
            outputs = self.step(*inputs)
        usual.wait_stream(self.aside)
        return outputs
