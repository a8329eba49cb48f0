"""IP-Adapters of SD 3.5 and FLUX.1, which read the whole photo with SigLIP or CLIP."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTERS = (
    Adapter(
        name="sd35-ip-adapter",
        about="IP-Adapter for Stable Diffusion 3.5 Large (InstantX)",
        readings={
            "photo": Reading(
                weights="siglip-so400m-384", kind="siglip", cut="photo square", side=384, output="penultimate"
            )
        },
        source="diffusers 0.42 pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py encode_image",
    ),
    Adapter(
        name="flux-ip-adapter-instantx",
        about="IP-Adapter for FLUX.1 dev (InstantX)",
        readings={
            "photo": Reading(weights="siglip-so400m-384", kind="siglip", cut="photo square", side=384, output="pooled")
        },
        source="the model card of InstantX/FLUX.1-dev-IP-Adapter (infer_flux_ipa_siglip.py)",
        differs="its example first resizes the photo to multiples of 64 px, at most 1280 px",
    ),
    Adapter(
        name="flux-ip-adapter",
        about="IP-Adapter for FLUX.1 dev (XLabs)",
        readings={"photo": Reading(weights="clip-vit-l", kind="clip", cut="photo crop", side=224, output="projected")},
        source="XLabs-AI/x-flux 007b6ec7 src/flux/xflux_pipeline.py, diffusers 0.42 pipelines/flux/pipeline_flux.py",
    ),
)
