"""Photos on disk, and how they become pixels."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class Photo(NamedTuple):
    """A photo in a data set.

    Attributes:
        name: unique in the set and the same on every machine, such as the path inside the set: splits depend on it.
        person: who is on it; None if unknown.
        path: the file.
    """

    name: str
    person: str | None
    path: Path


class Rejected(NamedTuple):
    """A file that is left out, and why."""

    path: Path
    reason: str


class PhotoError(Exception):
    """A photo that cannot be used; the text is the reason, without the file's name."""


PhotoReader = Callable[[Photo], Pixels]
"""Reads a photo as uint8 (S, S, 3) RGB, or raises PhotoError. Workers get a copy: it must be picklable."""


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Cut the largest square from the middle and scale it to `size` pixels, antialiased."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def map_photos(function: Callable[[Photo], T], photos: Sequence[Photo], task: str) -> Iterable[T | PhotoError]:
    """Apply a function to photos in threads; yields in order its results, or the PhotoErrors that it raised.

    A progress bar named `task` shows for sets that take more than a moment.
    """

    def attempt(photo: Photo) -> T | PhotoError:
        try:
            return function(photo)
        except PhotoError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(pool.map(attempt, photos), task, total=len(photos), transient=True, disable=len(photos) < 1000)


def open_photo(path: Path) -> Image.Image:
    """Open a photo, decoded whole, as 8-bit RGB."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:
        raise PhotoError(str(error)) from error
