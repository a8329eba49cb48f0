"""Networks of identity adapters that no library here has. Each is built from the shapes of its published tensors."""
