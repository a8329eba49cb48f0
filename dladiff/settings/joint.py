"""Settings of the optimisation under the visibility budget."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from dladiff.settings.validate import Items, Settings

FETCHED = "fetched"
"""In `vaes`: all known VAEs on this machine."""


class JointConfig(Settings):
    """Both layers under one visibility budget: one perturbation, optimised by Adam. Used where `visibility` is set."""

    eta: float = Field(default=12 / 255, ge=0, le=0.25)
    """Outer bound of the perturbation, L-inf, [0, 1] units."""
    steps: int = Field(default=150, ge=0, le=100_000)
    """Steps for each face, or for the whole photo in `region: photo`."""
    step_size: float = Field(default=1 / 255, ge=0, le=0.25)
    """Adam's learning rate at the first step, [0, 1] units; it falls linearly."""
    smoothing: float = Field(default=0.0, ge=0, le=16)
    """Standard deviation of the blur of each step, cells. The profile `tiny` has 1: its VAE and the encoders hardly see
    finer detail, and the eye does. The VAEs of full-size models do (docs/evaluation.md, "Latent layer")."""
    draws: int = Field(default=2, ge=1, le=64)
    """Random alignments averaged in one step."""
    encoders_per_step: int = Field(default=1, ge=0, le=64)
    """Encoders that one step evaluates, drawn at random; 0: all. Two, one a step, end where both a step end, in a good
    half of the time (docs/encoders.md)."""
    latent_weight: float = Field(default=0.3, ge=0, le=1000)
    """Weight of the logarithm of the latent shift, relative to the identity loss."""
    vaes: Items[str] = ()
    """VAEs whose latents are pushed: a known one (`vae:sd`, dladiff models list), a folder of a VAE or of a model, a
    model's name, or `fetched`, all known ones on this machine. Empty: the VAE of `method.model`."""
    vae_weights: Items[Annotated[float, Field(gt=0, le=1000)]] = ()
    """Weight of each of `vaes`; empty: equal weights."""
    log_variance: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the shift of the posterior's log variance beside the shift of its mean; 0: the mean alone."""
    colour: float = Field(default=1.5, ge=0, le=100)
    """Largest shift of areas' colours (4-norm of CIE76 differences of means over 4 to 32 cells), which
    SSIMULACRA2 hardly counts."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if FETCHED in self.vaes and (self.vae_weights or len(self.vaes) > 1):
            yield f"vaes: {FETCHED} means all known VAEs here, with equal weights; or name each VAE, with its weight"
        elif (weights := len(self.vae_weights)) not in (0, len(self.vaes)):
            yield f"vae_weights: {weights} weights for {len(self.vaes)} VAEs; name the VAEs in vaes"
        if len(set(self.vaes)) < len(self.vaes):
            yield "vaes: one VAE is listed twice; remove one, and set its weight in vae_weights"
