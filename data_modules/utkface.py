"""UTKFace: faces of all ages, with sex and age in their names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from data_modules.base import LoadingOptions
from data_modules.cache import count_unreadable
from data_modules.detected import DetectedFaceDataModule
from data_modules.files import did_you_mean, files_below, nearest_folder, portable
from data_modules.photos import Photo, Rejected
from data_modules.splits import FaceSplit, split_photos

PUBLISHED_PHOTOS = 23_708
"""Of the aligned and cropped faces."""

MAX_AGE = 116
"""Years; the oldest in the set."""

# Age, sex, race, date. As published, three names lack the race, and some of the full photos' the sex; some have a blank
# or no point before "jpg". What follows the age and the sex does not matter to the labels, but tells it is the set's.
_NAME = re.compile(r"(\d{1,3})_(?:(\d+)?_)(?:\d?_)?\d{8,18} ?\.?\w{2,4}(\.chip)?(\.jpg)?", re.ASCII)


class UTKFaceDataModule(DetectedFaceDataModule):
    """UTKFace (Zhang, Song and Qi 2017): 23,708 aligned and cropped faces, from 1 to 116 years old.

    "Age progression/regression by conditional adversarial autoencoder", CVPR 2017. Photos lie anywhere below `root`,
    as `<age>_<sex: 0 male, 1 female>_<race>_<date>.jpg.chip.jpg`; some names lack a field, which is how the set is.
    Labels: `sex` (-1 female, 1 male; NaN where the name tells none) and `age` (years). Names that tell no age are
    rejected.

    It is not known who is on a photo: every `identity` is -1, `num_identities` is 0, a training partner is the photo
    itself, and the evaluation sets "known" and "gallery" are empty. The split is by photo. "unseen" holds photos that
    are not trained on, though their people may be: no figure about identities can be had of this set. There each photo
    is paired with others as if everybody came once. A photo's use is a function of its file's name, the seed and the
    shares alone, so that copies in two folders are used alike, and a photo that joins the set moves no other.

    Args:
        root: the data set's folder.
        align: whether to find the face in each photo and bring it into the common aligned frame, which photos given to
            the trained model are brought into as well. Without it the photos stay as their makers aligned them.
        val_share: of the photos, between 0 and 1, to validate on.
        test_share: of the photos, likewise, to test on.
        cache_dir: where it is kept what was found out about the photos (landmarks, unreadable files), so that the next
            start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        attributes_per_query: partners for each photo in the evaluation set "unseen".
        options: what every FaceDataModule takes, without what splits by person.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: the shares leave nothing to train on, or there are fewer than two usable photos.
    """

    licence = (
        "Non-commercial research only; the photos, from the web, belong to their owners (github.com/aicip/UTKFace)"
    )

    def __init__(
        self,
        root: Path,
        align: bool = True,
        val_share: float = 0.1,
        test_share: float = 0.1,
        cache_dir: Path | None = None,
        image_size: int = 64,
        attributes_per_query: int = 1,
        **options: Unpack[LoadingOptions],
    ) -> None:
        super().__init__(
            image_size=image_size,
            val_identities=0,
            test_identities=0,
            held_out_photos=0,
            attributes_per_query=attributes_per_query,
            **options,
        )
        self.root = Path(root).expanduser()
        self.align = align
        self.val_share = val_share
        self.test_share = test_share
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")
        if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
            raise ValueError(
                f"val_share and test_share must be 0 or more and together below 1, found {val_share} and {test_share}"
            )

    def list_photos(self) -> list[Photo | Rejected]:
        """The files below the folder; those whose names tell no age are rejected."""
        entries: list[Photo | Rejected] = []
        for path in files_below(self.root):
            labels = _parse(path.name)
            if isinstance(labels, str):
                entries.append(Rejected(path, labels))
            else:
                entries.append(Photo(portable(path.relative_to(self.root).as_posix()), None, path))
        return entries

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`sex` and `age` of each photo, float32 (N,)."""
        parsed = [labels for photo in photos if not isinstance(labels := _parse(photo.path.name), str)]
        return {
            "sex": torch.tensor([sex for _, sex in parsed], dtype=torch.float32),
            "age": torch.tensor([age for age, _ in parsed], dtype=torch.float32),
        }

    def verify(self) -> list[str]:
        """What is missing or damaged, a sentence each. Decodes every photo."""
        listed = self.list_photos()
        photos = [entry for entry in listed if isinstance(entry, Photo)]
        strays = [entry for entry in listed if isinstance(entry, Rejected)]
        found: list[str] = []
        if len(photos) != PUBLISHED_PHOTOS:
            found.append(f"There are {len(photos):,} photos, published: {PUBLISHED_PHOTOS:,}.")
        if strays:
            path, reason = strays[0]
            found.append(f"{len(strays):,} files are none of the set's; the first: {path.name} ({reason}).")
        found += count_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return found

    def split_photos(self, photos: Sequence[Photo]) -> FaceSplit:
        """By photo, for here nobody is known."""
        if len(photos) < 2:
            raise ValueError(
                f"root: '{self.root}' holds {len(photos)} usable photos, expected two or more, named as "
                "25_0_2_20170116174525125.jpg.chip.jpg is"
            )
        names = [portable(photo.path.name) for photo in photos]
        return split_photos(names, val_share=self.val_share, test_share=self.test_share, seed=self.seed)


def _parse(name: str) -> tuple[float, float] | str:
    """Age in years and sex (-1 female, 1 male, NaN unknown) that a file's name tells, or why it tells no age."""
    match = _NAME.fullmatch(name)
    if match is None:
        return "not named <age>_<sex>_<race>_<date>.jpg.chip.jpg"
    age, sex = int(match[1]), match[2]
    if age > MAX_AGE:
        return f"age {age} in its name, expected {MAX_AGE} or less"
    if sex not in ("0", "1", None):
        return f"sex {sex} in its name, expected 0 for male or 1 for female"
    return float(age), {"0": 1.0, "1": -1.0}.get(sex or "", float("nan"))
