"""Weights: fetched, mirrored, checked, fingerprinted."""
