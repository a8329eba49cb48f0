"""IP-Adapter FaceID with an adapter conditioned on the encoder that the tiny profile holds out."""

from dladiff.evaluation.attackers.adapter import check_faceid, ip_adapter_faceid
from dladiff.evaluation.attacks import Attack, AttackSettings, shipped

__all__ = ["ATTACK", "check_faceid", "ip_adapter_faceid"]

ATTACK = Attack(
    name="ip_adapter_faceid_held_out",
    function="ip_adapter_faceid",
    check="check_faceid",
    kind="zero-shot",
    paper="Ye et al. 2023",
    year=2023,
    about="as `ip_adapter_faceid`, with an adapter conditioned on the held-out encoder",
    source="not shipped: `python -m dladiff.evaluation.train_adapter --encoder embedded:mobile` trains one",
    tiny=AttackSettings(
        guidance=6.0,
        adapter=shipped("adapter/mobile.safetensors"),
        encoder=shipped("encoders/mobile.onnx"),
    ),
)
