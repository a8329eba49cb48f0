"""Colour profiles."""


def describes_rgb(icc: object) -> bool:
    """Tell whether an ICC profile (bytes 16-19: colour space, 36-39: signature) is one of RGB pixels."""
    return isinstance(icc, bytes) and len(icc) > 128 and icc[16:20] == b"RGB " and icc[36:40] == b"acsp"
