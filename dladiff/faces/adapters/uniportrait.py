"""UniPortrait: CurricularFace's feature maps, and CLIP's tokens without the first, of the aligned face."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="uniportrait",
    about="UniPortrait for Stable Diffusion 1.5 (Alibaba)",
    readings={
        "id": Reading(
            weights="curricularface-r101", kind="ir", side=224, resized=112, interpolation="bilinear", output="features"
        ),
        "face": Reading(weights="clip-vit-h", kind="clip", side=224, output="penultimate", class_token=False),
    },
    source="junjiehe96/UniPortrait 81ce91b5 uniportrait/uniportrait_pipeline.py, gradio_app.py and "
    "uniportrait/curricular_face/",
)
