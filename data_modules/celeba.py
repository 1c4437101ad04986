"""CelebA: 202,599 photos of 10,177 celebrities with 40 attributes.

Liu, Luo, Wang and Tang 2015, "Deep Learning Face Attributes in the Wild".
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.cache import find_unreadable
from data_modules.files import bounded_lines
from data_modules.photos import Hint, Photo, PhotoReader, Rejected
from data_modules.prepare.align import AlignedReader, detecting_reader

PHOTOS, PEOPLE, ATTRIBUTE_COUNT = 202_599, 10_177, 40
MAX_NUMBER = 1e6  # pixels: no landmark and no box lies farther
PARTITION = {"0": "train", "1": "val", "2": "test"}
IDENTITY, ATTRIBUTES = "identity_CelebA.txt", "list_attr_celeba.txt"
EVALUATION, LANDMARKS, BOXES = "list_eval_partition.txt", "list_landmarks_align_celeba.txt", "list_bbox_celeba.txt"

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class CelebADataModule(FaceDataModule):
    """CelebA's aligned photos (`img_align_celeba`, 178x218), in the common aligned frame.

    The published layout: the folder of photos and the lists, all in `root` or in its folders `Img`, `Anno` and `Eval`.
    Needed are the photos and `identity_CelebA.txt`; who is on a photo that it does not name is unknown. The other lists
    are used where they are there: `list_eval_partition.txt` (the official split, in which people do not overlap),
    `list_attr_celeba.txt` (batches then carry `attributes`, in the order of `attribute_names`, and `sex`) and
    `list_landmarks_align_celeba.txt` (without it a detector finds the landmarks, once).

    Args:
        root: the data set's folder.
        official_split: whether people are trained, validated and tested on as CelebA says; else as `val_identities` and
            `test_identities` say.
        cache_dir: where it is kept what was found out about the photos; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: the photos, the identities or, for the official split, the partition are not there.
        ValueError: a list is damaged; names the line.
    """

    licence = (
        "Non-commercial research only, no copy to others, and the photos, from the web, are not property of its makers "
        "(agreement on mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
    )

    def __init__(
        self,
        root: Path,
        official_split: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 128,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.official_split = official_split
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._photo_folder = self._needed("img_align_celeba", "the folder of aligned photos")
        self._needed(IDENTITY, "who is on each photo")
        if official_split:
            self._needed(EVALUATION, "the official split; official_split=false goes without")

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos in the folder, with the person that `identity_CelebA.txt` gives; files of other kinds rejected."""
        entries: list[Photo | Rejected] = []
        for path in sorted(self._photo_folder.iterdir()):
            if path.suffix.lower() not in (".jpg", ".png"):
                entries.append(Rejected(path, "not one of CelebA's photos"))
            else:
                # the lists say .jpg; the lossless copy of the photos has .png
                entries.append(Photo(path.name, self._identity.get(f"{path.stem}.jpg"), path))
        return entries

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns a photo, through CelebA's landmarks or those that a detector finds."""
        if self._find(LANDMARKS) is None:
            return detecting_reader(photos, self.image_size, root=self.root, cache_dir=self.cache_dir)
        points = self._landmarks
        landmarks = {photo.name: points[name] for photo in photos if (name := f"{photo.path.stem}.jpg") in points}
        return AlignedReader(landmarks, self.image_size)

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Photos that cannot be decoded, or that have no landmarks."""
        assert isinstance(read, AlignedReader)
        unreadable = find_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        without = {photo.name: "no landmarks" for photo in photos if photo.name not in read.landmarks}
        return without | dict(read.reasons) | unreadable

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`attributes` (N, 40), -1 absent and 1 present, and `sex`, which is one of them; NaN where not given."""
        if not self.attribute_names:
            return {}
        unknown = np.full(len(self.attribute_names), np.nan, np.float32)
        rows = [self._attributes.get(f"{photo.path.stem}.jpg", unknown) for photo in photos]
        attributes = torch.from_numpy(np.stack(rows))
        return {"attributes": attributes, "sex": attributes[:, self.attribute_names.index("Male")]}

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """The published landmarks, if their list is there."""
        if self._find(LANDMARKS) is None:
            return {}
        points = self._landmarks
        return {
            photo.name: Hint(points[name].tolist()) for photo in photos if (name := f"{photo.path.stem}.jpg") in points
        }

    def partition(self, photos: Sequence[Photo]) -> dict[str, str]:
        """The official split, unless it is not wanted."""
        if not self.official_split:
            return {}
        missing = {photo.person for photo in photos if photo.person is not None} - self._official.keys()
        if missing:
            file = self._needed(EVALUATION, "the official split")
            raise ValueError(f"{file} says nothing of {len(missing)} people, person {min(missing)} among them")
        return self._official

    @cached_property
    def _official(self) -> dict[str, str]:
        file = self._needed(EVALUATION, "the official split")
        use: dict[str, str] = {}
        for number, (name, part) in _rows(file, 2):
            if part not in PARTITION:
                raise ValueError(
                    f"{file}, line {number}: partition {part[:40]!r}, expected 0 (train), 1 (val) or 2 (test)"
                )
            if (person := self._identity.get(name)) is None:
                continue
            if use.setdefault(person, PARTITION[part]) != PARTITION[part]:
                both = f"'{use[person]}' and '{PARTITION[part]}'"
                raise ValueError(f"{file}, line {number}: person {person} is in {both}; expected one of them")
        return use

    def verify(self) -> list[str]:
        """Counts, and what the lists and the folder do not share."""
        there = {path.name for path in self._photo_folder.iterdir()}
        named = self._identity.keys()
        found = []
        if len(there) != PHOTOS:
            found.append(f"{self._photo_folder} holds {len(there):,} files; CelebA has {PHOTOS:,} photos.")
        if len(people := set(self._identity.values())) != PEOPLE:
            found.append(f"{IDENTITY} names {len(people):,} people; CelebA has {PEOPLE:,}.")
        stems = {Path(name).stem for name in there}
        if lost := sorted(name for name in named if Path(name).stem not in stems):
            found.append(f"{len(lost):,} photos of {IDENTITY} are not there, {lost[0]} among them.")
        if strays := sorted(stems - {Path(name).stem for name in named}):
            found.append(f"{len(strays):,} photos are not in {IDENTITY}, {strays[0]} among them.")
        for name in (ATTRIBUTES, EVALUATION, LANDMARKS, BOXES):
            if self._find(name) is None:
                found.append(f"{name} is not there.")
        return found

    @cached_property
    def attribute_names(self) -> list[str]:
        """What the columns of `attributes` are; empty if the list of attributes is not there."""
        file = self._find(ATTRIBUTES)
        if file is None:
            return []
        names = next((line.split() for number, line in bounded_lines(file) if number == 2), [])
        if len(names) != ATTRIBUTE_COUNT or "Male" not in names:
            raise ValueError(
                f"{file}, line 2: {len(names)} names, expected those of CelebA's {ATTRIBUTE_COUNT} attributes, Male "
                "among them; the list is damaged"
            )
        return names

    @cached_property
    def bounding_boxes(self) -> dict[str, NDArray[np.float32]]:
        """x, y, width and height of the face in the photo as it was before CelebA aligned it, by the photo's name."""
        return self._numbers(BOXES, 4)

    @cached_property
    def _identity(self) -> dict[str, str]:
        file = self._needed(IDENTITY, "who is on each photo")
        identity: dict[str, str] = {}
        for number, (name, person) in _rows(file, 2):
            if not _NUMBER.fullmatch(person):
                raise ValueError(
                    f"{file}, line {number}: person {person[:40]!r}, expected a number; the list is damaged"
                )
            identity[name] = person
        return identity

    @cached_property
    def _attributes(self) -> dict[str, NDArray[np.float32]]:
        return self._numbers(ATTRIBUTES, len(self.attribute_names))

    @cached_property
    def _landmarks(self) -> dict[str, NDArray[np.float32]]:
        """Both eyes, nose and mouth corners; left is the viewer's, as for LANDMARKS of the detector."""
        return {name: points.reshape(5, 2) for name, points in self._numbers(LANDMARKS, 10).items()}

    def _numbers(self, name: str, columns: int) -> dict[str, NDArray[np.float32]]:
        """A list with a count, a line of column names, and a line a photo."""
        file = self._needed(name, "the list")
        numbers: dict[str, NDArray[np.float32]] = {}
        for number, (photo, *values) in _rows(file, 1 + columns, skip=2):
            try:
                numbers[photo] = np.array(values, np.float32)
            except ValueError:
                numbers[photo] = np.full(columns, np.nan)
            if not np.all(np.abs(numbers[photo]) < MAX_NUMBER):
                raise ValueError(f"{file}, line {number}: expected {columns} numbers after {photo[:40]!r}")
        return numbers

    def _find(self, name: str) -> Path | None:
        places = (self.root, *(self.root / folder for folder in ("Anno", "Eval", "Img")))
        return next((place / name for place in places if (place / name).exists()), None)

    def _needed(self, name: str, what: str) -> Path:
        path = self._find(name)
        if path is None:
            raise FileNotFoundError(
                f"root: '{self.root}' has no '{name}' ({what}), nor have its folders Anno, Eval and Img. Expected "
                "CelebA as it is published, unpacked"
            )
        return path


def _rows(file: Path, fields: int, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The lines of a list with their numbers, each split into so many fields."""
    for number, line in bounded_lines(file):
        parts = line.split()
        if number <= skip or not parts:
            continue
        if len(parts) != fields:
            raise ValueError(f"{file}, line {number}: {len(parts)} fields, expected {fields}; the list is damaged")
        yield number, parts
