"""Score distillation (Xue et al. 2024, arXiv 2311.12832): the UNet's error, with a gradient through the VAE alone.

The paper finds that an attack moves the VAE's encoder, not the UNet. So it leaves out the UNet's Jacobian: the gradient
at z_t is the error, predicted noise - noise, as a constant, and is taken back through
z_t = sqrt(a_t) E(x) + sqrt(1 - a_t) e. Each step runs the UNet without a gradient.

The paper recommends descent, its SDS(-): a smaller error blurs the photo's latents, and the perturbation looks more
natural. `weight` is the sign: -1 descends, 1 ascends, its SDS(+).
"""

import torch
from torch import Generator, Tensor

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate, ascend
from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Noise
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="sds",
    function="sds",
    paper="Xue et al. 2024",
    year=2024,
    maximises="minus the denoising error, with the gradient through the VAE alone",
    schedule=BaselineConfig(eta=16 * PX, step_size=PX, steps=100, weight=-1.0),
    tiny={"steps": 48},
)


def noise_error(trainable: TrainableSurrogate, latents: Tensor, noise: Noise) -> Tensor:
    """Return the predicted noise less the noise, `b c h w`, without a gradient."""
    surrogate = trainable.surrogate
    alpha = surrogate.alphas[noise.t].to(latents.dtype).view(-1, 1, 1, 1)
    with torch.no_grad(), surrogate.autocast():
        predicted = surrogate.predict(trainable.unet, latents, noise, trainable.prompt()).float()
    if surrogate.prediction == "v_prediction":  # noise = sqrt(a) v + sqrt(1 - a) z_t
        noisy = alpha.sqrt() * latents.detach() + (1 - alpha).sqrt() * noise.latent
        predicted = alpha.sqrt() * predicted + (1 - alpha).sqrt() * noisy
    error: Tensor = predicted - noise.latent
    return error


def sds_loss(trainable: TrainableSurrogate, point: Images, generators: list[Generator], weight: float) -> Tensor:
    """Return a scalar whose gradient at `point` is `weight` * error * dz_t / dpoint, summed over the squares."""
    surrogate = trainable.surrogate
    noise = surrogate.draw(generators, point.shape[-1])
    latents = trainable.latents(point, noise)
    error = noise_error(trainable, latents, noise)
    alpha = surrogate.alphas[noise.t].to(latents.dtype).view(-1, 1, 1, 1)
    loss: Tensor = weight * (error * alpha.sqrt() * latents).sum()
    return loss


def sds(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used."""
    schedule = task.schedule
    trainable = TrainableSurrogate(task.surrogate, schedule.prompt)

    def loss(point: Images, own: list[Generator]) -> Tensor:
        return sds_loss(trainable, point, own, schedule.weight)

    return ascend(task.x, torch.zeros_like(task.x), loss, schedule, task.generators, schedule.steps)
