"""Delete what an owner no longer wants stored, in an output and outside of it."""
