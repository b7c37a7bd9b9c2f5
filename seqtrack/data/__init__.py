"""Data sets and the samples drawn from them. Knows no model: they meet in a batch of uint8 images and boxes."""

import numpy as np
from numpy.typing import NDArray

# uint8 pixels, (H, W, 3) unless a docstring gives another layout.
Image = NDArray[np.uint8]
