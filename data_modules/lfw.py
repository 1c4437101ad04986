"""Labeled Faces in the Wild: 13,233 photos of 5,749 people (Huang et al. 2007, UMass Amherst TR 07-49)."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from data_modules.base import FaceOptions
from data_modules.cache import count_unreadable
from data_modules.detected import DetectedFaceDataModule
from data_modules.files import bounded_lines, did_you_mean, files_below, nearest_folder, person_problem
from data_modules.photos import Photo, Rejected

PHOTOS, PEOPLE = 13_233, 5_749
FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")
"""Of photos, in `root`: the four archives unpack to these."""
NAME_LISTS = {"female_names.txt": -1.0, "male_names.txt": 1.0}

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)

Pair = tuple[tuple[str, int], tuple[str, int]]
"""Two photos, each by the person's name and the photo's number."""


class LFWDataModule(DetectedFaceDataModule):
    """LFW in its published layout, `<root>/lfw-deepfunneled/<Name>/<Name>_0001.jpg`, also `lfw` or `lfw_funneled`.

    Beside the photos may lie `pairs.txt`, the ten folds that recognisers are verified on (`pairs`), and
    `male_names.txt` and `female_names.txt` (Afifi and Abdelhamed 2019); with those batches carry `sex`.

    The split is by person, as `val_identities` and `test_identities` say. It has nothing to do with the ten folds: who
    trains on LFW cannot report on them.

    Args:
        root: the folder that holds the folder of photos, or that folder itself.
        align: whether to find the face in each photo and bring it into the common aligned frame. Without it the largest
            square in the middle is taken.
        cache_dir: where it is kept what was found out about the photos; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: there is no folder of photos.
        ValueError: there are fewer than two people with usable photos, or a list is damaged.
    """

    licence = "Not stated by its makers (vis-www.cs.umass.edu/lfw); the photos were collected from news on the web"

    def __init__(
        self,
        root: Path,
        align: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.align = align
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")
        self._photo_folder = next((self.root / name for name in FOLDERS if (self.root / name).is_dir()), self.root)
        if not any(self._photo_folder.glob("*/*_[0-9][0-9][0-9][0-9].jpg")):
            raise FileNotFoundError(
                f"root: '{self.root}' holds no photos of LFW. Expected {' or '.join(FOLDERS)} in it, unpacked, as in "
                f"{FOLDERS[0]}/Aaron_Eckhart/Aaron_Eckhart_0001.jpg"
            )

    def list_photos(self) -> list[Photo | Rejected]:
        """Photos whose names are their people's; other files of the photos' folder are rejected."""
        entries: list[Photo | Rejected] = []
        for path in files_below(self._photo_folder):
            person = path.parent.name
            number = path.stem.removeprefix(f"{person}_")
            if path.parent.parent == self._photo_folder and path.suffix == ".jpg" and _NUMBER.fullmatch(number):
                problem = person_problem(person)
                entries.append(Rejected(path, problem) if problem else Photo(f"{person}/{path.name}", person, path))
            elif self._photo_folder != self.root or path.parent != self.root:  # there the lists lie beside the people
                entries.append(Rejected(path, "not named <Name>/<Name>_<number>.jpg"))
        return entries

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`sex` of each photo, float32 (N,), if a list of names is there; NaN for who is in none."""
        if not self._sex:
            return {}
        return {"sex": torch.tensor([self._sex.get(photo.path.name, float("nan")) for photo in photos])}

    @property
    def pairs(self) -> tuple[list[Pair], np.ndarray]:
        """The pairs of `pairs.txt`, and (P,) int64 which fold each belongs to."""
        return read_pairs(self.root / "pairs.txt")

    def verify(self) -> list[str]:
        """What is missing or damaged, a sentence each."""
        photos = [entry for entry in self.list_photos() if isinstance(entry, Photo)]
        found: list[str] = []
        people = Counter(photo.person for photo in photos)
        if len(photos) != PHOTOS or len(people) != PEOPLE:
            found.append(
                f"There are {len(photos):,} photos of {len(people):,} people, published: {PHOTOS:,} of {PEOPLE:,}."
            )
        names = {photo.name for photo in photos}
        if (self.root / "pairs.txt").is_file():
            wanted = {f"{name}/{name}_{number:04d}.jpg" for pair in self.pairs[0] for name, number in pair}
            if lost := sorted(wanted - names):
                found.append(f"{len(lost):,} photos of pairs.txt are not there, {lost[0]} among them.")
        else:
            found.append("pairs.txt is not there.")
        if self._sex and (unlisted := sum(photo.path.name not in self._sex for photo in photos)):
            found.append(f"{unlisted:,} photos are in neither list of names.")
        found += count_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return found

    @cached_property
    def _sex(self) -> dict[str, float]:
        return {
            name.strip(): sex
            for file, sex in NAME_LISTS.items()
            if (self.root / file).is_file()
            for _, name in bounded_lines(self.root / file)
            if name.strip()
        }


def read_pairs(file: Path) -> tuple[list[Pair], np.ndarray]:
    """Read LFW's `pairs.txt`: folds of as many same-person as different-person pairs.

    Returns:
        The pairs, and (P,) int64 which fold each belongs to.

    Raises:
        ValueError: a line is neither a same-person nor a different-person pair, or their number is not the announced
            one.
    """
    announced: tuple[int, int] | None = None
    pairs: list[Pair] = []
    for number, line in bounded_lines(file):
        match [int(field) if _NUMBER.fullmatch(field) else field for field in line.split()]:
            case []:
                pass
            case [int(folds), int(each)] if announced is None:
                announced = folds, each
            case [str(person), int(a), int(b)] if announced is not None:
                pairs.append(((person, a), (person, b)))
            case [str(person), int(a), str(other), int(b)] if announced is not None:
                pairs.append(((person, a), (other, b)))
            case _:
                expected = "'name number number' or 'name number name number'" if announced else "'folds pairs'"
                raise ValueError(f"{file}, line {number}: expected {expected}, found {line[:80]!r}")
    folds, each = announced or (0, 0)
    if not pairs or len(pairs) != 2 * folds * each:
        raise ValueError(f"{file} announces {folds} folds of twice {each} pairs but holds {len(pairs)} pairs")
    return pairs, np.repeat(np.arange(folds), 2 * each)
