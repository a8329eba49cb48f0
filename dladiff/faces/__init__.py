"""Face detection, alignment and identity encoders."""
