"""Attacks: the settings and the records of the files in `dladiff/evaluation/attackers/`.

This module does not import torch, so the driver can check names without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dladiff.settings.records import Record, read_records
from dladiff.settings.validate import Settings

ENCODER_ONLY = "encoder_only"
"""The attack without a generator: encoders compare the photos themselves."""
TINY = Path(__file__).parents[1] / "profiles" / "tiny"
"""Folder of the tiny bundle, its encoders and its adapters, which ship with the package."""


def shipped(name: str) -> str:
    """Return the path of a file in the tiny profile's folder."""
    return str(TINY / name)


class AttackSettings(Settings):
    """Settings of one attack; each attack ignores the settings that do not apply to it."""

    prompt: str = "a photo of sks person"
    """Prompt of every training step."""
    initializer: str = "person"
    """Textual Inversion: word whose embedding initialises `sks`."""
    steps: int = 0
    """Training steps."""
    lr: float = 0.0
    """Learning rate of AdamW, constant."""
    batch: int = 1
    """Photos of a training step."""
    rank: int = 4
    """LoRA: rank, and alpha."""
    sampling_steps: int = 20
    """Steps of DPM-Solver++."""
    guidance: float = 7.5
    """Scale of classifier-free guidance; 0, on transformers: their pipeline's default."""
    adapter: str = ""
    """Zero-shot: weights file in the layout of IP-Adapter FaceID or InstantID, or a folder that holds one."""
    encoder: str = ""
    """Zero-shot: ONNX file of the recogniser that the adapter is conditioned on."""
    scale: float = 1.0
    """Zero-shot: weight of the image tokens."""
    control: str = ""
    """InstantID: folder of IdentityNet, its ControlNet, in the diffusers layout."""
    control_scale: float = 0.8
    """InstantID: weight of IdentityNet."""


@dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """An attack.

    `function(base, photos r x r x 3, settings, prompts, images per prompt, seed)` returns each prompt's images. An
    attack does not support a kind of base model whose settings are None.
    """

    kind: Literal["fine-tuning", "zero-shot"]
    """`zero-shot` trains nothing: its input is the identity embedding of one photo."""
    paper: str
    year: int
    """Year of publication; tables order attacks by it."""
    about: str
    """What is trained, or what the input is."""
    source: str
    """Source of the settings for full-size models."""
    full_size: AttackSettings | None = None
    """For Stable Diffusion 1 and 2."""
    sdxl: AttackSettings | None = None
    """For SDXL."""
    transformer: AttackSettings | None = None
    """For SD 3.5, FLUX.1, FLUX.2 klein and Qwen-Image."""
    tiny: AttackSettings | None = None
    """For the tiny model, chosen by measurement; docs/evaluation.md lists the similarity that clean photos reach."""
    check: str = ""
    """Function of the record's file, (base, settings), that raises ModelError if weights are missing."""

    def settings(self) -> dict[str, AttackSettings]:
        """Return the settings by kind of base model, without the kinds that the attack does not support."""
        kinds = {
            "full_size": self.full_size,
            "sdxl": self.sdxl,
            "transformer": self.transformer,
            "tiny": self.tiny,
        }
        return {kind: settings for kind, settings in kinds.items() if settings is not None}


def _order(attack: Attack) -> tuple[str, int, str]:
    return attack.kind, attack.year, attack.name


ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in sorted(
        read_records("dladiff.evaluation.attackers", Attack, {"AttackSettings": AttackSettings, "shipped": shipped}),
        key=_order,
    )
}
"""Name to record: fine-tuning first, then zero-shot, each by year."""
ZERO_SHOT = tuple(name for name, attack in ATTACKS.items() if attack.kind == "zero-shot")
