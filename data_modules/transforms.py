"""Augmentation of single photos, on the CPU, with chance that can be repeated."""

import os
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks a server for its newest version
import albumentations


class SampleTransforms:
    """A chain of albumentations whose chance is a function of a seed given with each image.

    The transforms share one stream of random numbers, read in order. albumentations' own `set_random_seed` starts every
    transform at the same seed instead, so that for example two flips would always happen together.

    Args:
        transforms: applied in order; each takes and gives a uint8 (H, W, 3) image, and keeps its size.
    """

    def __init__(self, transforms: Sequence[albumentations.BasicTransform]) -> None:
        self._chain = albumentations.Compose(list(transforms))

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Transform a uint8 (H, W, 3) image; the same seed gives the same result."""
        self._chain.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        result: NDArray[np.uint8] = self._chain(image=image)["image"]
        return result
