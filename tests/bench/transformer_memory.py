"""GPU memory of layer 1 on transformers, counted without a GPU: `python -m tests.bench.memory` prints it.

As in `memory`: the real code on tensors with sizes and no values. The frozen network and the VAE are bf16, the low-rank
matrices fp32. Prompts are encoded before, and text encoders are gone by then; `TEXT_WEIGHTS` is what they take.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformer_layouts import LAYOUTS
from dladiff.diffusion.transformers.families import FAMILIES
from dladiff.diffusion.transformers.flow_matching import Times
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.surrogate import FlowSurrogate
from dladiff.diffusion.vae import BaseVae
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import FinetuningConfig, method_config
from tests.bench.counter import GIB, Counter, replaced
from tests.support.full_size_transformers import FAMILY, FULL_SIZE, TEXT, VAES, network_of

TEXT_WEIGHTS: dict[str, float] = {
    "sd35": 4.76e9 + 0.69e9 + 0.12e9,
    "flux1": 4.76e9 + 0.12e9,
    "flux1-schnell": 4.76e9 + 0.12e9,
    "flux2-klein": 4.02e9,
    "qwen-image": 8.29e9,
}
"""Weights of the text encoders: T5-XXL's encoder, CLIP, Qwen3-4B, Qwen2.5-VL-7B. One is loaded at a time."""


def weightless(profile: str) -> FlowSurrogate:
    """Return a transformer as it is resident on a GPU, without values."""
    length, width, pooled = TEXT[profile]
    kind, settings, channels, factor = VAES[profile]
    flow = FlowSurrogate.__new__(FlowSurrogate)
    flow.root, flow.layout, flow.family = Path(profile), LAYOUTS[FAMILY[profile]], FAMILIES[FAMILY[profile]]
    flow.device = torch.device("cpu")
    flow.use_bf16, flow.use_cuda_graphs = True, False
    with _bf16():
        flow.network = network_of(profile).eval().requires_grad_(False)
        network = getattr(diffusers, kind)(**settings).eval().requires_grad_(False)
    network.decoder = nn.Identity()
    flow.recorder, flow.times, flow.low_rank, flow.prior = Recorder(), Times(1000), None, None
    flow.family.install(flow.network, flow.recorder)
    vae = BaseVae.__new__(BaseVae)
    vae.kind, vae.factor, vae.channels, vae.device, vae.use_bf16 = kind, factor, channels, flow.device, True
    vae.network, vae.offset, vae.spread = network, torch.zeros(()), torch.ones(())
    flow.vae = vae
    prompt = Prompt(torch.zeros(1, length, width), 4, torch.zeros(1, pooled) if pooled else None)
    flow.prompts = {FinetuningConfig().prompt: prompt}
    return flow


def transformer_peaks(profile: str, photos: int, **changes: Any) -> tuple[float, float, float]:
    """Return GiB: what lies there before, and the most that static training and the perturbation hold at once.

    As few steps as reach the peaks, at the profile's resolution.
    """
    few = {"iter_ft": 2, "iter_opt": 2, "iter_1": 1, "iter_2": 1, "iter_3": 2}
    method = method_config(profile, None, {"finetuning": few | changes})
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", replaced))
        counter = stack.enter_context(Counter())
        flow = weightless(profile)
        resident, counter.peak = counter.now, counter.now
        side = method.resolution
        x, streams = torch.zeros(photos, 3, side, side), [torch.Generator() for _ in range(photos)]
        static = static_surrogate(flow, x, method.finetuning, streams[0])
        first, counter.peak = counter.peak, counter.now
        perturb(flow, static, x, method.finetuning, streams)
        return resident / GIB, first / GIB, counter.peak / GIB


def transformer_table(profiles: tuple[str, ...] = tuple(FULL_SIZE)) -> Iterator[Table]:
    """Yield a table for each profile: with and without recomputation, four photos, one at a time."""
    for profile in profiles:
        table = Table(profile, "networks GiB", "static surrogate GiB", "perturbation GiB", "text encoders GiB, before")
        for recompute in (True, False):
            figures = (f"{peak:.1f}" for peak in transformer_peaks(profile, 4, recompute=recompute))
            text = f"{2 * TEXT_WEIGHTS[profile] / GIB:.1f}"
            table.add_row("recompute" if recompute else "-", *figures, text)
        yield table


@contextmanager
def _bf16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
