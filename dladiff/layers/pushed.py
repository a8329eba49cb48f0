"""Which VAEs the latent push needs, for a configuration on this machine. Imports no torch."""

from dladiff.diffusion.vae_catalogue import fetched_vaes
from dladiff.settings.joint import FETCHED
from dladiff.settings.schema import MethodConfig


def pushed_vaes(config: MethodConfig) -> list[str]:
    """Return the names of the VAEs whose latents layer 1 pushes; none where it pushes no latents.

    Raises ModelError if all known ones are asked for, and none is here.
    """
    if not config.pushes_latents:
        return []
    if FETCHED in config.joint.vaes:
        return fetched_vaes()[0]
    return [*config.joint.vaes] or [config.model]


def vaes_not_here(config: MethodConfig) -> str:
    """Return which known VAEs a run leaves out because they are not on this machine, "" for none."""
    if not config.pushes_latents or FETCHED not in config.joint.vaes or not (lacking := fetched_vaes()[1]):
        return ""
    return f"not pushed, because not on this machine: {', '.join(lacking)} (dladiff models fetch {' '.join(lacking)})"
