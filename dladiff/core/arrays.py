"""Array types without torch, for the method and the driver alike."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB bytes: one photo, h x w x 3, or a stack of n x h x w x 3."""
MAX_CELLS = 2**21
"""Largest number of cells of a field over a photo: 25 MB of floats."""
