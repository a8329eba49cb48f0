"""Named layers of settings: profiles (a base model), presets (a schedule or ablation), GPU memory sizes.

`schema.method_config` applies them to the defaults in this order: profile, preset, GPU memory, the user's settings.
"""

from typing import Any

TINY_FINETUNING: dict[str, Any] = {
    "iter_ft": 120,
    "iter_opt": 8,
    "lr_static": 5e-4,
    "lr_dynamic": 2e-4,
}
"""Schedule of the tiny profile; chosen in docs/evaluation.md."""

TINY_ZERO_SHOT: dict[str, Any] = {"step_size": 8e-4, "check_every": 5}
"""Twice the paper's step size, checked twice as often: half the time at the same PSNR on portraits."""

NO_ENCODERS: dict[str, Any] = {"encoders": (), "held_out": ()}
"""The embedded encoders are too weak for a full-size model, so its profiles have none: the user names them."""

TRANSFORMER: dict[str, Any] = {
    "region": "photo",
    "resolution": 512,
    **NO_ENCODERS,
    "finetuning": {
        "surrogate": "lora",
        "lr_static": 1e-4,
        "lr_dynamic": 1e-4,
        "attention_resolution": 32,
        "batch_photos": 1,
        "recompute": True,
    },
}
"""What the profiles of transformers share. Whole weights with their moments fit no card; all attention maps have a
16th of the photo's side. Rates of diffusers' DreamBooth-LoRA scripts."""

PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {"finetuning": TINY_FINETUNING, "zero_shot": TINY_ZERO_SHOT, "joint": {"smoothing": 1.0}},
    "sd21": {"model": "sd21", "region": "photo", "resolution": 512, **NO_ENCODERS},
    "sd21-768": {
        "model": "sd21-768",
        "region": "photo",
        "resolution": 768,
        **NO_ENCODERS,
        "finetuning": {"attention_resolution": 24},
    },
    "sd15": {"model": "sd15", "region": "photo", "resolution": 512, **NO_ENCODERS},
    "sdxl": {
        "model": "sdxl",
        "region": "photo",
        "resolution": 1024,
        **NO_ENCODERS,
        "finetuning": {"attention_resolution": 32, "batch_photos": 1},
    },
    "sd35": {"model": "sd35", **TRANSFORMER},
    "flux1": {"model": "flux1", **TRANSFORMER},
    "flux1-schnell": {"model": "flux1-schnell", **TRANSFORMER},
    "flux2-klein": {"model": "flux2-klein", **TRANSFORMER},
    "qwen-image": {"model": "qwen-image", **TRANSFORMER},
    "latent": {
        "model": "sd21",
        "region": "photo",
        "resolution": 512,
        **NO_ENCODERS,
        "finetuning": {"batch_photos": 2},
        "joint": {"vaes": ("fetched",)},
    },
}
"""Overrides of MethodConfig by profile; dladiff/diffusion/catalogue.py knows the models. `latent` pushes the latents of
all known VAEs on this machine, and needs nothing else of a model. Profiles of Stable Diffusion
need the user's `encoders` (`schema.encoder_fault`). Their attention maps have 1/32 of the photo's side, as in the
paper."""

STRENGTHS: dict[str, dict[str, Any]] = {
    "faint": {"visibility": 85.0, "zero_shot": {"threshold": 0.3}},
    "balanced": {"visibility": 75.0, "zero_shot": {"threshold": 0.1}},
    "strong": {"visibility": 60.0, "zero_shot": {"threshold": 0.1}},
}
"""How strong and how visible, as a person chooses it; docs/evaluation.md has what each protects."""

SIGN_STEPS: dict[str, Any] = {"visibility": 0.0}

PRESETS: dict[str, dict[str, Any]] = {
    **STRENGTHS,
    "paper": {
        **SIGN_STEPS,
        "finetuning": {
            "eta": 7 / 255,
            "step_size": 2.5e-3,
            "iter_ft": 400,
            "iter_opt": 50,
            "iter_1": 3,
            "iter_2": 3,
            "iter_3": 3,
        },
        "zero_shot": {
            "eta": 11 / 255,
            "step_size": 4e-4,
            "max_steps": 200,
            "check_every": 1,
            "threshold": 0.1,
            "margin": 3.0,
            "draws": 1,
            "linear_noise": 1e-3,
            "shift_noise": 0.5,
            "space": "aligned",
        },
    },
    "without_dsur": {**SIGN_STEPS, "finetuning": {"iter_ft": 0, "iter_1": 0, "iter_2": 6}},
    "without_adft": {**SIGN_STEPS, "finetuning": {"iter_1": 6, "iter_2": 0, "iter_3": 0}},
    "without_layer2": {**SIGN_STEPS, "layers": "finetuning"},
}
"""Changes to a profile: strengths, the paper's method, and the ablations of the paper's Table 5.

`paper`: sign steps, L-inf balls of 7 and 11 levels, Algorithm 2's own noise and space; a margin of 3 means no hinge.

The paper names its modules without details. DSUR alone (`without_adft`): attention steps against two frozen surrogates.
ADFT alone (`without_dsur`): denoising steps and training of one surrogate. Each takes as many perturbation steps as
both together.
"""

GPU_MEMORY: dict[str, dict[str, Any]] = {
    "24GB": {"finetuning": {"batch_photos": 2}},
    "16GB": {"finetuning": {"offload": True, "batch_photos": 2}},
    "12GB": {"finetuning": {"offload": True, "recompute": True, "batch_photos": 2}},
}
"""Settings of each value of `gpu_memory`; tests/bench/memory.py counts the memory of each."""

LOW_RANK: dict[str, dict[str, Any]] = {
    "tiny": {"finetuning": {"lr_static": 5e-3, "lr_dynamic": 2e-3}},
    "full size": {"finetuning": {"lr_static": 1e-4, "lr_dynamic": 1e-4}},
}
"""Learning rates of `surrogate: lora`: low-rank matrices learn at higher rates than whole weights. Those of the LoRA
attack (diffusers' train_dreambooth_lora, and its tiny schedule)."""
