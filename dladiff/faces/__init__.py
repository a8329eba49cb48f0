"""Detection, alignment, identity encoders."""
