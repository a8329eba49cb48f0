"""Known transformers: hub ids, licences, architectures; `catalogue` finds them on this machine."""

from dladiff.diffusion.model_facts import Architecture, KnownModel

TRANSFORMERS = (
    KnownModel(
        profile="sd35",
        ids=("stabilityai/stable-diffusion-3.5-medium",),
        gated=("stabilityai/stable-diffusion-3.5-medium",),
        licence="Stability AI Community License",
        resolution=512,
        architecture=Architecture(
            context=4096,
            latent_channels=16,
            prediction="flow",
            scaling=1.5305,
            text_encoders=3,
            family="sd3",
            layers=24,
        ),
    ),
    KnownModel(
        profile="flux1",
        ids=("black-forest-labs/FLUX.1-dev",),
        gated=("black-forest-labs/FLUX.1-dev",),
        licence="FLUX.1 [dev] Non-Commercial License",
        resolution=512,
        architecture=Architecture(
            context=4096,
            latent_channels=16,
            prediction="flow",
            scaling=0.3611,
            text_encoders=2,
            family="flux",
            layers=57,
            guidance=True,
        ),
    ),
    KnownModel(
        profile="flux1-schnell",
        ids=("black-forest-labs/FLUX.1-schnell",),
        gated=("black-forest-labs/FLUX.1-schnell",),
        licence="Apache-2.0",
        resolution=512,
        architecture=Architecture(
            context=4096,
            latent_channels=16,
            prediction="flow",
            scaling=0.3611,
            text_encoders=2,
            family="flux",
            layers=57,
        ),
    ),
    KnownModel(
        profile="flux2-klein",
        ids=("black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-4B"),
        licence="Apache-2.0",
        resolution=512,
        architecture=Architecture(
            context=7680,
            latent_channels=32,
            prediction="flow",
            scaling=1.0,
            text_encoders=1,
            family="flux2",
            layers=25,
        ),
    ),
    KnownModel(
        profile="qwen-image",
        ids=("Qwen/Qwen-Image",),
        licence="Apache-2.0",
        resolution=512,
        architecture=Architecture(
            context=3584,
            latent_channels=16,
            prediction="flow",
            scaling=1.0,
            text_encoders=1,
            family="qwen",
            layers=60,
        ),
    ),
)
"""Known transformers; `layers` tells the sizes of a family apart."""
