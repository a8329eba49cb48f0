"""Memory that the networks of a configuration need. The GPU's figures are counted by tests/bench/memory.py."""

from dladiff.settings.schema import MethodConfig

TINY_GIB = 4.0
WHOLE_GIB = 16.0  # Stable Diffusion 2.1 twice, its optimisers, and the photos of one identity
WHOLE_GPU_GIB = {"any": 22.0, "24GB": 22.0, "16GB": 14.5, "12GB": 11.5}  # memory of a card, by `method.gpu_memory`
BESIDE_GIB = 2.0  # torch, detector, identity encoders, photos
TRANSFORMERS = {  # GiB in bf16 of the network and of its largest text encoder, which is loaded beside it for a prompt
    "sd35": (4.2, 8.9),
    "flux1": (22.2, 8.9),
    "flux1-schnell": (22.2, 8.9),
    "flux2-klein": (7.3, 7.5),
    "qwen-image": (38.1, 15.5),
}
VIEW_GIB = 3.0  # activations of one view of 512 px in a VAE of SD's size, in fp32; on a GPU bf16 takes half


def host_gib(config: MethodConfig) -> float:
    """Return the memory, GiB, that an actor needs on the CPU."""
    if config.profile == "tiny":
        return TINY_GIB
    if config.trains_surrogate and config.profile in TRANSFORMERS:
        return BESIDE_GIB + sum(TRANSFORMERS[config.profile])
    return WHOLE_GIB if config.trains_surrogate else BESIDE_GIB + _views(config) * VIEW_GIB


def gpu_gib(config: MethodConfig) -> float:
    """Return the memory, GiB, of the card that an actor needs; 0 for the profile tiny, which fits any."""
    if config.profile == "tiny":
        return 0.0
    if config.trains_surrogate and config.profile in TRANSFORMERS:
        return BESIDE_GIB + sum(TRANSFORMERS[config.profile])
    if config.trains_surrogate:
        return WHOLE_GPU_GIB[config.gpu_memory]
    return BESIDE_GIB + _views(config) * VIEW_GIB / 2


def smaller(config: MethodConfig) -> str:
    """Return how these settings can need less memory of a card."""
    if not config.trains_surrogate:
        return (
            "lower method.finetuning.batch_photos" if config.finetuning.batch_photos > 1 else "lower method.resolution"
        )
    if config.profile in TRANSFORMERS:
        return "take a larger card, or leave the surrogate out (method.layer_1: latent, with a visibility)"
    return "set method.gpu_memory (16GB, 12GB)"


def _views(config: MethodConfig) -> float:
    """Return the views of a step of the latent push in units of 512 px; VAEs take their turns."""
    return config.finetuning.batch_photos * (config.resolution / 512) ** 2 if config.pushes_latents else 0.0
