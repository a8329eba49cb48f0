"""Cross-attention maps of the instance word for a photo and its protected version, as in the paper's Figure 7."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import Images, to_float, to_uint8
from dladiff.core.randomness import stream
from dladiff.core.tiles import face_square
from dladiff.core.views import View, attacker_views
from dladiff.diffusion.base_model import BaseModel
from dladiff.diffusion.loading import load_base_model
from dladiff.errors import ConfigError, PhotoError
from dladiff.layers.finetuning import static_surrogate
from dladiff.protect import Models
from dladiff.settings.schema import MethodConfig

DRAWS = 8
"""Draws of timestep and noise that a map averages."""
WEIGHTS = ("pretrained", "fine-tuned on the clean photos", "fine-tuned on the protected photos")
PHOTOS = ("clean", "protected")
Map = NDArray[np.float64]
"""Attention to the instance word, side x side, scaled to mean 1."""


@dataclass(frozen=True)
class Pair:
    """A photo and its protected version: h x w x 3 RGB bytes of one size."""

    clean: Pixels
    protected: Pixels


@dataclass(frozen=True)
class Explanation:
    """The working squares of the clean and the protected photo, and the map of each for each of WEIGHTS."""

    squares: dict[str, Pixels]
    maps: dict[tuple[str, str], Map]


def explain(pairs: Sequence[Pair], chosen: int, models: Models, config: MethodConfig, seed: int) -> Explanation:
    """Return the maps of `pairs[chosen]` in the pretrained network and in two fine-tuned on the photos of `pairs`.

    The square frames the clean photo's largest face, or is the middle square. Raises PhotoError if a photo and
    its protected version differ in size, ConfigError if the model has no maps of `attention_resolution`.
    """
    for number, pair in enumerate(pairs):
        if pair.clean.shape != pair.protected.shape:
            raise PhotoError(f"photo {number + 1}: the protected version has another size; it belongs to another photo")
    views = [_view(pair.clean, models, config) for pair in pairs]
    images: dict[str, Images] = {
        name: torch.cat([
            view.read(to_float(getattr(pair, name)).to(models.device), config.resolution)
            for pair, view in zip(pairs, views, strict=True)
        ])
        for name in PHOTOS
    }  # fmt: skip
    maps: dict[tuple[str, str], Map] = {}
    surrogate = models.surrogate or load_base_model(config.model, models.device)  # a latent push loads no network
    for weights, training_set in zip(WEIGHTS, (None, "clean", "protected"), strict=True):
        network = surrogate.fresh_network(config.finetuning.low_rank)
        if training_set is not None:
            own = stream(seed, "explain", training_set)
            network = static_surrogate(surrogate, images[training_set], config.finetuning, own)
        for name in PHOTOS:
            square = images[name][chosen : chosen + 1]
            maps[weights, name] = instance_map(surrogate, network, square, config, seed)
    return Explanation({name: to_uint8(images[name][chosen : chosen + 1]) for name in PHOTOS}, maps)


def instance_map(surrogate: BaseModel, network: Any, square: Images, config: MethodConfig, seed: int) -> Map:
    """Return the attention of a square `1 3 r r` to the prompt's instance word, averaged over layers and DRAWS draws.

    The draws depend on the seed only, so that maps of different weights and photos are comparable.
    """
    settings = config.finetuning
    prompt = surrogate.prompt(settings.prompt)
    map_reader, total = surrogate.map_reader(settings.attention_resolution), torch.zeros((), device=square.device)
    posterior = surrogate.encode_fixed(square, 1)
    position = prompt.instance if prompt.instance is not None else 1
    for number in range(DRAWS):
        noise = surrogate.draw([stream(seed, "explain", str(number))], square.shape[-1])
        latents = surrogate.latents(posterior, noise)
        with torch.no_grad(), surrogate.autocast():
            maps = map_reader(network, partial(surrogate.predict, network, latents, noise, prompt))
        if not maps.cross:
            raise ConfigError(["finetuning.attention_resolution: no cross-attention layer has such maps; change it"])
        total = total + torch.stack([layer.attention_map()[0, :, position].float() for layer in maps.cross]).mean(0)
    side = settings.attention_resolution
    values: Map = (total / DRAWS).reshape(side, side).double().cpu().numpy()
    values /= values.mean()
    return values


def correlation(a: Map, b: Map) -> float:
    """Return Pearson's correlation of two maps over their cells."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _view(photo: Pixels, models: Models, config: MethodConfig) -> View:
    faces = models.detector.detect(photo) if config.region == "face" else []
    if faces:
        return View.of("face", face_square(faces[0].landmarks))
    return attacker_views(photo.shape[0], photo.shape[1], [], 1)[0]
