"""Algorithm 1 and Algorithm 2."""
