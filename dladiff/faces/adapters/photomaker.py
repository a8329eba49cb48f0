"""PhotoMaker v2: InsightFace's embedding, and its own CLIP's tokens of the whole photo."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="photomaker",
    about="PhotoMaker v2 for SDXL (Tencent ARC)",
    readings={
        "id": Reading(weights="buffalo_l", kind="pack", side=112, normalised=False),
        "photo": Reading(weights="photomaker-v2", kind="photomaker", cut="photo crop", side=224, output="last"),
    },
    source="TencentARC/PhotoMaker 48ec26d1 photomaker/model_v2.py, 00ab9fe9 photomaker/pipeline.py, 2987fc60 "
    "inference_scripts/inference_pmv2.py",
)
