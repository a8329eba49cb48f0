"""How the small networks of the `tiny` profile are made and measured, and how a remover is; not needed to protect photos."""
