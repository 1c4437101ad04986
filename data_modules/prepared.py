"""Sets that `idface prepare` has written: aligned faces in Parquet shards, on disk or behind a URL."""

import io
import json
import mmap
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Unpack

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.files import did_you_mean, nearest_folder
from data_modules.photos import MAX_BYTES, MIN_SIDE, Part, Photo, PhotoError, PhotoReader, Pixels, Rejected
from data_modules.prepare.shards import FORMAT, INDEX, MANIFEST, SHARDS, describe
from data_modules.splits import FaceSplit, split_photos

MAX_SIDE = 2048
"""Pixels. `idface prepare` makes no larger pictures."""


class PreparedDataModule(FaceDataModule):
    """A set of faces that `idface prepare` has written, on disk or at any address that fsspec opens.

    On disk the shards are memory-mapped, and a picture is found by its place in the index. Elsewhere (`hf://...`,
    `s3://...`, `https://...`) only the pictures of a batch are fetched, all together: the server must grant ranges.
    Either way a set that fits in `memory_limit` is read once.

    Batches carry `landmarks` and the labels of the set that was prepared. Where nobody is known, photos are split
    instead of people.

    Args:
        root: the folder, or its address.
        official_split: whether people are trained, validated and tested on as the set itself says, if it says so.
        image_size: side of the square images, in pixels, at most what was prepared. A margin around the common aligned
            frame is cut off.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: there is no prepared set, or its preparation was not finished.
        ValueError: the set is of another version, damaged, or (when it is read) smaller than `image_size`.
    """

    licence = "That of the set that was prepared, which its manifest states"

    def __init__(
        self, root: str, official_split: bool = True, image_size: int = 64, **options: Unpack[FaceOptions]
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = str(Path(root).expanduser()) if _is_local(str(root)) else str(root)
        self.official_split = official_split
        self.manifest = _read_manifest(self.root)
        settings = self.manifest["settings"]
        self.picture = Picture(settings["size"], settings["margin"], image_size)
        self.licence = self.manifest["source"]["licence"]  # type: ignore[misc]  # that of the set that was prepared

    def list_photos(self) -> list[Photo | Rejected]:
        """The faces of the index; "path" is their shard's."""
        table, folder = self._index, Path(self.root)
        files = [folder / shard["file"] for shard in self.manifest["shards"]]
        columns = (table[key].to_pylist() for key in ("name", "person", "shard", "offset", "length"))
        return [
            Photo(name, person, files[shard], Part(offset, length))
            for name, person, shard, offset, length in zip(*columns, strict=True)
        ]

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads pictures from the shards."""
        picture = self.picture
        if picture.size > picture.frame + 0.5:  # here, for `idface verify` reads none
            raise ValueError(
                f"image_size is {picture.size}, but '{self.root}' was prepared at {picture.stored} pixels"
                + (f" with a margin of {picture.margin:g}" if picture.margin else "")
                + f": give {picture.frame:.0f} or less, or prepare it again with a larger --size"
            )
        if _is_local(self.root):
            return LocalReader(picture)
        read = RemoteReader(picture, self.root)
        read.read_many(photos[:1])  # whether it can be done at all is better found out with one than with all
        return read

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """None: what could not be used was left out when the set was prepared."""
        return {}

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """The labels of the set that was prepared, and `landmarks`, float32 (N, 5, 2) in pixels of the images."""
        rows = pa.array([self._rows[photo.name] for photo in photos], pa.int64())
        table = self._index.take(rows)
        labels = {}
        for key, length in self.manifest["labels"].items():
            column = table[key].combine_chunks()
            values = column.flatten() if length else column
            numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)  # null becomes NaN
            labels[key] = torch.from_numpy(numbers.reshape(-1, length) if length else numbers)
        points = table["landmarks"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
        labels["landmarks"] = torch.from_numpy(self.picture.points(points.reshape(-1, 5, 2).astype(np.float32)))
        return labels

    @property
    def attribute_names(self) -> list[str]:
        """What the columns of `attributes` are; empty if the set has none."""
        return list(self.manifest["attribute_names"])

    def partition(self, photos: Sequence[Photo]) -> dict[str, str]:
        """The set's own split, if it has one for everybody and it is wanted."""
        if not self.official_split:
            return {}
        people, uses = (self._index[key].to_pylist() for key in ("person", "partition"))
        found = {person: use for person, use in zip(people, uses, strict=True) if person is not None}
        return {} if None in found.values() else found

    def split_photos(self, photos: Sequence[Photo]) -> FaceSplit:
        """By person; or by photo, where nobody is known."""
        if any(photo.person is not None for photo in photos):
            return super().split_photos(photos)
        names = [photo.name.rpartition("/")[2] for photo in photos]  # as UTKFaceDataModule does: the same split
        if (shares := self.val_identities + self.test_identities) >= 1:
            raise ValueError(
                f"val_identities and test_identities are {shares:g} together, expected shares of the photos, below 1 "
                f"together: in '{self.root}' nobody is known"
            )
        return split_photos(names, val_share=self.val_identities, test_share=self.test_identities, seed=self.seed)

    def verify(self) -> list[str]:
        """What differs from the manifest, a sentence each. Reads every byte of a set on disk."""
        if not _is_local(self.root):
            raise ValueError(f"root: only a set on disk can be verified, found '{self.root}'")
        found = []
        described = [(shard["file"], shard) for shard in self.manifest["shards"]]
        for name, expected in [*described, *self.manifest["files"].items()]:
            file = Path(self.root) / name
            if not file.is_file():
                found.append(f"{name} is not there.")
            elif (there := describe(file)) != {key: expected[key] for key in ("bytes", "sha256")}:
                found.append(
                    f"{name} differs: {there['bytes']:,} bytes, expected {expected['bytes']:,} and their SHA-256."
                )
        if not found and self._index.num_rows != self.manifest["counts"]["prepared"]:
            found.append(
                f"{INDEX} names {self._index.num_rows:,} faces, expected {self.manifest['counts']['prepared']:,}."
            )
        return found

    @cached_property
    def _index(self) -> pa.Table:
        address = f"{self.root}/{INDEX}"
        try:
            with fsspec.open(address, "rb") as file:
                table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"root: '{address}' is missing or damaged ({error}): prepare the set again") from error
        if table.num_rows and pa.compute.max(table["shard"]).as_py() >= len(self.manifest["shards"]):
            raise ValueError(f"root: '{address}' names a shard that {MANIFEST} does not: prepare the set again")
        return table

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._index["name"].to_pylist())}


def _is_local(root: str) -> bool:
    return "://" not in root and "::" not in root


def _read_manifest(root: str) -> dict[str, Any]:
    folder = Path(root)
    if _is_local(root):
        if not folder.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{root}'.{did_you_mean(nearest_folder(folder))}")
        if not (folder / MANIFEST).is_file():
            begun = (folder / ".work").is_dir()
            state = "nothing was prepared there; give a folder that `idface prepare` has written"
            if (folder / "faces").is_dir():
                state = (
                    "its faces are a folder of pictures a person. Read them by --data FaceFolderDataModule --data.root "
                    f"{folder / 'faces'} --data.align false"
                )
            if begun:
                state = "its preparation was not finished: give the same command again"
            raise FileNotFoundError(f"root: '{root}' has no {MANIFEST}: {state}")
    try:
        with fsspec.open(f"{root}/{MANIFEST}", "rb") as file:
            content = file.read()
    except OSError as error:
        raise FileNotFoundError(
            f"root: '{root}/{MANIFEST}' cannot be opened: {error or type(error).__name__}"
        ) from error
    except (ImportError, ValueError) as error:  # fsspec names the package that it lacks for this kind of address
        raise ValueError(f"root: '{root}' cannot be opened: {error}") from error
    try:
        manifest: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise ValueError(f"root: '{root}/{MANIFEST}' is damaged ({error}): prepare the set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"root: '{root}/{MANIFEST}' is of format {found}, expected {FORMAT}: prepare the set again")
    try:
        settings, files = manifest["settings"], [shard["file"] for shard in manifest["shards"]]
        whole = (
            MIN_SIDE <= int(settings["size"]) <= MAX_SIDE
            and 0 <= float(settings["margin"]) <= 2
            and all(re.fullmatch(rf"{SHARDS}/\d+\.parquet", file) for file in files)  # nor a path out of the folder
            and {"licence"} <= manifest["source"].keys()
            and {"counts", "labels", "attribute_names", "files"} <= manifest.keys()
        )
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"root: '{root}/{MANIFEST}' is damaged: prepare the set again")
    return manifest


@dataclass(frozen=True)
class Picture:
    """What is stored, and what is wanted of it.

    Attributes:
        stored: side of the stored pictures in pixels.
        margin: what they show around the common aligned frame on each side, in units of the frame's side.
        size: side of the wanted pictures in pixels: the frame alone.
    """

    stored: int
    margin: float
    size: int

    @property
    def frame(self) -> float:
        """Side of the frame in a stored picture."""
        return self.stored / (1 + 2 * self.margin)

    def points(self, stored: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where points (..., 2) of a stored picture lie in the wanted one."""
        points = (stored + 0.5 - self.margin * self.frame) * (self.size / self.frame) - 0.5
        return points.astype(np.float32)

    def decode(self, content: bytes | memoryview) -> Pixels:
        """An image file as the wanted picture, uint8 (size, size, 3)."""
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                if image.size != (self.stored, self.stored) or image.mode != "RGB":
                    found = f"{image.width}x{image.height} {image.mode}"
                    raise PhotoError(f"{found} in the shard, expected {self.stored}x{self.stored} RGB")
                pixels = np.asarray(image)
        except PhotoError:
            raise
        except Exception as error:  # broken files make decoders raise whatever they like
            raise PhotoError(f"cannot be decoded: {error}") from error
        if (self.stored, self.margin) == (self.size, 0):
            return pixels
        scale, shift = self.size / self.frame, self.margin * self.frame
        if not self.margin:
            return cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        low, high = int(np.floor(shift)), int(np.ceil(shift + self.frame))
        box = (shift - low, shift - low, shift - low + self.size / scale, shift - low + self.size / scale)
        cut = Image.fromarray(np.ascontiguousarray(pixels[low:high, low:high]))
        return np.asarray(cut.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box))


@dataclass(frozen=True)
class LocalReader:
    """Reads pictures from shards on disk.

    Attributes:
        picture: what is stored and wanted.
    """

    picture: Picture

    def __call__(self, photo: Photo) -> Pixels:
        """Read a picture as uint8 (size, size, 3).

        Raises:
            PhotoError: it is damaged.
            OSError: its shard cannot be read; without it this is another set.
        """
        assert photo.part is not None
        start, length, _ = photo.part
        try:
            content = _mapped(photo.path)[start : start + length]
        except (OSError, ValueError) as error:
            raise OSError(f"'{photo.path}' cannot be read ({error}): prepare the set again") from error
        return self.picture.decode(content)


@lru_cache(maxsize=64)  # each holds a file open, and there may be few of them
def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True)
class RemoteReader:
    """Fetches pictures from shards behind an address, many at a time.

    Attributes:
        picture: what is stored and wanted.
        root: the set's address.
    """

    picture: Picture
    root: str

    TRIES = 4

    def __call__(self, photo: Photo) -> Pixels:
        """Fetch a picture as uint8 (size, size, 3)."""
        (pixels,) = self.read_many([photo])
        if isinstance(pixels, PhotoError):
            raise pixels
        return pixels

    def read_many(self, photos: Sequence[Photo]) -> list[Pixels | PhotoError]:
        """Fetch pictures all at once; what cannot be fetched is tried again, a little later each time.

        Raises:
            OSError: a picture cannot be fetched at all; without it this is another set.
        """
        results: list[Pixels | PhotoError] = [PhotoError("not fetched")] * len(photos)
        todo = list(range(len(photos)))
        for attempt in range(self.TRIES):
            time.sleep(attempt**2)  # 0, 1, 4, 9 seconds
            for i, content in zip(todo, self._fetch([photos[i] for i in todo]), strict=True):
                results[i] = self._decode(photos[i], content)
            todo = [i for i in todo if isinstance(results[i], _NotFetched)]
            if not todo:
                return results
        photo, error = photos[todo[0]], results[todo[0]]
        raise OSError(f"root: a picture of '{self.root}/{photo.path.parent.name}/{photo.path.name}' {error}")

    def _fetch(self, photos: Sequence[Photo]) -> Iterable[bytes | Exception]:
        parts = [photo.part or Part(0, 0) for photo in photos]
        if any(part.length > MAX_BYTES for part in parts):
            raise ValueError(f"root: the index of '{self.root}' is damaged: a picture of over {MAX_BYTES:,} bytes")
        system, folder = fsspec.url_to_fs(self.root)
        # The shard's folder and name: the rest of the path is the address, which a Path cannot hold.
        shards = [f"{folder}/{photo.path.parent.name}/{photo.path.name}" for photo in photos]
        starts = [part.offset for part in parts]
        ends = [part.offset + part.length for part in parts]
        try:
            fetched: list[bytes | Exception] = system.cat_ranges(shards, starts, ends, on_error="return")
        except OSError as error:
            return [error] * len(photos)
        return fetched

    def _decode(self, photo: Photo, content: bytes | Exception) -> Pixels | PhotoError:
        assert photo.part is not None
        if isinstance(content, Exception):
            return _NotFetched(f"cannot be fetched: {content}")
        if len(content) > photo.part.length:
            raise OSError(
                f"root: the server of '{self.root}' sent {len(content):,} bytes where {photo.part.length:,} were asked "
                "for: it does not grant ranges. Take another server, or copy the set to disk"
            )
        if len(content) < photo.part.length:
            return _NotFetched(f"{len(content):,} bytes were fetched, expected {photo.part.length:,}")
        try:
            return self.picture.decode(content)
        except PhotoError as error:
            return error


class _NotFetched(PhotoError):
    """Perhaps the next time."""
