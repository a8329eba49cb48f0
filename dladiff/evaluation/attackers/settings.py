"""Settings of each attack: those of its publication for full-size models, measured ones for the tiny model."""

from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import TINY, AttackSettings, Base

FULL_SIZE = {
    # the DLADiff paper's own attacker (section 5.1): batch 4, 400 iterations, 5e-6
    "dreambooth": AttackSettings(steps=400, lr=5e-6, batch=4, sampling_steps=25),
    # the same with the text encoder, as Anti-DreamBooth's attacker does it (Van Le et al. 2023)
    "dreambooth_text": AttackSettings(steps=400, lr=5e-6, batch=4, sampling_steps=25),
    # diffusers' train_dreambooth_lora: rank 4, 1e-4, 500 steps of batch 1
    "lora": AttackSettings(steps=500, lr=1e-4, batch=1, rank=4, sampling_steps=25),
    # diffusers' textual_inversion: 5e-4, batch 1, accumulated and scaled to 2e-3 over 4, 3000 steps
    "textual_inversion": AttackSettings(steps=3000, lr=2e-3, batch=4, sampling_steps=25),
    # IP-Adapter's FaceID demonstration: 30 steps, guidance 7.5; weights and recogniser come from the user
    "ip_adapter_faceid": AttackSettings(sampling_steps=30),
}

SDXL = {
    # InstantID's demonstration: 30 steps, guidance 5, both scales 0.8; weights and recogniser come from the user
    "instantid": AttackSettings(sampling_steps=30, guidance=5.0, scale=0.8, control_scale=0.8),
}

TINY_MODEL = {
    # docs/evaluation.md has the similarity that these reach on clean photos
    "dreambooth": AttackSettings(steps=300, lr=5e-4, batch=4, guidance=2.0),
    "dreambooth_text": AttackSettings(steps=300, lr=5e-4, batch=4, guidance=2.0),
    "lora": AttackSettings(steps=300, lr=5e-3, batch=4, rank=16, guidance=2.0),
    "textual_inversion": AttackSettings(steps=300, lr=5e-2, batch=4, guidance=2.0),
    "ip_adapter_faceid": AttackSettings(
        guidance=6.0,
        adapter=str(TINY / "adapter" / "residual.safetensors"),
        encoder=str(TINY / "encoders" / "residual.onnx"),
    ),
    "ip_adapter_faceid_held_out": AttackSettings(
        guidance=6.0,
        adapter=str(TINY / "adapter" / "mobile.safetensors"),
        encoder=str(TINY / "encoders" / "mobile.onnx"),
    ),
}


def settings_for(attack: str, base: Base) -> AttackSettings:
    """Return the default settings of an attack on this base model. Raises ModelError: it does not attack this kind."""
    known = TINY_MODEL if base.region == "face" else SDXL if base.sdxl else FULL_SIZE
    if attack not in known:
        kind = "SDXL" if base.sdxl else "SD 1.x or 2.x"
        raise ModelError(f"{attack} does not attack {base.name} ({kind}); what does: {', '.join(known)}")
    return known[attack]
