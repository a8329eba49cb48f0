"""Stable Diffusion 2.1 at its full size, random weights in bf16: through the loader, and one step of every stage.

On a GPU at 512 px. A CPU without bf16 arithmetic needs minutes even at 64 px, the smallest photo; memory is 12 GB.
"""

import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dladiff.core.randomness import stream
from dladiff.diffusion.catalogue import profile_faults
from dladiff.diffusion.surrogate import Surrogate
from dladiff.layers.finetuning import perturb, static_surrogate
from dladiff.settings.schema import method_config
from tests.support.model_layouts import SD21, VIT_H, write_parts


def write_full_size(folder: Path) -> dict[str, int]:
    """Write the model in bf16; return how many parameters each network has."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        unet = UNet2DConditionModel(**SD21 | {"cross_attention_dim": 1024})
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        width = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 49408, "projection_dim": 512}
        ends = {"bos_token_id": 875, "eos_token_id": 876, "pad_token_id": 876}  # of the tokenizer that comes with it
        text = CLIPTextModel(CLIPTextConfig(**VIT_H | width | ends))
    finally:
        torch.set_default_dtype(before)
    write_parts(folder, "sd21", unet, vae, [text])
    return {k: sum(p.numel() for p in m.parameters()) for k, m in (("unet", unet), ("vae", vae), ("text", text))}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_one_step_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = 512 if device.type == "cuda" else 64
    folder = tmp_path / "sd21"
    try:
        # as published: huggingface.co counts 866 M, 83.7 M and 340 M
        assert write_full_size(folder) == {"unet": 865_910_724, "vae": 83_653_863, "text": 340_387_840}
        assert profile_faults(folder, "sd21") == []
        surrogate = Surrogate(folder, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for part in (surrogate.unet, surrogate.vae, surrogate.encoders[0].network):
        part.bfloat16()
    monkeypatch.setattr(surrogate, "autocast", lambda: torch.autocast(device.type, torch.bfloat16))
    config = method_config("sd21", "paper", {}).finetuning.replaced(
        iter_ft=1, iter_opt=2, iter_1=1, iter_2=1, iter_3=1, attention_resolution=side // 32,
        lr_static=1e-3, lr_dynamic=1e-3,
    )  # fmt: skip
    x = torch.rand(1, 3, side, side, generator=stream(1)).to(device)
    began = time.monotonic()
    static = static_surrogate(surrogate, x, config, stream(2))
    middle = time.monotonic()
    delta = perturb(surrogate, static, x, config, [stream(3)])
    ended = time.monotonic()
    for unet in (static, surrogate.trainable):
        assert unet is not None
        assert not torch.equal(unet.conv_in.weight.cpu(), surrogate.unet.conv_in.weight)
        assert all(bool(p.isfinite().all()) for p in unet.parameters())
    assert 0 < float(delta.abs().max()) <= 4 * config.step_size + 1e-6
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * resource.getrusage(0).ru_maxrss
    print(f"{side} px: static training {middle - began:.0f} s, the rest {ended - middle:.0f} s, {peak / 2**30:.1f} GiB")
