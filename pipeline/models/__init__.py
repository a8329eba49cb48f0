"""Model weights: fetch, mirror, check, fingerprint."""
