"""Photos that a user gives on the command line: read, aligned, and those that cannot be used told apart."""

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from data_modules.batch import to_float
from data_modules.photos import CentreReader, Photo, PhotoError, Rejected, open_photo
from data_modules.prepare.shards import MANIFEST
from idface.files import write_csv
from idface.pictures import Picture
from idface.recognition.alignment import FACE_TEMPLATE, FIT_POINTS, SURE, FaceDetector, main_face, warp_face

log = logging.getLogger(__name__)

MOST_OFF = 0.08
"""Sides by which an aligned face's landmarks may be off on average: of LFW aligned photos come to 0.05 at most, whole
ones to 0.11 at least."""


class Faces(NamedTuple):
    """Aligned faces, and a name for each that no other has."""

    names: list[str]
    pictures: Picture  # (N, S, S, 3)

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """The faces, float32 (N, 3, S, S) in [-1, 1]."""
        return to_float(torch.from_numpy(self.pictures).movedim(-1, -3)).to(device)


def read_faces(
    path: Path, option: str, size: int, detector: FaceDetector | None, rejected: list[Rejected], out: Path
) -> Faces:
    """The usable faces of a photo, or of all photos in a folder and its own folders.

    Warns of photos of several faces, and where the first of photos that should be aligned is not.

    Args:
        path: the photo or folder.
        option: what the user gave it as, for messages.
        size: side of the aligned pictures in pixels.
        detector: finds the main face of each; None if the photos are aligned: their middle square is taken.
        rejected: where photos that cannot be used are added.
        out: a folder whose files are results of an earlier call, not photos.

    Raises:
        ValueError: none of them can be used, or the folder is a prepared set.
    """
    if (path / MANIFEST).is_file():
        raise ValueError(
            f"{option} {path}: a set that `idface prepare` has written, expected a photo or a folder of photos"
        )
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    made = out.resolve()
    files = [file for file in files if made not in file.resolve().parents]
    names: list[str] = []
    pictures: list[Picture] = []
    own: list[Rejected] = []
    used: list[Path] = []
    several: list[Path] = []
    for file in track(files, f"Reading {option}", transient=True, disable=len(files) < 10):
        name = "-".join((file.relative_to(path) if file != path else Path(file.name)).with_suffix("").parts)
        try:
            picture, faces = _face(file, size, detector)
        except PhotoError as error:
            own.append(Rejected(file, str(error)))
            continue
        pictures.append(picture)
        used.append(file)
        several += [file] * (faces > 1)
        free = (name if number == 1 else f"{name}-{number}" for number in count(1))
        names.append(next(each for each in free if each not in names))
    rejected += own
    if not pictures:
        reasons = "; ".join(f"{file}: {reason}" for file, reason in own[:3]) or "the folder holds no files"
        raise ValueError(f"{option} {path}: no photo in it can be used ({reasons}). Expected photos that show a face")
    if detector is None and _off(pictures[0]) > MOST_OFF:
        log.warning(
            "%s: %s, taken as it is, does not show its face where aligned photos do: leave --no-align out",
            option,
            used[0],
        )
    if several:
        log.warning(
            "%s: %s shows several faces%s: the large one near the middle is taken; cut out another to take it",
            option,
            several[0],
            f", and so do {len(several) - 1} more" * (len(several) > 1),
        )
    return Faces(names, np.stack(pictures))


def warn_of_older(out: Path, folder: Path, written: Sequence[str]) -> None:
    """Say how many pictures of an earlier call lie in a folder of `out` beside those just written, given by name."""
    if older := len({path.name for path in folder.glob("*.png")} - set(written)):
        log.warning("--out %s: %d results of an earlier call are there as well", out, older)


def write_rejected(out: Path, rejected: Sequence[Rejected]) -> None:
    """Make the folder `out`, and in it `rejected.csv` if there is anything to write; an earlier one goes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rejected.csv").unlink(missing_ok=True)
    if rejected:
        write_csv(out / "rejected.csv", ("file", "reason"), rejected)
        log.warning("%d photos cannot be used; see %s", len(rejected), out / "rejected.csv")


def _off(picture: Picture) -> float:
    """How far a face's landmarks lie from where they are in aligned pictures, in sides; 0 where none is found."""
    landmarks = FaceDetector().detect([picture])[0]
    if landmarks is None:
        return 0.0
    return float(np.linalg.norm((landmarks + 0.5) / len(picture) - FACE_TEMPLATE, axis=1)[list(FIT_POINTS)].mean())


def _face(file: Path, size: int, detector: FaceDetector | None) -> tuple[Picture, int]:
    """The aligned main face, and how many faces the photo shows without doubt, as far as that was looked at."""
    if detector is None:
        return CentreReader(size)(Photo(file.name, None, file)), 1
    picture = np.asarray(open_photo(file))
    found = detector.find([picture])[0]
    main = main_face(picture, found)
    if main is None:
        raise PhotoError("no face found in it; --no-align takes a photo that is aligned already as it is")
    try:
        return warp_face(picture, main.landmarks, size), sum(face.probability >= SURE for face in found)
    except ValueError as error:
        raise PhotoError(str(error)) from error
