"""How the small networks of the `tiny` profile, and a remover, are trained and measured; not needed to protect photos."""
