"""Architecture of a model folder, read from its configurations; `complete` checks its files.

Supported: a UNet2DConditionModel on the latents of an AutoencoderKL, with one CLIP text encoder (SD 1.x and 2.x) or two
(SDXL), and the transformers of `transformer_layouts`. Other models are refused before loading, with a message that
names the unsupported part.
"""

from pathlib import Path
from typing import Any

from dladiff.diffusion.model_facts import SCALING, Architecture, size_fault
from dladiff.diffusion.model_json import quoted, read_object
from dladiff.diffusion.transformer_architecture import read_transformer
from dladiff.diffusion.transformer_layouts import layout_of
from dladiff.errors import ModelError

SUPPORTED = (
    "supported are SD 1.x, SD 2.x, SDXL, SD 3.5, FLUX.1, FLUX.2 klein and Qwen-Image text-to-image models in the "
    "diffusers layout"
)
PREDICTIONS = ("epsilon", "v_prediction")
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
"""Classes of `text_encoder` and, in SDXL, `text_encoder_2`."""
LIBRARIES = (None, "diffusers", "transformers")


def read_architecture(root: Path) -> Architecture:
    """Return the architecture of a folder in the diffusers layout. Raises ModelError: names all unsupported parts."""
    try:
        return _architecture(root)
    except (TypeError, AttributeError, ValueError, LookupError, OverflowError) as error:
        raise ModelError(f"the model in {root} has settings of a wrong type; fetch it again") from error


def _architecture(root: Path) -> Architecture:
    if not (root / "model_index.json").is_file():
        raise ModelError(
            f"no diffusers model in {root}: expected model_index.json; name the folder that holds it, "
            "or fetch a known model: dladiff models fetch PROFILE"
        )
    index = _config(root, "model_index.json")
    if foreign := foreign_part(index):
        raise ModelError(f"the model in {root} brings its own code for {foreign}, which is not run; {SUPPORTED}")
    if _has(index, "transformer") and (layout := layout_of(index)):
        return read_transformer(root, layout, SUPPORTED)
    if faults := _parts(root, index):
        raise ModelError(f"the model in {root} is not supported: {'; '.join(faults)}; {SUPPORTED}")
    unet, vae = _config(root, "unet/config.json"), _config(root, "vae/config.json")
    scheduler = _config(root, "scheduler/scheduler_config.json")
    names = ["text_encoder"] + ["text_encoder_2"] * _has(index, "text_encoder_2")
    texts = [_config(root, f"{name}/config.json") for name in names]
    for name, config in zip(["unet", "vae", *names], [unet, vae, *texts], strict=True):
        if fault := size_fault(config):
            raise ModelError(f"the model in {root} is not supported: {name} {fault}; {SUPPORTED}")
    found = Architecture(
        context=unet.get("cross_attention_dim", 1280),
        latent_channels=vae.get("latent_channels", 4),
        prediction=scheduler.get("prediction_type", "epsilon"),
        scaling=vae.get("scaling_factor", SCALING),
        text_encoders=len(texts),
    )
    faults = [*_unet_faults(unet, found), *_text_faults(texts, unet, found)]
    if vae.get("_class_name") != "AutoencoderKL" or vae.get("shift_factor") is not None:
        faults.append(f"vae is {_kind(vae)}, not an AutoencoderKL without shift_factor")
    if found.prediction not in PREDICTIONS:
        faults.append(f"scheduler: the model predicts {quoted(found.prediction)}, not {' or '.join(PREDICTIONS)}")
    if faults:
        raise ModelError(f"the model in {root} is not supported: {'; '.join(faults)}; {SUPPORTED}")
    return found


def foreign_part(index: dict[str, Any]) -> str | None:
    """Return the first part of a model_index.json whose class is not of diffusers or transformers, or None.

    diffusers would load such a class from a Python file in the folder.
    """
    if not isinstance(index.get("_class_name", ""), str):
        return "the pipeline"
    for name, entry in index.items():
        if isinstance(entry, list) and entry and entry[0] not in LIBRARIES:
            return quoted(name)
    return None


def map_sides(unet: dict[str, Any], side: int) -> list[int]:
    """Return the sides of a UNet's attention maps for latents of `side` x `side`, largest first."""
    sides = []
    kinds = unet["down_block_types"]
    for number, kind in enumerate(kinds):
        if "CrossAttn" in kind:
            sides.append(side)
        if number < len(kinds) - 1:
            side = (side + 1) // 2
    if "CrossAttn" in (unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "") and side not in sides:
        sides.append(side)
    return sides


def _parts(root: Path, index: dict[str, Any]) -> list[str]:
    """Return a message for each missing part of the model."""
    if not _has(index, "unet"):
        other = next((f" but a {quoted(index[name][1])}" for name in ("transformer", "prior") if _has(index, name)), "")
        return [f"{_kind(index)} has no unet{other}"]
    paths = ["unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer"]
    if _has(index, "text_encoder_2"):
        paths += ["text_encoder_2/config.json", "tokenizer_2"]
    return [f"{path} is missing" for path in [*paths, "scheduler/scheduler_config.json"] if not (root / path).exists()]


def _has(index: dict[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _unet_faults(unet: dict[str, Any], found: Architecture) -> list[str]:
    if unet.get("_class_name") != "UNet2DConditionModel":
        return [f"unet is {_kind(unet)}, not a UNet2DConditionModel"]
    faults = []
    channels = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels != (found.latent_channels, found.latent_channels):
        kinds = {9: " (an inpainting model)", 8: " (an editing model)", 7: " (an upscaler)", 5: " (a depth model)"}
        faults.append(
            f"unet takes {quoted(channels[0])} channels and gives {quoted(channels[1])}{kinds.get(channels[0], '')}, "
            f"not the {found.latent_channels} of the vae's latents"
        )
    extra = unet.get("addition_embed_type"), unet.get("class_embed_type"), unet.get("encoder_hid_dim_type")
    if extra != ("text_time" if found.text_encoders == 2 else None, None, None):
        faults.append(
            f"unet's conditioning {quoted([e for e in extra if e])} does not fit {found.text_encoders} text encoder(s)"
        )
    return faults


def _text_faults(texts: list[dict[str, Any]], unet: dict[str, Any], found: Architecture) -> list[str]:
    faults = [
        f"text encoder {number} is {quoted((text.get('architectures') or ['of unknown kind'])[0])}, not a {kind}"
        for number, (text, kind) in enumerate(zip(texts, TEXT_ENCODERS, strict=False), 1)
        if kind not in (text.get("architectures") or [])
    ]
    width = sum(text.get("hidden_size", 512) for text in texts)
    if width != found.context:
        faults.append(f"the text encoders give {width} channels, the unet takes {found.context}")
    if len(texts) == 2 and not faults:
        given = texts[1].get("projection_dim", 512) + 6 * (unet.get("addition_time_embed_dim") or 0)
        taken = unet.get("projection_class_embeddings_input_dim")
        if given != taken:
            faults.append(f"pooled text and sizes give {given} channels, the unet takes {taken}")
    return faults


def _config(root: Path, path: str) -> dict[str, Any]:
    return read_object(root / path)


def _kind(config: dict[str, Any]) -> str:
    return f"a {quoted(config.get('_class_name', 'model of unknown kind'))}"
