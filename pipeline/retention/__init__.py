"""What the owner asks to have deleted, in an output and outside of it."""
