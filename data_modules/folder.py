"""A folder of photos per person: the simplest format, for sets of one's own."""

from pathlib import Path
from typing import Unpack

from data_modules.base import FaceOptions
from data_modules.detected import DetectedFaceDataModule
from data_modules.files import did_you_mean, files_below, has_control_characters, nearest_folder, portable
from data_modules.photos import Photo, Rejected


class FaceFolderDataModule(DetectedFaceDataModule):
    """Photos in a folder per person, `<root>/<person>/<photo>`, of any size, mode and format that Pillow reads.

    Photos may lie deeper inside a person's folder. What cannot be used is left out, with a warning, and listed in
    `rejected` and in the run's `rejected.csv`: files that are truncated, empty, hidden or no images, or lie in no
    person's folder. Folders whose name begins with a dot are passed over.

    Args:
        root: the data set's folder.
        align: whether to find the face in each photo and bring it into the common aligned frame, which photos given to
            the trained model are brought into as well. Without it the largest square in the middle is taken: for
            photos that are aligned already.
        unlabelled: a folder of people who are not known, whose photos only train, with identity -1: its name inside
            `root`, or a path elsewhere. The default may be missing.
        cache_dir: where it is kept what was found out about the photos (landmarks, unreadable files), so that the next
            start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: `root`, or a folder named as `unlabelled`, does not exist.
        ValueError: there are fewer than two people with usable photos.
    """

    licence = "That of the folder's owner"

    def __init__(
        self,
        root: Path,
        align: bool = True,
        unlabelled: str = "unlabelled",
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.align = align
        self.unlabelled = unlabelled
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")

    def list_photos(self) -> list[Photo | Rejected]:
        """The files below the people's folders; hidden files, and those in nobody's folder, are rejected."""
        unlabelled = self._unlabelled_folder()
        entries: list[Photo | Rejected] = []
        people: list[Path] = []
        for entry in sorted(self.root.iterdir()):
            if not entry.is_dir():
                entries.append(Rejected(entry, "not in a person's folder"))
            elif not entry.name.startswith(".") and entry != unlabelled:
                people.append(entry)
        if len(people) < 2:
            raise ValueError(
                f"root: '{self.root}' holds {len(people)} person's folder(s), expected two or more, as in "
                f"{self.root / '<person>' / '<photo>'}.{did_you_mean(_where_people_are(people))}"
            )
        folders = [(folder.name, folder) for folder in people] + ([(None, unlabelled)] if unlabelled else [])
        for person, folder in folders:
            for path in files_below(folder):
                if path.name.startswith("."):
                    entries.append(Rejected(path, "hidden file"))
                elif has_control_characters(str(path.relative_to(folder.parent))):
                    entries.append(Rejected(path, "control characters in its name"))
                else:
                    name = path.relative_to(folder).as_posix()
                    entries.append(
                        Photo(portable(f"{person or 'unlabelled:'}/{name}"), person and portable(person), path)
                    )
        return entries

    def _unlabelled_folder(self) -> Path | None:
        inside = self.root / self.unlabelled
        if inside.is_dir():
            return inside
        if self.unlabelled == "unlabelled":  # nobody asked for it: a folder of this name elsewhere is not meant
            return None
        if (elsewhere := Path(self.unlabelled).expanduser()).is_dir():
            return elsewhere
        raise FileNotFoundError(
            f"unlabelled: there is no folder '{inside}' nor '{self.unlabelled}'.{did_you_mean(nearest_folder(inside))}"
        )


def _where_people_are(people: list[Path]) -> Path | None:
    """The one folder inside `root`, if that is where the people's folders are."""
    if len(people) == 1 and sum(entry.is_dir() for entry in people[0].iterdir()) > 1:
        return people[0]
    return None
