"""What data modules share whose photos are files of their own, in which a detector finds the face."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path

from data_modules.base import FaceDataModule
from data_modules.cache import find_unreadable
from data_modules.photos import CentreReader, Photo, PhotoReader, Rejected
from data_modules.prepare.align import AlignedReader, detecting_reader


class DetectedFaceDataModule(FaceDataModule, ABC):
    """Reads photos aligned by what a detector finds in them, or takes the square in their middle.

    A subclass sets the attributes and lists the photos.

    Attributes:
        root: the data set's folder.
        align: whether to find the face in each photo and bring it into the common aligned frame.
        cache_dir: where findings are kept; None for `idface` in the user's cache folder.
    """

    root: Path
    align: bool
    cache_dir: Path | None

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns photos, or takes the square in their middle."""
        if self.align:
            return detecting_reader(photos, self.image_size, root=self.root, cache_dir=self.cache_dir)
        return CentreReader(self.image_size)

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Photos without a face, or that cannot be decoded; looked for once, then known from the cache."""
        if isinstance(read, AlignedReader):
            return dict(read.reasons)
        return find_unreadable(photos, root=self.root, cache_dir=self.cache_dir)

    def verify(self) -> list[str]:
        """Files that are no photos, and photos that cannot be read. Decodes every photo."""
        listed = self.list_photos()
        photos = [entry for entry in listed if isinstance(entry, Photo)]
        found = [f"{entry.path}: {entry.reason}." for entry in listed if isinstance(entry, Rejected)]
        broken = find_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return found + [f"{photo.path}: {broken[photo.name]}." for photo in photos if photo.name in broken]
