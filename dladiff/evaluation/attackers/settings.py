"""The default settings of an attack on a base model."""

from dladiff.errors import ModelError
from dladiff.evaluation.attackers.base import Base
from dladiff.evaluation.attacks import ATTACKS, AttackSettings


def settings_for(attack: str, base: Base) -> AttackSettings:
    """Return the default settings of an attack on this base model. Raises ModelError: it does not attack this kind."""
    kind = "tiny" if base.region == "face" else "sdxl" if base.sdxl else "full_size"
    known = {name: record.settings()[kind] for name, record in ATTACKS.items() if kind in record.settings()}
    if attack not in known:
        model = "SDXL" if base.sdxl else "SD 1.x or 2.x"
        raise ModelError(f"{attack} does not attack {base.name} ({model}); what does: {', '.join(known)}")
    return known[attack]
