"""PuLID: InsightFace's embedding at its own length, and EVA02-CLIP of the face in grey on white."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="pulid",
    about="PuLID for SDXL and FLUX.1 dev (ByteDance)",
    readings={
        "id": Reading(weights="antelopev2", kind="pack", side=112, normalised=False),
        "eva": Reading(
            weights="eva02-clip-l-336", kind="eva02", cut="ffhq", side=512, resized=336, colour="grey",
            output="blocks", mask="parsing-bisenet",
        ),
    },
    source="ToTheBeginning/PuLID 1aa2fc7d pulid/pipeline_flux.py and eva_clip/, xinntao/facexlib 260620ae "
    "facexlib/utils/face_restoration_helper.py and facexlib/parsing/",
    differs="facexlib aligns by its own detector (RetinaFace) and by least median of squares; here the alignment to "
    "InsightFace's template is carried to facexlib's",
)  # fmt: skip
