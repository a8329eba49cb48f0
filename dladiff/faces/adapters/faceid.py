"""IP-Adapter FaceID: InsightFace's embedding of the aligned face, at unit length."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="faceid",
    about="IP-Adapter FaceID for Stable Diffusion 1.5 and SDXL (Tencent AI Lab)",
    readings={"id": Reading(weights="buffalo_l", kind="pack", side=112)},
    source="tencent-ailab/IP-Adapter 0105519b ip_adapter/ip_adapter_faceid.py, model card of h94/IP-Adapter-FaceID",
)
