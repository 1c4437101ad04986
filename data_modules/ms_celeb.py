"""MS-Celeb-1M: millions of photos inside a few large files."""

import json
import logging
import math
import os
import re
import struct
import zipfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.cache import Finding, count_unreadable, default_cache_dir, find_unreadable, look_at_photos
from data_modules.files import (
    MAX_LINE,
    MAX_NAME,
    did_you_mean,
    files_below,
    has_control_characters,
    nearest_folder,
)
from data_modules.photos import (
    CentreReader,
    Hint,
    Part,
    Photo,
    PhotoCheck,
    PhotoError,
    PhotoReader,
    Pixels,
    Rejected,
    map_photos,
    open_photo,
    progress,
)
from data_modules.prepare.align import AlignedReader, detecting_reader, warp_face

log = logging.getLogger(__name__)

PUBLISHED_LINES, PUBLISHED_PEOPLE = 8_456_240, 99_892
"""Of the aligned and of the cropped faces alike, as their download pages say."""

NAME_LIST = "Top1M_MidList.Name.tsv"
"""A name a line in one of many languages: `m.010002<tab>"Name"@en`."""

INSIGHTFACE_SETS = {85_164: 3_804_846, 85_742: 5_822_653, 93_431: 5_179_510}
"""People -> photos of the refined sets: MS1M-IBUG (faces_ms1m), MS1M-ArcFace (faces_emore) and MS1M-RetinaFace."""

INSIGHTFACE_SIDE = 112
INSIGHTFACE_LANDMARKS: NDArray[np.float32] = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
"""(5, 2) pixels, in the order of LANDMARKS: where insightface's alignment puts every face, in a square of that side."""

MAX_BYTES = 2**24
"""Of a line and of a record. The set's take some ten kilobytes; an absurd one must not ask for all memory."""

MAX_PHOTOS = 2**24
"""Of a file: twice as many as were published. What is known of them takes some gigabytes."""

MAX_REJECTED = 10_000
"""Reasons that are kept of a file; what is rejected beyond is counted."""

MAX_NAMES = 1_000
"""Of a person, in all languages."""

MAX_JOINED = 1_000
"""Photos in several pieces that are put together in the cache. By chance there is one in 16 GiB."""

_COLUMNS = 7
_MID = re.compile(rb"[mg]\.[0-9a-z_]{1,32}")
_RANK = re.compile(rb"[0-9]{1,9}")
_NAME = re.compile(rb'([mg]\.[0-9a-z_]{1,32})\t"(.*)"@([A-Za-z-]+)')
_FACE = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

_MAGIC = 0xCED7230A
_HEAD = struct.Struct("<II")  # magic number; 3 bits for the place in a record of several pieces, 29 for the length
_IMAGE_HEADER = struct.Struct("<IfQQ")  # number of labels that follow, or 0; the label, if none follow; two ids


class MSCelebDataModule(FaceDataModule):
    """MS-Celeb-1M (Guo et al. 2016) as it was published, or in the RecordIO form in which most people hold it.

    Y. Guo, L. Zhang, Y. Hu, X. He and J. Gao, "MS-Celeb-1M: A dataset and benchmark for large-scale face recognition",
    ECCV 2016. Microsoft has withdrawn the set; copies are still about.

    As published, `*.tsv`: the aligned or the cropped faces, a photo a line in 7 columns: Freebase MID, rank in the
    image search, URL of the image, URL of its page, face id, face rectangle and face data, the last two in base64. A
    person is a MID; what people are called is read from `Top1M_MidList.Name.tsv`, if it is there, for `exclude` and
    `idface people`. Not read: the thumbnails, the development and the low-shot sets, whose columns are others.

    In the RecordIO form, `*.rec`: insightface's refined sets, such as `faces_ms1m`, `faces_emore` and
    `ms1m-retinaface`, read without MXNet. A person is a number. The index of identities that these sets append is known
    by its records, which hold no image. The `.idx`, `.lst` and `property` beside the `.rec` are not needed: `verify`
    compares them with it.

    Nothing is held in memory but where each photo lies: about 400 bytes a photo. The files are gone through once, and
    what was found is kept. What cannot be used is left out, with a warning, and listed in `rejected` and in the run's
    `rejected.csv`, with the number of its line or record: lines and records that are malformed, too long or cut short,
    photos that cannot be decoded, second copies of a photo.

    Args:
        root: a folder with `.tsv` files of either the aligned or the cropped faces, or with one `.rec`, at any depth;
            or a single such file.
        align: whether to bring each face into the common aligned frame, which photos given to the trained model are
            brought into as well. Without it the largest square in the middle is taken.
        trust_alignment: whether, to align photos of a `.rec`, to take it that the landmarks lie where insightface has
            put them, which saves looking for millions of faces. Those photos are cut close: the lowest ninth of the
            aligned frame repeats their border. Of no effect on a `.tsv`.
        cache_dir: where it is kept what was found out about the photos (places, landmarks, unreadable ones), so that
            the next start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: `root` does not exist, or holds neither a `.tsv` nor a `.rec` file.
        ValueError: `root` holds both, or several `.rec` files; there are fewer than two people with usable photos.
    """

    licence = (
        "Non-commercial research only (MSR Data License Agreement, msceleb.org); "
        "withdrawn by Microsoft in 2019, so that nobody grants it any more"
    )

    def __init__(
        self,
        root: Path,
        align: bool = True,
        trust_alignment: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.align = align
        self.trust_alignment = trust_alignment
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.exists():
            raise FileNotFoundError(
                f"root: there is no folder or file '{self.root}'.{did_you_mean(nearest_folder(self.root))}"
            )

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos of all lines or records; those that are malformed, or come a second time, are rejected."""
        entries: list[Photo | Rejected] = []
        people: dict[str, str] = {}  # one string a person, not one a photo
        names: set[str] = set()
        for path in self._sources():
            index = _read_index(path, self.cache_dir)
            twice = _Reasons("photos that are in the set already")
            joined = 0
            if index.records == 0:
                entries.append(Rejected(path, "empty file"))
            rows = zip(index.names, index.offset.tolist(), index.length.tolist(), index.joined.tolist(), strict=True)
            for name, offset, length, in_pieces in rows:
                if name in names:
                    twice.add(f"{name} at byte {offset:,}: is in the set already")
                    continue
                names.add(name)
                person = name.partition("/")[0]
                person = people.setdefault(person, person)
                if not in_pieces:
                    entries.append(Photo(name, person, path, Part(offset, length, index.base64)))
                    continue
                joined += 1
                whole = self._put_together(path, offset, length) if joined <= MAX_JOINED else "too many are"
                if isinstance(whole, Path):
                    entries.append(Photo(name, person, whole))
                else:
                    entries.append(Rejected(path, f"{name}: is written in pieces: {whole}"))
            entries += [Rejected(path, reason) for reason in (*index.rejected, *twice.all())]
        return entries

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns photos, or takes the square in their middle."""
        if not self.align:
            return _NamingReader(CentreReader(self.image_size))
        if self.trust_alignment and self._sources()[0].suffix.lower() == ".rec":
            return _NamingReader(_InsightFaceReader(self.image_size))
        return _NamingReader(detecting_reader(photos, self.image_size, root=self.root, cache_dir=self.cache_dir))

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Photos without a face, or that cannot be decoded; looked for once, then known from the cache."""
        inner = read.read if isinstance(read, _NamingReader) else read
        if isinstance(inner, AlignedReader):
            reasons = dict(inner.reasons)
        elif isinstance(inner, _InsightFaceReader):
            reasons = self._find_other_sizes(photos, inner)
        else:
            reasons = find_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return {photo.name: f"{_place(photo)}: {reasons[photo.name]}" for photo in photos if photo.name in reasons}

    def people_called(self, people: Collection[str]) -> dict[str, list[str]]:
        """The names of MIDs in all languages, the English ones first; nothing where the list of names is not there."""
        folder = self.root if self.root.is_dir() else self.root.parent
        wanted = {person.encode() for person in people}
        names: dict[str, list[str]] = {}
        for path in files_below(folder):
            if path.name == NAME_LIST:
                with path.open("rb") as lines:
                    while line := lines.readline(MAX_LINE):  # of a longer line the pieces, which are no names
                        if not (match := _NAME.match(line)) or match[1] not in wanted:
                            continue
                        called = names.setdefault(match[1].decode(), [])
                        name = match[2].decode("utf-8", "replace")
                        if len(called) < MAX_NAMES and len(name) <= MAX_NAME and not has_control_characters(name):
                            called.insert(0 if match[3] == b"en" else len(called), name)
        return names

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """Where the landmarks lie in a RecordIO set, all of whose photos insightface has aligned."""
        if not self.trust_alignment or self._sources()[0].suffix.lower() != ".rec":
            return {}
        return dict.fromkeys((photo.name for photo in photos), Hint(INSIGHTFACE_LANDMARKS.tolist()))

    def check(self) -> PhotoCheck | None:
        """Refuses photos of another size where their alignment is trusted."""
        return _check_aligned if self.trust_alignment and self._sources()[0].suffix.lower() == ".rec" else None

    def verify(self) -> list[str]:
        """What is missing or damaged, a sentence each. Decodes every photo."""
        listed = self.list_photos()
        photos = [entry for entry in listed if isinstance(entry, Photo)]
        rejected = [entry for entry in listed if isinstance(entry, Rejected)]
        people = len({photo.person for photo in photos})
        source = self._sources()[0]
        if source.suffix.lower() == ".rec":
            found = _compare_with_neighbours(source, _read_index(source, self.cache_dir), len(photos), people)
        elif (len(photos), people) != (PUBLISHED_LINES, PUBLISHED_PEOPLE):
            found = [
                f"There are {len(photos):,} photos of {people:,} people, published: {PUBLISHED_LINES:,} of "
                f"{PUBLISHED_PEOPLE:,}."
            ]
        else:
            found = []
        if rejected:
            path, reason = rejected[0]
            found.append(f"{len(rejected):,} lines, records or files are damaged; the first: {path.name}, {reason}.")
        found += count_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return found

    def _sources(self) -> list[Path]:
        """The files that hold the photos: any number of `.tsv`, or a single `.rec`."""
        paths = list(files_below(self.root)) if self.root.is_dir() else [self.root]
        paths = [path for path in paths if not path.name.startswith((".", "Top1M_MidList"))]
        tables = [path for path in paths if path.suffix.lower() == ".tsv"]
        records = [path for path in paths if path.suffix.lower() == ".rec"]
        if not tables and not records:
            raise FileNotFoundError(
                f"root: found no .tsv and no .rec file in '{self.root}', expected the published "
                "FaceImageCroppedWithAlignment.tsv, say, or the train.rec of a RecordIO set"
            )
        if len(records) > 1 or (tables and records):
            first, second = [*records, *tables][:2]
            raise ValueError(
                f"root: '{self.root}' holds '{first}' as well as '{second}', expected .tsv files or a single .rec: "
                "whether a person of one is in the other cannot be told. Give one of the files as root"
            )
        return tables or records

    def _find_other_sizes(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        def look(chunk: Sequence[Photo]) -> Iterable[Finding]:
            for result in map_photos(read, chunk):
                yield Finding(str(result) if isinstance(result, PhotoError) else None)

        findings = look_at_photos(
            photos,
            look,
            kind="insightface-1",
            root=self.root,
            cache_dir=self.cache_dir,
            task="Checking photos",
            at_once=256,
        )
        return {name: finding.reason for name, finding in findings.items() if finding.reason is not None}

    def _put_together(self, path: Path, offset: int, length: int) -> Path | str:
        """The file in the cache of a photo that its record holds in pieces, or why there is none.

        A part of a file would not do: between the pieces stand heads.
        """
        whole = _cache_file(path, self.cache_dir, f"-{path.stat().st_mtime_ns}-{offset}.image")
        if whole.exists():
            return whole
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = _join_pieces(file.read(length))
            image = content[_IMAGE_HEADER.size + 4 * _IMAGE_HEADER.unpack_from(content)[0] :]
            _write(whole, lambda temporary: temporary.write_bytes(image))
        except OSError as error:
            return f"it cannot be put together in '{whole.parent}' ({error}): set cache_dir"
        return whole


@dataclass(frozen=True)
class _NamingReader:
    """Reads photos inside larger files, and names those that it cannot read: the file does not tell which it is.

    Attributes:
        read: reads one.
    """

    read: PhotoReader

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as `read` does."""
        try:
            return self.read(photo)
        except PhotoError as error:
            raise PhotoError(f"{_place(photo)}: {error}") from error


@dataclass(frozen=True)
class _InsightFaceReader:
    """Reads photos that insightface has aligned, brought into the common frame.

    Attributes:
        size: side of the aligned picture, in pixels.
    """

    size: int

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as uint8 (size, size, 3)."""
        image = open_photo(photo)
        _check_aligned(image)
        return warp_face(np.asarray(image), INSIGHTFACE_LANDMARKS, self.size)


def _check_aligned(image: Image.Image) -> None:
    if image.size != (INSIGHTFACE_SIDE, INSIGHTFACE_SIDE):
        raise PhotoError(
            f"{image.width}x{image.height} pixels, expected {INSIGHTFACE_SIDE}x{INSIGHTFACE_SIDE} as insightface "
            "aligns them: set trust_alignment to false to look for the face"
        )


def _place(photo: Photo) -> str:
    return photo.name if photo.part is None else f"{photo.name} at byte {photo.part.offset:,}"


# What a file holds, found out once.


class _Index(NamedTuple):
    """Where the photos of a file lie.

    Attributes:
        base64: whether photos are written as base64.
        names: of each of N photos, `<person>/<photo>`.
        offset: int64 (N,), bytes before the photo; before its record, if it is in pieces.
        length: int64 (N,), bytes of the photo; of its record, if it is in pieces.
        joined: bool (N,), whether the photo is in pieces.
        rejected: why other lines or records were left out.
        records: how many there are, good and bad.
        announced: photos and people that the file's first record announces; -1 if it does not.
    """

    base64: bool
    names: list[str]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    joined: NDArray[np.bool_]
    rejected: list[str]
    records: int
    announced: tuple[int, int]


@dataclass
class _Reasons:
    """Reasons to reject something, but no more of them than anybody reads."""

    what: str
    first: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, reason: str) -> None:
        if len(self.first) < MAX_REJECTED:
            self.first.append(reason)
        else:
            self.more += 1

    def all(self) -> list[str]:
        return self.first + ([f"and {self.more:,} more {self.what}"] if self.more else [])


@dataclass
class _Scan:
    """What has been found of a file so far; photos take few bytes each."""

    rejected: _Reasons
    names: bytearray = field(default_factory=bytearray)
    offset: array = field(default_factory=lambda: array("q"))
    length: array = field(default_factory=lambda: array("q"))
    joined: array = field(default_factory=lambda: array("b"))
    records: int = 0
    announced: tuple[int, int] = (-1, -1)

    def add(self, name: bytes, offset: int, length: int, joined: bool = False) -> None:
        if len(self.offset) == MAX_PHOTOS:
            raise ValueError(f"is one more than the {MAX_PHOTOS:,} photos that are kept of a file")
        self.names += name + b"\n"
        self.offset.append(offset)
        self.length.append(length)
        self.joined.append(joined)


def _read_index(path: Path, cache_dir: Path | None) -> _Index:
    """The index of a file: from the cache if the file has not changed since, by size and time of change."""
    status = path.stat()
    mark = [status.st_size, status.st_mtime_ns]
    cache = _cache_file(path, cache_dir, "-index-1.npz")
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if kept["mark"].tolist() == mark:
                return _index(path, {key: kept[key] for key in kept.files})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # none yet, or damaged: make it anew
        pass
    records = path.suffix.lower() == ".rec"
    scan = _Scan(_Reasons("records" if records else "lines"))
    steps = (_scan_records if records else _scan_lines)(path, scan)
    for _ in progress(steps, f"Looking through {path.name}", status.st_size >> 20):
        pass
    found = {
        "mark": np.array(mark),
        "names": np.frombuffer(bytes(scan.names), np.uint8),
        "offset": np.array(scan.offset, np.int64),
        "length": np.array(scan.length, np.int64),
        "joined": np.array(scan.joined, np.bool_),
        "rejected": np.frombuffer(json.dumps(scan.rejected.all()).encode(), np.uint8),
        "records": np.array(scan.records),
        "announced": np.array(scan.announced),
    }
    try:
        _write(cache, lambda temporary: _save(temporary, found))
    except OSError as error:
        log.warning("What is found in '%s' cannot be kept in '%s' (%s): set cache_dir", path, cache, error)
    return _index(path, found)


def _index(path: Path, found: dict[str, NDArray]) -> _Index:
    photos, people = found["announced"].tolist()
    return _Index(
        base64=path.suffix.lower() == ".tsv",
        names=found["names"].tobytes().decode("ascii").split("\n")[:-1],
        offset=found["offset"],
        length=found["length"],
        joined=found["joined"],
        rejected=json.loads(found["rejected"].tobytes()),
        records=int(found["records"]),
        announced=(photos, people),
    )


def _save(path: Path, found: dict[str, NDArray]) -> None:
    with path.open("wb") as file:  # NumPy would append ".npz" to a name
        np.savez(file, **found)  # type: ignore[arg-type]


def _cache_file(path: Path, cache_dir: Path | None, ending: str) -> Path:
    key = sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
    return (cache_dir or default_cache_dir()) / f"{path.name}-{key}{ending}"


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file all at once: other processes of a run may be reading or writing it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Lines.


def _scan_lines(path: Path, scan: _Scan) -> Iterator[None]:
    """Go through the lines of a table; yields once a MiB."""
    with path.open("rb", buffering=2**20) as file:
        start = step = 0
        while line := file.readline(MAX_BYTES):
            scan.records += 1
            end = start + len(line)
            if len(line) == MAX_BYTES and not line.endswith(b"\n"):
                while rest := file.readline(2**20):
                    end += len(rest)
                    if rest.endswith(b"\n"):
                        break
                scan.rejected.add(f"line {scan.records:,}: {end - start:,} bytes, expected {MAX_BYTES:,} or fewer")
            else:
                line = line.rstrip(b"\r\n")
                try:
                    name, length = _parse_line(line)
                    scan.add(name, start + len(line) - length, length)
                except ValueError as error:
                    scan.rejected.add(f"line {scan.records:,}: {error}")
            start = end
            while step < end >> 20:
                step += 1
                yield


def _parse_line(line: bytes) -> tuple[bytes, int]:
    """The name of the photo of a line, and the bytes of its data, with which the line ends."""
    columns = line.count(b"\t") + 1
    if columns != _COLUMNS:
        raise ValueError(f"{columns:,} columns, expected the {_COLUMNS} of the aligned and the cropped faces")
    person, rank, _, _, face, _, data = line.split(b"\t")
    for value, pattern, what in (
        (person, _MID, "a Freebase MID such as m.0107_f"),
        (rank, _RANK, "the rank of a search result"),
        (face, _FACE, "a face id such as FaceId-0"),
    ):
        if not pattern.fullmatch(value):
            raise ValueError(f"{_quote(value)} where {what} was expected")
    if not data:
        raise ValueError("no face data")
    if len(data) % 4 or data.translate(None, _BASE64) not in (b"", b"=", b"==") or b"=" in data.rstrip(b"="):
        raise ValueError(f"face data of {len(data):,} bytes are no base64, or are cut short")
    return person + b"/" + rank + b"-" + face, len(data)


def _quote(value: bytes) -> str:
    """A value of any length and bytes, fit for a message."""
    return ascii(value[:40].decode("utf-8", "replace")) + ("..." if len(value) > 40 else "")


# Records: https://mxnet.apache.org/versions/1.9/architecture/note_data_loading, "Data Format". A record is a head, the
# content and zeros up to a multiple of 4 bytes. A content in which the magic number stands at a multiple of 4 bytes is
# cut there, without the number, so that a head can be told from a content wherever one starts to read.

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class _Record(NamedTuple):
    """A record's place in a file: `length` bytes from `offset`, heads and zeros included, in so many pieces."""

    offset: int
    length: int
    content: int
    pieces: int


def _scan_records(path: Path, scan: _Scan) -> Iterator[None]:
    """Go through the records of a file; yields once a MiB."""
    size = path.stat().st_size
    with path.open("rb", buffering=2**20) as file:
        start = step = 0
        while start < size:
            scan.records += 1
            try:
                record = _record_at(file, start, size)
                _add_record(file, record, scan)
                end = start + record.length
            except ValueError as error:
                scan.rejected.add(f"record {scan.records:,} at byte {start:,}: {error}")
                end = _next_head(file, start + 4, size)
            start = end
            while step < end >> 20:
                step += 1
                yield


def _record_at(file: BinaryIO, offset: int, size: int) -> _Record:
    """The record whose head is at `offset` in a file of `size` bytes."""
    place, content, pieces = offset, 0, 0
    while True:
        file.seek(place)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise ValueError("cut short: the file ends within its head")
        magic, word = _HEAD.unpack(head)
        if magic != _MAGIC:
            raise ValueError(f"begins with {magic:#010x}, expected the magic number {_MAGIC:#010x}")
        kind, length = word >> 29, word & (2**29 - 1)
        if kind not in ((_MIDDLE, _LAST) if pieces else (_WHOLE, _FIRST)):
            raise ValueError(f"continuation flag {kind} is out of place")
        content += length
        pieces += 1
        if content + pieces * _HEAD.size > MAX_BYTES:
            raise ValueError(f"{content:,} bytes, expected {MAX_BYTES:,} or fewer")
        if place + _HEAD.size + length > size:
            raise ValueError(f"cut short: {place + _HEAD.size + length - size:,} bytes lie behind the file's end")
        place += _HEAD.size + (length + 3) // 4 * 4
        if kind in (_WHOLE, _LAST):
            return _Record(offset, min(place, size) - offset, content, pieces)


def _add_record(file: BinaryIO, record: _Record, scan: _Scan) -> None:
    if record.pieces == 1:
        file.seek(record.offset + _HEAD.size)
        begin = file.read(min(record.content, _IMAGE_HEADER.size + 8))
        content = record.content
    else:
        file.seek(record.offset)
        begin = _join_pieces(file.read(record.length))
        content = len(begin)
    if content < _IMAGE_HEADER.size:
        raise ValueError(f"{content} bytes, expected the {_IMAGE_HEADER.size} of an image's header or more")
    count, label, _, _ = _IMAGE_HEADER.unpack_from(begin)
    header = _IMAGE_HEADER.size + 4 * count
    if header > content:
        raise ValueError(f"announces {count:,} labels in {content:,} bytes")
    if count:
        label = struct.unpack_from("<f", begin, _IMAGE_HEADER.size)[0]
    if header == content:
        if not count:
            raise ValueError("holds no image")
        # No image but labels: from where to where a person's photos go; in the first record, from where to where these
        # indices go, the photos being the records from 1 to before them.
        if record.offset == 0 and count >= 2:
            first, last = struct.unpack_from("<ff", begin, _IMAGE_HEADER.size)
            if math.isfinite(first) and math.isfinite(last):
                scan.announced = (int(first) - 1, int(last - first))
        return
    if not (0 <= label < 2**31 and label == int(label)):
        raise ValueError(f"label {label}, expected a person's number")
    name = b"%d/%d" % (label, record.offset)
    if record.pieces == 1:
        scan.add(name, record.offset + _HEAD.size + header, content - header)
    else:
        scan.add(name, record.offset, record.length, joined=True)


def _join_pieces(record: bytes) -> bytes:
    """The content of a record that is written in pieces."""
    pieces, place = [], 0
    while place < len(record):
        length = _HEAD.unpack_from(record, place)[1] & (2**29 - 1)
        pieces.append(record[place + _HEAD.size : place + _HEAD.size + length])
        place += _HEAD.size + (length + 3) // 4 * 4
    return _MAGIC.to_bytes(4, "little").join(pieces)


def _next_head(file: BinaryIO, place: int, size: int) -> int:
    """Where the next record begins, at `place` or behind; the file's size if there is none."""
    magic = _MAGIC.to_bytes(4, "little")
    place += -place % 4
    while place < size:
        file.seek(place)
        chunk = file.read(2**20 + _HEAD.size)
        found = chunk.find(magic)
        while found >= 0:
            if found % 4 == 0 and len(chunk) >= found + _HEAD.size and chunk[found + 7] >> 5 in (_WHOLE, _FIRST):
                return place + found
            found = chunk.find(magic, found + 1)
        place += 2**20
    return size


def _compare_with_neighbours(path: Path, index: _Index, photos: int, people: int) -> list[str]:
    """What the files beside a `.rec`, and its own first record, say otherwise than its records, a sentence each."""
    found = []
    announced = {f"The first record of {path.name}": index.announced}
    try:
        with (path.parent / "property").open("rb") as file:
            classes = int(file.read(100).split(b",")[0])
        announced["The file property"] = (INSIGHTFACE_SETS.get(classes, -1), classes)
    except (OSError, ValueError):
        found.append(f"There is no readable file 'property' beside {path.name}, which tells the number of people.")
    if people in INSIGHTFACE_SETS:
        announced["The published set"] = (INSIGHTFACE_SETS[people], people)
    for who, (expected_photos, expected_people) in announced.items():
        if expected_people >= 0 and people != expected_people:
            found.append(f"There are {people:,} people. {who} says: {expected_people:,}.")
        if expected_photos >= 0 and photos != expected_photos:
            found.append(f"There are {photos:,} photos. {who} says: {expected_photos:,}.")
    keys = path.with_suffix(".idx")
    if keys.exists():
        found += _compare_with_keys(path, keys, index.records)
    rows = path.with_suffix(".lst")
    if rows.exists():
        with rows.open("rb") as file:
            count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
        if count != photos:
            found.append(f"There are {photos:,} photos. {rows.name} lists {count:,}.")
    return found


def _compare_with_keys(path: Path, keys: Path, records: int) -> list[str]:
    """What a list of keys and offsets says otherwise than the records, a sentence each."""
    count = wrong = 0
    magic = _MAGIC.to_bytes(4, "little")
    with keys.open("rb") as lines, path.open("rb") as file:
        while line := lines.readline(200):
            count += 1
            try:
                file.seek(int(line.split(b"\t")[1]))
                wrong += file.read(4) != magic
            except (ValueError, IndexError, OverflowError, OSError):
                wrong += 1
    found = []
    if count != records:
        found.append(f"There are {records:,} records. {keys.name} lists {count:,}.")
    if wrong:
        found.append(f"{wrong:,} of the {count:,} lines of {keys.name} point at no record.")
    return found
