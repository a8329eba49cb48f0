"""Attacks: their records, of which each file of `dladiff/evaluation/attackers/` with an attack holds one.

Nothing here imports torch: a wrong name is reported before anything starts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dladiff.settings.records import Record, read_records
from dladiff.settings.validate import Settings

TINY = Path(__file__).parents[1] / "profiles" / "tiny"
"""The tiny bundle, its encoders and its adapters, which ship with the package."""


def shipped(name: str) -> str:
    """Return the path of a file of the tiny profile."""
    return str(TINY / name)


class AttackSettings(Settings):
    """Settings of one attack; those that it does not know it leaves alone."""

    prompt: str = "a photo of sks person"
    """Prompt of every training step."""
    initializer: str = "person"
    """Textual Inversion: the word whose embedding `sks` starts from."""
    steps: int = 0
    lr: float = 0.0
    """Of AdamW, constant."""
    batch: int = 1
    rank: int = 4
    """LoRA: rank, and alpha."""
    sampling_steps: int = 20
    """Of DPM-Solver++."""
    guidance: float = 7.5
    """Classifier-free guidance."""
    adapter: str = ""
    """Zero-shot: weights file in the layout of IP-Adapter FaceID or InstantID, or a folder that holds one."""
    encoder: str = ""
    """Zero-shot: ONNX file of the recogniser that the adapter listens to."""
    scale: float = 1.0
    """Zero-shot: weight of the image tokens."""
    control: str = ""
    """InstantID: folder of IdentityNet, its ControlNet, in the diffusers layout."""
    control_scale: float = 0.8
    """InstantID: weight of IdentityNet."""


@dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """An attack.

    `function`: (base, training photos r x r x 3, settings, prompts, images a prompt, seed) to each prompt's images.
    A kind of base model whose settings are None is not attacked.
    """

    kind: Literal["fine-tuning", "zero-shot"]
    """`zero-shot` trains nothing: it reads one photo with a recogniser."""
    paper: str
    year: int
    """Of publication; tables list attacks by it."""
    about: str
    """What is trained, or what goes in."""
    source: str
    """Where the settings for full-size models come from."""
    full_size: AttackSettings | None = None
    """For Stable Diffusion 1 and 2."""
    sdxl: AttackSettings | None = None
    tiny: AttackSettings | None = None
    """For the tiny model, measured; docs/evaluation.md has the similarity that they reach on clean photos."""
    check: str = ""
    """Function of the record's file, (base, settings), that raises ModelError where weights are missing."""

    def settings(self) -> dict[str, AttackSettings]:
        """Return the settings by kind of base model; a kind that is not attacked is missing."""
        kinds = {"full_size": self.full_size, "sdxl": self.sdxl, "tiny": self.tiny}
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
"""Name to record: fine-tuning first, by year."""
ZERO_SHOT = tuple(name for name, attack in ATTACKS.items() if attack.kind == "zero-shot")
