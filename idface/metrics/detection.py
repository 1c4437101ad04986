"""Whether there is a face to be found on a picture, by the cascades of Viola and Jones (Sanche, section 5)."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import local

import cv2
import numpy as np
from numpy.typing import NDArray

from idface.pictures import Picture

SMALLEST, LARGEST = 32, 64
"""Pixels: sides of the faces that are looked for; pictures have the second."""
SCALE = 1.1
"""From one size that is looked for to the next."""
HAAR = (
    "frontalface_alt2",
    "frontalface_alt",
    "frontalface_default",
    "smile",
    "eye_tree_eyeglasses",
    "frontalface_alt_tree",
)
"""The paper's, those first that say most often that there is a face: the others are not asked then. LBP's follows."""
CASCADES = (*HAAR, "lbp_frontalface")

_own = local()  # a cascade must not be used by two threads at once


def find_faces(pictures: Picture) -> NDArray[np.bool_]:
    """Which pictures show a face, as the paper has it: any of its seven cascades finds something.

    A mouth that smiles and an eye count as faces, so the rate of generated faces means something beside that of real
    ones only.

    Args:
        pictures: uint8 (N, S, S, 3), RGB; brought to the paper's 64 pixels first.

    Returns:
        Bool (N,).
    """
    return np.array([any(_hits(name, grey) for name in CASCADES) for grey in map(_grey, pictures)], dtype=bool)


def hits_of_each(pictures: Picture) -> dict[str, NDArray[np.bool_]]:
    """What each cascade finds in pictures, uint8 (N, S, S, 3): bool (N,) by its name."""
    greys = [_grey(picture) for picture in pictures]
    return {name: np.array([_hits(name, grey) for grey in greys], dtype=bool) for name in CASCADES}


def find_faces_aside(pictures: Picture, pool: ThreadPoolExecutor, parts: int) -> list[Future[NDArray[np.bool_]]]:
    """`find_faces` in so many parts by threads; OpenCV lets others run meanwhile."""
    return [pool.submit(find_faces, part) for part in np.array_split(pictures, parts)]


def _grey(picture: Picture) -> NDArray[np.uint8]:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if grey.shape != (LARGEST, LARGEST):
        grey = cv2.resize(grey, (LARGEST, LARGEST), interpolation=cv2.INTER_AREA)
    return grey  # type: ignore[return-value]


def _hits(name: str, grey: NDArray[np.uint8]) -> bool:
    smallest, largest = (SMALLEST, SMALLEST), (LARGEST, LARGEST)
    return len(_of_this_thread(name).detectMultiScale(grey, SCALE, minSize=smallest, maxSize=largest)) > 0


def _of_this_thread(name: str) -> cv2.CascadeClassifier:
    if not hasattr(_own, "cascades"):
        _own.cascades = {}
    if name not in _own.cascades:
        cascade = cv2.CascadeClassifier()
        storage = cv2.FileStorage(_xml(name), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        if not cascade.read(storage.getFirstTopLevelNode()):
            raise RuntimeError(f"OpenCV {cv2.__version__} cannot read the cascade {name}: use a version 4")
        _own.cascades[name] = cascade
    return _own.cascades[name]


@cache
def _xml(name: str) -> str:
    if name in HAAR:
        return (Path(cv2.__file__).parent / "data" / f"haarcascade_{name}.xml").read_text("utf-8")
    from skimage.data import lbp_frontal_face_cascade_filename

    # OpenCV's wheels carry no LBP cascades. In scikit-image's copy one word is misspelt, and OpenCV looks for it.
    return Path(lbp_frontal_face_cascade_filename()).read_text("utf-8").replace("featuhreParams", "featureParams")
