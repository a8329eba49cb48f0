"""How the small networks of the `tiny` profile, and a remover, are trained; protection does not need it."""
