"""Run a compared method in place of layer 1."""

from torch import Generator, Tensor

from dladiff.baselines.task import Task
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import METHODS, schedule_for
from dladiff.settings.schema import MethodConfig


def compared_layer(
    surrogate: Surrogate, clean: Images, x: Images, config: MethodConfig, generators: list[Generator], shared: Generator
) -> Tensor:
    """Return the perturbation `n 3 r r` by the method `config.protection`.

    The schedule is the method's own; bounds, prompt and batch come from the settings of layer 1.
    """
    layer = config.finetuning
    own = schedule_for(config.protection, config.model)
    schedule = own.replaced(
        eta=layer.eta,
        min_psnr=layer.min_psnr or own.min_psnr,
        batch=layer.batch_photos,
        attention_resolution=layer.attention_resolution,
        prompt=layer.prompt,
        prior_weight=layer.prior_weight,
    )
    delta: Tensor = METHODS[config.protection].load()(Task(surrogate, clean, x, schedule, generators, shared))
    return delta
