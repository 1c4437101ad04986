"""Several sets as one: photos of a set and, to train on beside them, those of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Unpack

import numpy as np
from torch import Tensor

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.people import plain_name
from data_modules.photos import Photo, PhotoReader, Pixels, Rejected
from data_modules.splits import FaceSplit, Rows


class JoinedDataModule(FaceDataModule):
    """The photos of a set, split as it is split alone, and to train on beside them the photos of others.

    Somebody of one name in two sets, however it is written, is one person. Photos in the other sets of people whom the
    first one validates or tests on are not used; nobody is validated or tested on who is in another set alone. Labels
    beside the person are not carried.

    Args:
        sets: the first, and those that only train; of each its photos, and of the first its split: their own batch
            sizes, transforms and samplers have no effect.
        image_size: side of the square images, in pixels, of all sets.
        options: what every FaceDataModule takes, but for the numbers of people and photos to hold out: those are the
            first set's.

    Raises:
        ValueError: there is no set, one has another `image_size`, or an option is the first set's.
    """

    licence = "Those of the sets that were joined"

    def __init__(self, sets: list[FaceDataModule], image_size: int = 64, **options: Unpack[FaceOptions]) -> None:
        super().__init__(image_size=image_size, **options)
        usual = signature(FaceDataModule).parameters  # a parser may hand over what nobody has given
        own = options.keys() & {"val_identities", "test_identities", "held_out_photos"}
        if given := [name for name in sorted(own) if dict(options)[name] != usual[name].default]:
            raise ValueError(f"{given[0]} has no effect here: who is held out is said by the first of the sets")
        if not sets:
            raise ValueError("sets is empty: give a set, and others to train on beside it")
        for number, data in enumerate(sets):
            if data.image_size != image_size:
                raise ValueError(f"image_size is {image_size}, but that of sets[{number}] is {data.image_size}")
        self.sets = sets

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos of all sets, whose names begin with the number of their set."""
        entries: list[Photo | Rejected] = []
        held_out: set[str] = set()
        written: dict[str, str] = {}  # as in the set where somebody is first
        for number, data in enumerate(self.sets):
            photos, rejected = data.wanted_photos()
            if number == 0:
                split = data.split_photos(photos)
                held_out = set(split.identity_names[split.num_train :])
            for photo in photos:
                person = photo.person and written.setdefault(plain_name(photo.person), photo.person)
                if number > 0 and person in held_out:
                    entries.append(Rejected(photo.path, f"the first set validates or tests on {person}"))
                else:
                    person = photo.person if number == 0 else person
                    entries.append(photo._replace(name=f"{number}/{photo.name}", person=person))
            entries += rejected
        return entries

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads each photo as its set does."""
        return JoinedReader([data.reader(mine) for data, mine in zip(self.sets, self._apart(photos), strict=True)])

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """What each set finds."""
        assert isinstance(read, JoinedReader)
        parts = zip(self.sets, self._apart(photos), read.readers, strict=True)
        return {
            f"{number}/{name}": reason
            for number, (data, mine, own) in enumerate(parts)
            for name, reason in data.find_unusable(mine, own).items()
        }

    def _apart(self, photos: Sequence[Photo]) -> list[list[Photo]]:
        """The photos of each set, by their own names."""
        parts: list[list[Photo]] = [[] for _ in self.sets]
        for photo in photos:
            number, name = own_name(photo)
            parts[number].append(photo._replace(name=name))
        return parts

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """None."""
        return {}

    def split_photos(self, photos: Sequence[Photo]) -> FaceSplit:
        """The first set's split, with the others' photos in training."""
        first = np.array([row for row, photo in enumerate(photos) if own_name(photo)[0] == 0], np.int64)
        split = self.sets[0].split_photos([photos[row]._replace(name=own_name(photos[row])[1]) for row in first])
        known = set(split.identity_names)
        others = [row for row, photo in enumerate(photos) if own_name(photo)[0] > 0]
        new = sorted(
            {str(person) for row in others if (person := photos[row].person) is not None and person not in known}
        )
        names = [*split.identity_names[: split.num_train], *new, *split.identity_names[split.num_train :]]
        number = {name: place for place, name in enumerate(names)}
        held_out = set(split.identity_names[split.num_train :])

        identity = np.full(len(photos), -1, np.int64)
        for row, photo in enumerate(photos):
            identity[row] = number.get(str(photo.person), -1) if photo.person is not None else -1
        more = [row for row in others if photos[row].person not in held_out]

        def rows(mine: Rows) -> Rows:
            return first[mine]

        return FaceSplit(
            identity_names=names,
            num_train=split.num_train + len(new),
            identity=identity,
            train=np.array(sorted([*rows(split.train).tolist(), *more]), np.int64),
            known={use: rows(mine) for use, mine in split.known.items()},
            unseen={use: rows(mine) for use, mine in split.unseen.items()},
            gallery=rows(split.gallery),
        )


@dataclass(frozen=True)
class JoinedReader:
    """Reads photos of several sets.

    Attributes:
        readers: of each set.
    """

    readers: list[PhotoReader]

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as its set does."""
        number, name = own_name(photo)
        return self.readers[number](photo._replace(name=name))


def own_name(photo: Photo) -> tuple[int, str]:
    """The number of a photo's set, and what the set calls it."""
    number, _, name = photo.name.partition("/")
    return int(number), name
