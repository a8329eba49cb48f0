"""CUDA graphs: capture the kernels of a repeated step once, then launch them together.

A step of these networks launches thousands of small kernels; launching them one by one is slower than the GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]
"""A step: tensors in, tensors out. All other tensors that it reads or changes must stay at fixed addresses."""

WARMUP_CALLS = 2
"""Eager calls before capture: libraries choose their kernels and optimisers create their state in them."""


class Graphs:
    """Captures steps as CUDA graphs; on other devices, or if not `on`, steps run eagerly.

    The graphs of one instance share a memory pool, since only one runs at a time. Graphs keep their pool, so run each
    kind of step once eagerly before the first capture: set `ready` to False until then.
    """

    def __init__(self, device: torch.device, on: bool = True) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle() if on and device.type == "cuda" else None
        self.ready = True

    @property
    def on(self) -> bool:
        """Return whether steps are captured."""
        return self.pool is not None

    def captured(self, step: Step) -> Step:
        """Return the step as a function that captures it at the third call and replays it from then on.

        Every call must pass tensors of the same shapes. Raises ValueError for other shapes, and
        torch.OutOfMemoryError.
        """
        return _CapturedStep(step, self) if self.on else step


class _CapturedStep:
    """Runs a step eagerly, then by replay of its graph. Capture itself does not execute the step."""

    def __init__(self, step: Step, graphs: Graphs) -> None:
        self.step, self.graphs, self.calls = step, graphs, 0
        self.side_stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.calls < WARMUP_CALLS or (self.graph is None and not self.graphs.ready):
            self.calls += 1
            return self._run_eagerly(inputs)
        if self.graph is None:
            self.graph = self._capture(inputs)
        for held, given in zip(self.inputs, inputs, strict=True):
            if held.shape != given.shape:
                raise ValueError(f"captured with a tensor of {tuple(held.shape)}, called with {tuple(given.shape)}")
            held.copy_(given)
        self.graph.replay()
        return tuple(each.clone() for each in self.outputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self.inputs = tuple(each.detach().clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.graphs.pool):
                self.outputs = self.step(*self.inputs)
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # ending the failed capture raised `error` on top
                raise error.__context__ from None
            if "out of memory" in str(error):  # an error of the CUDA driver
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        return graph

    def _run_eagerly(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the step's outputs, computed on a side stream: capture requires warm-up on one."""
        main_stream = torch.cuda.current_stream()
        self.side_stream.wait_stream(main_stream)
        with torch.cuda.stream(self.side_stream):
            outputs = self.step(*inputs)
        main_stream.wait_stream(self.side_stream)
        return outputs
