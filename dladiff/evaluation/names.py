"""Names of attacks and preprocessing, without torch: a wrong one is told before anything starts."""

ATTACKS = (
    "dreambooth",
    "dreambooth_text",
    "lora",
    "textual_inversion",
    "ip_adapter_faceid",
    "ip_adapter_faceid_held_out",
    "instantid",
)
ZERO_SHOT = ("ip_adapter_faceid", "ip_adapter_faceid_held_out", "instantid")
"""Those of ATTACKS that train nothing: they read one photo with a recogniser."""
PREPROCESSING = ("none", "jpeg95", "jpeg75", "jpeg50", "half", "crop", "blur", "noise", "tv", "social")
PURIFIERS = {
    "sdedit": "",
    "diffpure": "an unconditional pixel model in the diffusers layout (google/ddpm-celebahq-256 for faces)",
    "gridpure": "an unconditional pixel model in the diffusers layout (google/ddpm-celebahq-256 for faces)",
    "noisy_upscaling": "an upscaler in the diffusers layout (stabilityai/stable-diffusion-x4-upscaler)",
}
"""Name to the weights that it needs."""
