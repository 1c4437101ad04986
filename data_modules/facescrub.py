"""FaceScrub: actors and actresses, as lists of photos on the web and of the faces on them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha1
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.cache import Finding, count_unreadable, look_at_photos
from data_modules.files import did_you_mean, files_below, nearest_folder, portable
from data_modules.photos import (
    MIN_SIDE,
    CentreReader,
    Hint,
    Photo,
    PhotoError,
    PhotoReader,
    Pixels,
    Rejected,
    map_photos,
    open_photo,
)
from data_modules.prepare.align import AlignedReader, face_finder, reader_of

LISTS = {
    "actors": (1.0, ("facescrub_actors.txt", "actors_users_normal_bbox.txt")),
    "actresses": (-1.0, ("facescrub_actresses.txt", "actresses_users_normal_bbox.txt")),
}
"""Sex, as a batch has it, and the list's name as it is published, and as it was in the first edition."""

PUBLISHED_FACES = {"actors": 55_306, "actresses": 51_557}
PUBLISHED_PEOPLE = 265
"""In each of the two lists."""

MAX_LINE = 2**16
"""Bytes of a line in a list; the longest have some hundred."""

MAX_ROWS = 1_000_000
"""Faces that a list names: ten times as many as both lists do."""

MAX_REJECTED = 10_000
"""Lines of a list whose rejection is told one by one; a list that is none must not fill the memory with reasons."""

_WAY = "<Name>/<Name>_<image_id>_<face_id>.jpg"
_COLUMNS = 6
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_BOX = re.compile(r"(-?\d{1,6}),(-?\d{1,6}),(-?\d{1,6}),(-?\d{1,6})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels; the last two are beyond the face."""

_Key = tuple[str, ...]


class _Row(NamedTuple):
    """A line of a list."""

    person: str
    image: str
    face: str
    url: str  # its SHA-1
    box: Box
    sha256: str
    sex: float

    @property
    def name(self) -> str:
        return f"{self.person}/{self.image}_{self.face}"


class _Found(NamedTuple):
    """What the lists and the folder hold together.

    Attributes:
        photos: photos and rejected files.
        rows: the row of each photo's name.
        boxes: the box of each photo's name, of the photos that are not cut out already.
        missing: how many rows have no photo.
    """

    photos: list[Photo | Rejected]
    rows: dict[str, _Row]
    boxes: dict[str, Box]
    missing: int


class FaceScrubDataModule(FaceDataModule):
    """FaceScrub (Ng and Winkler 2014): 106,863 faces of 530 actors and actresses.

    "A data-driven approach to cleaning large face datasets", ICIP 2014. What is published are two lists,
    `facescrub_actors.txt` and `facescrub_actresses.txt`, tab separated: name, image_id, face_id, url, bbox
    "x1,y1,x2,y2", sha256 of the image. The photos are for the user to download; many are gone, so that it is no error
    if a photo of the lists is missing.

    Photos lie anywhere below `root`, with blanks or underscores in `<Name>` and any suffix, as the usual programs leave
    them:

    - `<Name>/<Name>_<image_id>_<face_id>.jpg`, or `images/<Name>/<Name>_<image_id>.jpg` (lightalchemist/FaceScrub, by
      the set's author): full photos, of which the face is cut out by its box;
    - `<Name>/<SHA-1 of the url>.jpg` (faceteam/facescrub and its copies): full photos;
    - `faces/<Name>/<Name>_<image_id>_<face_id>.jpg`, `<Name>/face/<SHA-1 of the url>.jpg` (the same programs),
      `<Name>/<Name>_<face_id>.jpg` (MegaFace's copy): faces that are cut out already.

    Where there are both, the full photo is read: cut out, a face has lost the surroundings that its frame needs. Files
    that the lists do not name are rejected; no name in a list is made into a path. A person is a name in the lists.
    Label: `sex` (-1 actress, 1 actor).

    Args:
        root: the folder of the photos.
        align: whether to find the face in each photo, or within its box, and bring it into the common aligned frame,
            which photos given to the trained model are brought into as well. Without it the largest square in the
            middle is taken, of full photos the square around the box.
        lists: the folder of the lists; None for `root` or the folder above it.
        crops: whether files are faces cut out already; None tells it from where they lie, as above. MegaFace's full
            photos, named `<Name>_<face_id>`, need False.
        margin: how much more than its box is taken of a full photo on each side, as a share of the box's sides.
        checksums: whether to leave out full photos whose SHA-256 is not the published one: on the web another photo
            often takes the place of one that is gone.
        cache_dir: where it is kept what was found out about the photos (checksums, landmarks, unreadable files), so
            that the next start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: `root` or both lists do not exist, or no photo of the lists is below `root`.
        ValueError: `margin` is negative, or there are fewer than two people with usable photos.
    """

    licence = (
        "Not found stated by its makers, others name CC BY-NC-ND 3.0 for the lists: ask them for the terms; "
        "the photos, on the web, belong to their owners"
    )

    def __init__(
        self,
        root: Path,
        align: bool = True,
        lists: Path | None = None,
        crops: bool | None = None,
        margin: float = 0.3,
        checksums: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.align = align
        self.lists = None if lists is None else Path(lists).expanduser()
        self.crops = crops
        self.margin = margin
        self.checksums = checksums
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")
        if not 0 <= margin < 10:
            raise ValueError(f"margin is {margin}, expected a share of the box's sides, 0 or more and below 10")

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos of the lists that are there; damaged lines, and files that the lists do not name, are rejected."""
        found = self._found
        if not self.checksums:
            return list(found.photos)
        differing = self._find_differing(found)
        return [
            Rejected(entry.path, differing[entry.name])
            if isinstance(entry, Photo) and entry.name in differing
            else entry
            for entry in found.photos
        ]

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns faces, or takes the square around their box or in the middle."""
        boxes = self._found.boxes
        if self.align:
            return self._detecting_reader(photos, boxes)
        return _BoxReader(self.image_size, boxes, self.margin)

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Photos without a face, or that cannot be decoded, or whose box lies outside; known from the cache later."""
        if isinstance(read, AlignedReader):
            return dict(read.reasons)
        boxes = self._found.boxes

        def look(chunk: Sequence[Photo]) -> Iterable[Finding]:
            for result in map_photos(lambda photo: _open_box(photo, boxes.get(photo.name), self.margin)[1], chunk):
                yield Finding(str(result) if isinstance(result, PhotoError) else None)

        return {name: finding.reason for name, finding in self._look(photos, look, "box").items() if finding.reason}

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """The boxes of full photos."""
        boxes = self._found.boxes
        return {photo.name: Hint(box=boxes[photo.name]) for photo in photos if photo.name in boxes}

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`sex` of each photo, float32 (N,)."""
        rows = self._found.rows
        return {"sex": torch.tensor([rows[photo.name].sex for photo in photos], dtype=torch.float32)}

    def verify(self) -> list[str]:
        """What is missing or damaged, a sentence each. Reads every photo, and compares full ones with their SHA-256."""
        sentences = []
        listed, damaged = self._read_lists
        for which, (sex, names) in LISTS.items():
            rows = [row for row in listed.values() if row.sex == sex]
            people = len({row.person for row in rows})
            if not rows:
                sentences.append(f"There is no list of the {which}, {names[0]}.")
            elif (len(rows), people) != (PUBLISHED_FACES[which], PUBLISHED_PEOPLE):
                sentences.append(
                    f"The list of the {which} names {len(rows):,} faces of {people:,} people, published: "
                    f"{PUBLISHED_FACES[which]:,} of {PUBLISHED_PEOPLE}."
                )
        if damaged:
            path, reason = damaged[0]
            sentences.append(f"{len(damaged):,} lines of the lists are damaged; the first: {path.name}, {reason}.")
        found = self._found
        if found.missing:
            sentences.append(f"{found.missing:,} of {len(listed):,} faces have no photo below {self.root.name}.")
        strays = [entry for entry in found.photos[: -len(damaged) or None] if isinstance(entry, Rejected)]
        if strays:
            path, reason = strays[0]
            sentences.append(f"{len(strays):,} files are none of the set's; the first: {path.name} ({reason}).")
        if differing := self._find_differing(found):
            name = next(iter(differing))
            sentences.append(
                f"{len(differing):,} of {len(found.boxes):,} full photos differ from the published ones, by their "
                f"SHA-256; the first: {name}."
            )
        photos = [entry for entry in found.photos if isinstance(entry, Photo)]
        sentences += count_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return sentences

    # Lists and files.

    @cached_property
    def _read_lists(self) -> tuple[dict[str, _Row], list[Rejected]]:
        """The rows of both lists by the names of their photos, and the lines that are none."""
        folders = [self.root, self.root.parent] if self.lists is None else [self.lists]
        rows: dict[str, _Row] = {}
        damaged: list[Rejected] = []
        paths: list[Path] = []
        for sex, names in LISTS.values():
            found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
            paths += found[:1]
            for path in found[:1]:
                more = 0
                for number, row in _read_list(path, sex):
                    if isinstance(row, _Row) and row.name not in rows:
                        rows[row.name] = row
                        if len(rows) > MAX_ROWS:
                            raise ValueError(
                                f"lists: '{path}' names more than {MAX_ROWS:,} faces at line {number:,}, expected "
                                f"{sum(PUBLISHED_FACES.values()):,} in both lists: take the published one"
                            )
                    elif len(damaged) < MAX_REJECTED:
                        reason = f"{row.name} a second time" if isinstance(row, _Row) else row
                        damaged.append(Rejected(path, f"line {number:,}: {reason}"))
                    else:
                        more += 1
                if more:
                    damaged.append(Rejected(path, f"and {more:,} more lines"))
        if not paths:
            expected = " and ".join(names[0] for _, names in LISTS.values())
            places = " or ".join(f"'{folder}'" for folder in folders)
            raise FileNotFoundError(
                f"lists: there is no list in {places}, expected {expected}, which the makers of FaceScrub send on "
                "request: put them there, or set lists to their folder"
            )
        return rows, damaged

    @cached_property
    def _found(self) -> _Found:
        rows, damaged = self._read_lists
        wanted: dict[_Key, list[str]] = {}
        for name, row in rows.items():
            for key in _keys(row):
                wanted.setdefault(key, []).append(name)
        full: dict[str, Path] = {}
        cut_out: dict[str, Path] = {}
        strays: list[Photo | Rejected] = []
        lists = {name for _, names in LISTS.values() for name in names}
        for path in files_below(self.root):
            if path.name in lists or path.name == "_bboxes.txt":
                continue
            parts = path.relative_to(self.root).parts
            names = [] if path.name.startswith(".") else wanted.get(_key(parts), [])
            crop = _is_cut_out(parts) if self.crops is None else self.crops
            for name in names:
                (cut_out if crop else full).setdefault(name, path)
            if not names:
                reason = "hidden file" if path.name.startswith(".") else "the lists name no such photo"
                strays.append(Rejected(path, reason))
        photos = [
            Photo(portable(name), portable(row.person), there)
            for name, row in rows.items()
            if (there := full.get(name) or cut_out.get(name))
        ]
        if not photos:
            raise FileNotFoundError(
                f"root: of the {len(rows):,} faces in the lists none was found below '{self.root}', which holds "
                f"{len(strays):,} other files; expected {self.root / _WAY}, say, or another of the layouts that "
                f"{type(self).__name__} names"
            )
        return _Found(
            [*photos, *strays, *damaged],
            {portable(name): row for name, row in rows.items()},
            {portable(name): rows[name].box for name in full},
            len(rows) - len(photos),
        )

    def _find_differing(self, found: _Found) -> dict[str, str]:
        """Why full photos are not the published ones, by name; looked for once, then known from the cache."""
        photos = [entry for entry in found.photos if isinstance(entry, Photo) and entry.name in found.boxes]
        # The name tells what is expected as well: another list is another question.
        asked = {photo.name: f"{photo.path.relative_to(self.root)} {found.rows[photo.name].sha256}" for photo in photos}
        files = {asked[photo.name]: photo._replace(name=asked[photo.name]) for photo in photos}
        findings = look_at_photos(
            list(files.values()),
            lambda chunk: (Finding(None if same else _DIFFERS) for same in map_photos(_has_sha256, chunk)),
            kind="sha256-1",
            root=self.root,
            cache_dir=self.cache_dir,
            task="Comparing checksums",
            at_once=256,
        )
        return {name: reason for name, question in asked.items() if (reason := findings[question].reason)}

    # Pixels.

    def _look(
        self,
        photos: Sequence[Photo],
        look: Callable[[Sequence[Photo]], Iterable[Finding]],
        kind: str,
        at_once: int = 256,
    ) -> dict[str, Finding]:
        """As `look_at_photos`, of what is in the boxes: other boxes or margins are other questions."""
        boxes = self._found.boxes
        asked = {f"{photo.name} {boxes.get(photo.name)} {self.margin:g}": photo for photo in photos}
        found = look_at_photos(
            [photo._replace(name=question) for question, photo in asked.items()],
            lambda chunk: look([asked[photo.name] for photo in chunk]),
            kind=f"{kind}-1",
            root=self.root,
            cache_dir=self.cache_dir,
            task="Looking for faces" if kind == "mtcnn-box" else "Checking photos",
            at_once=at_once,
        )
        return {photo.name: found[question] for question, photo in asked.items()}

    def _detecting_reader(self, photos: Sequence[Photo], boxes: dict[str, Box]) -> AlignedReader:
        """As `detecting_reader`, but looks within the boxes: on a full photo the main face may be another's."""

        def cut(photo: Photo) -> tuple[Pixels, tuple[float, float]]:
            image, box = _open_box(photo, boxes.get(photo.name), self.margin)
            return np.asarray(image.crop(box)), box[:2]

        return reader_of(self._look(photos, face_finder(cut), "mtcnn-box", at_once=16), self.image_size)


_DIFFERS = (
    "its SHA-256 is not the published one: another photo, or changed since; to use it, set checksums to false, or "
    "crops to true if it is a face cut out already"
)


@dataclass(frozen=True)
class _BoxReader:
    """Reads full photos as a square around their box, within the photo, and others as CentreReader does.

    Attributes:
        size: side of the picture, in pixels.
        boxes: the boxes of full photos, by name.
        margin: how much more than the box is taken on each side, as a share of its sides.
    """

    size: int
    boxes: dict[str, Box]
    margin: float

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as uint8 (size, size, 3)."""
        box = self.boxes.get(photo.name)
        if box is None:
            return CentreReader(self.size)(photo)
        image, _ = _open_box(photo, box, self.margin)
        side = min(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * self.margin), *image.size)
        # At the photo's border the square moves inwards.
        left = min(max((box[0] + box[2] - side) / 2, 0), image.width - side)
        top = min(max((box[1] + box[3] - side) / 2, 0), image.height - side)
        square = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.LANCZOS, box=square))


def _open_box(photo: Photo, box: Box | None, margin: float) -> tuple[Image.Image, Box]:
    """A photo, and its box with a margin, as far as it lies inside; without a box, all of it.

    Raises:
        PhotoError: the photo cannot be decoded, or the box lies outside it.
    """
    image = open_photo(photo)
    if box is None:
        return image, (0, 0, *image.size)
    left, top, right, bottom = box
    # A pixel more or less is a matter of rounding; a box beyond it belongs to another photo.
    if left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1:
        raise PhotoError(
            f"its box {left},{top},{right},{bottom} lies outside its {image.width}x{image.height} pixels: not the "
            "photo that was published; if it is a face cut out already, set crops to true"
        )
    if min(right - left, bottom - top) < MIN_SIDE:
        raise PhotoError(f"face too small: {right - left}x{bottom - top}, expected {MIN_SIDE} pixels or more a side")
    across, down = round((right - left) * margin), round((bottom - top) * margin)
    return image, (
        max(left - across, 0),
        max(top - down, 0),
        min(right + across, image.width),
        min(bottom + down, image.height),
    )


def _has_sha256(photo: Photo) -> bool:
    """Whether a file has the checksum with which the photo's name ends."""
    try:
        with photo.path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest() == photo.name.rpartition(" ")[2]
    except OSError:  # decoding will say it
        return True


def _read_list(path: Path, sex: float) -> Iterator[tuple[int, _Row | str]]:
    """The lines of a list with their numbers: a row, or why it is none."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, f"more than {MAX_LINE:,} bytes"
            elif not (number == 1 and line.startswith(b"name\t")):
                try:
                    yield number, _parse_row(line.rstrip(b"\r\n"), sex)
                except ValueError as error:
                    yield number, str(error)


def _parse_row(line: bytes, sex: float) -> _Row:
    fields = line.split(b"\t")
    if len(fields) != _COLUMNS:
        raise ValueError(f"{len(fields):,} columns, expected {_COLUMNS}")
    person, image, face, _, box, digest = (field.decode("utf-8", "replace").strip() for field in fields)
    if not person.isprintable() or not 0 < len(person) <= 100 or "/" in person or "\\" in person or "\ufffd" in person:
        raise ValueError(f"{_quote(person)} where a name was expected")
    for value in (image, face):
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"{_quote(value)} where the number of an image or a face was expected")
    match = _BOX.fullmatch(box)
    if match is None:
        raise ValueError(f"{_quote(box)} where a box x1,y1,x2,y2 was expected")
    left, top, right, bottom = map(int, match.groups())
    if left >= right or top >= bottom:
        raise ValueError(f"the box {box} is empty")
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"{_quote(digest)} where a SHA-256 was expected")
    url = sha1(fields[3], usedforsecurity=False).hexdigest()
    return _Row(person, str(int(image)), str(int(face)), url, (left, top, right, bottom), digest.lower(), sex)


def _quote(value: str) -> str:
    return ascii(value[:40]) + ("..." if len(value) > 40 else "")


# How a file is found: by keys that a row and a file's place have in common.


def _folded(name: str) -> str:
    """The same for a name with blanks or underscores, in capitals or not."""
    return portable(name).replace(" ", "_").casefold()


def _keys(row: _Row) -> Iterator[_Key]:
    person = _folded(row.person)
    yield ("both", person, row.image, row.face)
    yield ("image", person, row.image)
    yield ("face", person, row.face)
    yield ("url", person, row.url)


def _key(parts: tuple[str, ...]) -> _Key:
    """The key of a file by its path inside `root`."""
    *folders, file = parts
    below = folders[:-1] if folders and folders[-1].lower() in _CUT_OUT else folders
    person = _folded(below[-1]) if below else ""
    stem = _folded(file.rpartition(".")[0] or file)
    if _SHA1.fullmatch(stem):
        return ("url", person, stem)
    numbers = stem.removeprefix(f"{person}_").split("_")
    if not stem.startswith(f"{person}_") or not all(_NUMBER.fullmatch(number) for number in numbers):
        return ()
    if len(numbers) == 2:
        return ("both", person, *(str(int(number)) for number in numbers))
    if len(numbers) == 1:
        return ("image" if _in_images(parts) else "face", person, str(int(numbers[0])))
    return ()


_CUT_OUT = ("face", "faces")


def _in_images(parts: tuple[str, ...]) -> bool:
    return any(part.lower() == "images" for part in parts[:-1])


def _is_cut_out(parts: tuple[str, ...]) -> bool:
    """Whether a file is a face cut out of its photo, by its path inside `root`."""
    return any(part.lower() in _CUT_OUT for part in parts[:-1]) or _key(parts)[:1] == ("face",)
