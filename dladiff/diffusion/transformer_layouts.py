"""Layouts of the supported transformers: which parts a folder has, and how they fit together. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
QWEN3, QWEN_VL = "Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration"


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A text encoder and its tokenizer."""

    kind: str
    """Class in transformers."""
    ending: str = ""
    """Ending of the folders text_encoder and tokenizer: "", "_2" or "_3"."""

    @property
    def folder(self) -> str:
        """Folder of the network."""
        return f"text_encoder{self.ending}"

    @property
    def tokenizer(self) -> str:
        """Folder of the tokenizer."""
        return f"tokenizer{self.ending}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the models of one family have in common."""

    family: str
    title: str
    """Name in messages."""
    pipelines: tuple[str, ...]
    """Classes in model_index.json."""
    transformer: str
    """Class in diffusers."""
    vae: str
    """Class in diffusers."""
    packed: int
    """Channels that the transformer takes for each channel of the VAE: 4 for patches of 2 x 2 cells."""
    texts: tuple[TextPart, ...]
    widths: Callable[[list[Config]], tuple[int, int]]
    """Returns the width of the text embedding and of the pooled one, 0 without it, for the encoders' settings."""
    cell: int = 16
    """Side of an image token, pixels."""


def _sd3_widths(texts: list[Config]) -> tuple[int, int]:
    pooled = [text.get("projection_dim", 512) for text in texts[:2]]
    return texts[2].get("d_model", 512), sum(pooled)


def _flux_widths(texts: list[Config]) -> tuple[int, int]:
    return texts[1].get("d_model", 512), texts[0].get("hidden_size", 512)


def _flux2_widths(texts: list[Config]) -> tuple[int, int]:
    return 3 * texts[0].get("hidden_size", 0), 0  # three hidden layers side by side


def _qwen_widths(texts: list[Config]) -> tuple[int, int]:
    own = texts[0].get("text_config")
    return (own if isinstance(own, dict) else texts[0]).get("hidden_size", 0), 0


LAYOUTS: dict[str, Layout] = {
    layout.family: layout
    for layout in (
        Layout(
            family="sd3",
            title="SD 3.5",
            pipelines=("StableDiffusion3Pipeline",),
            transformer="SD3Transformer2DModel",
            vae="AutoencoderKL",
            packed=1,
            texts=(
                TextPart(kind=CLIP_PROJECTED),
                TextPart(kind=CLIP_PROJECTED, ending="_2"),
                TextPart(kind=T5, ending="_3"),
            ),
            widths=_sd3_widths,
        ),
        Layout(
            family="flux",
            title="FLUX.1",
            pipelines=("FluxPipeline",),
            transformer="FluxTransformer2DModel",
            vae="AutoencoderKL",
            packed=4,
            texts=(TextPart(kind=CLIP), TextPart(kind=T5, ending="_2")),
            widths=_flux_widths,
        ),
        Layout(
            family="flux2",
            title="FLUX.2 klein",
            pipelines=("Flux2KleinPipeline",),
            transformer="Flux2Transformer2DModel",
            vae="AutoencoderKLFlux2",
            packed=4,
            texts=(TextPart(kind=QWEN3),),
            widths=_flux2_widths,
        ),
        Layout(
            family="qwen",
            title="Qwen-Image",
            pipelines=("QwenImagePipeline",),
            transformer="QwenImageTransformer2DModel",
            vae="AutoencoderKLQwenImage",
            packed=4,
            texts=(TextPart(kind=QWEN_VL),),
            widths=_qwen_widths,
        ),
    )
}
"""Layouts by family."""


def layout_of(index: Config) -> Layout | None:
    """Return the layout of a model_index.json, None where no supported transformer has it."""
    kind = index.get("_class_name")
    return next((layout for layout in LAYOUTS.values() if kind in layout.pipelines), None)
