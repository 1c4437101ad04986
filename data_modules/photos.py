"""Photos on disk, and how they become pixels."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track

Pixels = NDArray[np.uint8]
T = TypeVar("T")

MIN_SIDE = 16
"""Pixels. No face can be told from another in a smaller photo."""

MAX_PIXELS = 89_478_485
"""Pillow's own bound for what may be a decompression bomb: a quarter of a GiB as RGB; it warns, here it is refused."""

MAX_BYTES = 2**28
"""Of a photo inside a larger file: an index that is damaged must not ask for all memory."""

Image.init()
# Formats of photos; Pillow would also hand a disguised PostScript file to an interpreter.
_CANDIDATES = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_FORMATS: list[str] = [name for name in _CANDIDATES if name in Image.OPEN]


class Part(NamedTuple):
    """Where in a larger file an image file lies.

    Attributes:
        offset: bytes before it.
        length: bytes of it.
        base64: whether it is written as base64.
    """

    offset: int
    length: int
    base64: bool = False


class Photo(NamedTuple):
    """A photo in a data set.

    Attributes:
        name: unique in the set and the same on every machine, such as the path inside the set: splits depend on it.
        person: who is on it; None if unknown.
        path: the file.
        part: where in the file the photo is, if the file holds many.
    """

    name: str
    person: str | None
    path: Path
    part: Part | None = None


class Hint(NamedTuple):
    """What a data set says of where the face of a photo is.

    Attributes:
        landmarks: five points (x, y) in pixels of the upright photo, in the order of LANDMARKS; no detector is asked.
        box: left, top, right, bottom in the same pixels: the face in it is meant.
    """

    landmarks: list[list[float]] | None = None
    box: tuple[float, float, float, float] | None = None


class Rejected(NamedTuple):
    """A file that is left out, and why."""

    path: Path
    reason: str


class PhotoError(Exception):
    """A photo that cannot be used; the text is the reason, without the file's name."""


PhotoReader = Callable[[Photo], Pixels]
"""Reads a photo as uint8 (S, S, 3) RGB, or raises PhotoError. Workers get a copy: it must be picklable."""


PhotoCheck = Callable[[Image.Image], None]
"""Raises PhotoError for an upright RGB photo that a set's rules exclude. Workers get a copy: it must be picklable."""


def open_photo(photo: Path | Photo, at_least: int | None = None) -> Image.Image:
    """Decode a photo of any mode to 8-bit RGB, upright as its EXIF tag says; of an animation the first frame.

    Transparent parts turn white. 16-bit values are scaled.

    Args:
        photo: the photo, or its file.
        at_least: pixels; a JPEG whose shorter side is several times as long may come at a half, a quarter or an eighth
            of its size, which is faster to decode.

    Raises:
        PhotoError: the file is empty, truncated, of no known format, too small or too large.
    """
    path, part = (photo.path, photo.part) if isinstance(photo, Photo) else (photo, None)
    try:
        if path.stat().st_size == 0 or (part and part.length == 0):
            raise PhotoError("empty file")
        return decode_photo(io.BytesIO(_cut_out(path, part)) if part else path, at_least)
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot be decoded: {error}") from error


def photo_content(photo: Photo) -> bytes:
    """The bytes of a photo's image file.

    Raises:
        PhotoError: it is empty, too large, cut short or cannot be read.
    """
    try:
        if photo.part is not None:
            content = _cut_out(photo.path, photo.part)
        else:
            if photo.path.exists() and not photo.path.is_file():  # a pipe would never end
                raise PhotoError("cannot be read: not a file")
            with photo.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PhotoError(f"cannot be read: {error.strerror or error}") from error  # without the path
    except ValueError as error:
        raise PhotoError(f"cannot be decoded: {error}") from error
    if not content:
        raise PhotoError("empty file")
    if len(content) > MAX_BYTES:
        raise PhotoError(f"more than {MAX_BYTES:,} bytes")
    return content


def decode_photo(file: Path | io.BytesIO, at_least: int | None = None) -> Image.Image:
    """As `open_photo`, of an image file or its bytes."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if min(image.size) < MIN_SIDE:
                raise PhotoError(f"too small: {image.width}x{image.height}, expected {MIN_SIDE} pixels or more a side")
            if image.width * image.height > MAX_PIXELS:
                raise PhotoError(f"too large: {image.width}x{image.height}, expected {MAX_PIXELS:,} pixels or fewer")
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise PhotoError("not an image in a known format") from None
    except PhotoError:
        raise
    except Exception as error:  # broken files make decoders raise whatever they like: SyntaxError, struct.error, ...
        raise PhotoError(f"cannot be decoded: {error}") from error


def _cut_out(path: Path, part: Part) -> bytes:
    """The image file that is a part of another file."""
    if part.length > MAX_BYTES:
        raise PhotoError(f"{part.length:,} bytes, expected {MAX_BYTES:,} or fewer")
    with path.open("rb") as file:
        file.seek(part.offset)
        content = file.read(part.length)
    if len(content) < part.length:
        raise PhotoError(f"cut short: {part.length - len(content)} bytes of it lie behind the end of {path.name}")
    return base64.b64decode(content, validate=True) if part.base64 else content


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PhotoError("pixels are floating-point numbers of unknown range, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class CentreReader:
    """Reads photos as the largest square in their middle, scaled antialiased.

    Attributes:
        size: side of the picture, in pixels.
    """

    size: int

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as uint8 (size, size, 3)."""
        image = open_photo(photo, at_least=2 * self.size)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.LANCZOS, box=square))


def map_photos(function: Callable[[Photo], T], photos: Sequence[Photo]) -> Iterable[T | PhotoError]:
    """Apply a function to photos in threads; yields its results in order, or the PhotoErrors that it raised."""

    def attempt(photo: Photo) -> T | PhotoError:
        try:
            return function(photo)
        except PhotoError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(attempt, photos)


@runtime_checkable
class ManyReader(Protocol):
    """A reader that is faster with many photos at a time."""

    def read_many(self, photos: Sequence[Photo]) -> list[Pixels | PhotoError]:
        """Read photos as a PhotoReader would; in place of one that cannot be read, the error."""


def read_photos(read: PhotoReader, photos: Sequence[Photo]) -> Iterable[Pixels | PhotoError]:
    """Read photos, in order: in threads, or many at a time where the reader does that."""
    if not isinstance(read, ManyReader):
        yield from map_photos(read, photos)
        return
    for start in range(0, len(photos), 256):
        yield from read.read_many(photos[start : start + 256])


def progress(items: Iterable[T], task: str, total: int) -> Iterable[T]:
    """Pass items on under a progress bar, if there are so many that they take more than a moment."""
    return track(items, task, total=total, transient=True, disable=total < 500)
