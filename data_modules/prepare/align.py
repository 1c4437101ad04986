"""Reading photos into the aligned frame."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.cache import Finding, look_at_photos
from data_modules.photos import Photo, PhotoError, Pixels, map_photos, open_photo
from idface.recognition.alignment import FaceDetector, warp_face

NO_FACE = "no face found in it"


@dataclass(frozen=True)
class AlignedReader:
    """Reads photos, aligned through landmarks that are known.

    Attributes:
        landmarks: for each photo's name, (5, 2) pixels of the upright photo, in the order of LANDMARKS.
        size: side of the aligned picture, in pixels.
        reasons: why a photo has no landmarks, by name.
    """

    landmarks: Mapping[str, NDArray[np.float32]]
    size: int
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, photo: Photo) -> Pixels:
        """Read and align a photo as uint8 (size, size, 3)."""
        landmarks = self.landmarks.get(photo.name)
        if landmarks is None:
            raise PhotoError(self.reasons.get(photo.name, NO_FACE))
        try:
            return warp_face(np.asarray(open_photo(photo)), landmarks, self.size)
        except ValueError as error:
            raise PhotoError(str(error)) from error


def detecting_reader(photos: Sequence[Photo], size: int, *, root: Path, cache_dir: Path | None) -> AlignedReader:
    """Find the main face of every photo, and give what reads the photos aligned to it.

    What was found is kept in `cache_dir`, so that the next start is fast.

    Args:
        photos: the photos; those without a face, or that cannot be read, the reader will reject.
        size: side of the aligned picture, in pixels.
        root: the data set's folder.
        cache_dir: where findings are kept; None for the user's cache folder.
    """
    findings = look_at_photos(
        photos,
        face_finder(lambda photo: (np.asarray(open_photo(photo)), (0, 0))),
        kind="mtcnn-2",
        root=root,
        cache_dir=cache_dir,
        task="Looking for faces",
        at_once=16,
    )
    return reader_of(findings, size)


def face_finder(
    cut: Callable[[Photo], tuple[Pixels, tuple[float, float]]],
) -> Callable[[Sequence[Photo]], Iterator[Finding]]:
    """What looks for the main face of photos, for `look_at_photos`.

    Args:
        cut: gives the part of a photo to look in, and the x and y in the photo of its upper left corner; may raise
            PhotoError.
    """
    detector: list[FaceDetector] = []

    def look(chunk: Sequence[Photo]) -> Iterator[Finding]:
        if not detector:  # made late: a start that finds everything in the cache needs none
            detector.append(FaceDetector(device_or_default(None)))
        cuts = list(map_photos(cut, chunk))
        found = iter(detector[0].detect([each[0] for each in cuts if not isinstance(each, PhotoError)]))
        for each in cuts:
            landmarks = None if isinstance(each, PhotoError) else next(found)
            if isinstance(each, PhotoError):
                yield Finding(str(each))
            elif landmarks is None:
                yield Finding(NO_FACE)
            else:
                yield Finding(None, (landmarks + np.array(each[1], np.float32)).tolist())

    return look


def device_or_default(device: str | None) -> str:
    """A device that is there; a GPU, if there is one and none is named.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise ValueError(
            f"device is {device!r}, expected "
            + ("cpu, cuda or cuda:N" if torch.cuda.is_available() else "cpu: PyTorch sees no GPU")
        )
    return device


def reader_of(findings: Mapping[str, Finding], size: int) -> AlignedReader:
    """What reads photos aligned by the landmarks found in them, at a side of `size` pixels."""
    return AlignedReader(
        {name: np.array(finding.landmarks, np.float32) for name, finding in findings.items() if finding.landmarks},
        size,
        {name: finding.reason for name, finding in findings.items() if finding.reason},
    )
