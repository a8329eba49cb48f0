"""`dladiff doctor`: checks of this machine, of a run's models and storage, and of every node of a cluster."""
