"""IP-Adapter FaceID-Plus (and Plus v2): the embedding, and CLIP's tokens of the aligned face.

The authors' example reads the photo with OpenCV and gives CLIP the crop without a conversion: blue comes first.
"""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="faceid-plus",
    about="IP-Adapter FaceID-Plus and Plus v2 for Stable Diffusion 1.5 and SDXL (Tencent AI Lab)",
    readings={
        "id": Reading(weights="buffalo_l", kind="pack", side=112),
        "face": Reading(weights="clip-vit-h", kind="clip", side=224, colour="bgr", output="penultimate"),
    },
    source="tencent-ailab/IP-Adapter 0105519b ip_adapter/ip_adapter_faceid.py, model card of h94/IP-Adapter-FaceID",
)
