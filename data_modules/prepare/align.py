"""Reading photos into the aligned frame."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_modules.photos import Photo, PhotoError, Pixels, open_photo
from idface.recognition.alignment import warp_face

Landmarks = NDArray[np.float32]


@dataclass(frozen=True)
class AlignedReader:
    """Reads photos, aligned through landmarks that are known.

    Attributes:
        landmarks: for each photo's name, (5, 2) pixels of the photo, upright, in the order of LANDMARKS.
        size: side of the aligned picture.
    """

    landmarks: Mapping[str, Landmarks]
    size: int

    def __call__(self, photo: Photo) -> Pixels:
        """Read and align a photo as uint8 (size, size, 3)."""
        landmarks = self.landmarks.get(photo.name)
        if landmarks is None:
            raise PhotoError("no face found in it")
        return warp_face(np.asarray(open_photo(photo.path)), landmarks, self.size)
