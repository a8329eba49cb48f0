"""InfiniteYou: facexlib's ArcFace (IR-SE50) of the face aligned as InsightFace does, blue first, at unit length."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="infiniteyou",
    about="InfiniteYou for FLUX.1 dev (ByteDance)",
    readings={"id": Reading(weights="arcface-ir-se50", kind="ir_se", side=112, colour="bgr")},
    source="bytedance/InfiniteYou 27d41af8 pipelines/pipeline_infu_flux.py, xinntao/facexlib 260620ae "
    "facexlib/recognition/arcface_arch.py",
    differs="antelopev2 only detects there; here the run's own detector does",
)
