"""What a thief does with photos: fine-tuning and zero-shot customization, none of it with the protection's own code."""

from dladiff.evaluation.attackers.adapter import ip_adapter_faceid
from dladiff.evaluation.attackers.base import Attack, AttackSettings, Base, load_base
from dladiff.evaluation.attackers.dreambooth import dreambooth, dreambooth_text
from dladiff.evaluation.attackers.instantid import instantid
from dladiff.evaluation.attackers.lora import lora
from dladiff.evaluation.attackers.settings import settings_for
from dladiff.evaluation.attackers.textual_inversion import textual_inversion

__all__ = ["ATTACKS", "Attack", "AttackSettings", "Base", "load_base", "settings_for"]

ATTACKS: dict[str, Attack] = {
    "dreambooth": dreambooth,
    "dreambooth_text": dreambooth_text,
    "lora": lora,
    "textual_inversion": textual_inversion,
    "ip_adapter_faceid": ip_adapter_faceid,
    "ip_adapter_faceid_held_out": ip_adapter_faceid,
    "instantid": instantid,
}
"""Name to attack. `_held_out` is the same attack with an adapter that listens to another encoder (`settings_for`)."""
