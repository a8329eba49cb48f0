"""Mathematics without a network: projection, PGD, transforms, quality, colour."""
