"""How the small identity encoders of the `tiny` profile are made and measured; not needed to protect photos."""
