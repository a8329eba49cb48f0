"""Stable Diffusion as a surrogate: loading, losses, attention maps, training."""
