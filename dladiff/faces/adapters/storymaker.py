"""StoryMaker: InsightFace's embedding, and CLIP's tokens of the aligned face and of the person."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="storymaker",
    about="StoryMaker for SDXL (RED AIGC)",
    readings={
        "id": Reading(weights="buffalo_l", kind="pack", side=112),
        "face": Reading(weights="clip-vit-h", kind="clip", side=224, output="penultimate"),
        "person": Reading(weights="clip-vit-h", kind="clip", cut="photo square", side=224, output="penultimate"),
    },
    source="RedAIGC/StoryMaker a7ce766d pipeline_sdxl_storymaker.py",
    differs="the attacker supplies a mask of the person, whose bounding rectangle is read on white; here the whole "
    "photo is read, unmasked",
)
