"""The families of transformers, by the name in `layouts`."""

from dladiff.diffusion.transformers.family import Family
from dladiff.diffusion.transformers.flux import Flux
from dladiff.diffusion.transformers.flux2 import Flux2
from dladiff.diffusion.transformers.qwen_image import QwenImage
from dladiff.diffusion.transformers.stable_diffusion_3 import StableDiffusion3

FAMILIES: dict[str, Family] = {"sd3": StableDiffusion3(), "flux": Flux(), "flux2": Flux2(), "qwen": QwenImage()}
