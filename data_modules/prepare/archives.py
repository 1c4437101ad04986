"""Unpacking the archives that data sets are published in, whoever made them and whatever they hold."""

import bz2
import gzip
import io
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_modules.files import MAX_PART, MAX_PATH, has_control_characters, portable
from data_modules.photos import MAX_BYTES, Rejected

log = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = frozenset((".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz"))
"""What the names of files end in that are looked at for being archives."""

MAX_RATIO, SLACK = 20, 2**30
"""An archive may unpack to so many times its own bytes, and so many bytes more.

Photos hardly shrink when packed and lists of labels to a tenth: what grows further is a decompression bomb.
"""

RESERVE = 2**30
"""Bytes of the disk that are left free."""

MAX_MEMBERS = 10_000_000
"""Of an archive, folders included: what is kept of each name, 80 bytes, then takes 800 MB."""

MAX_DIRECTORY = 2**27
"""Bytes of a zip's list of contents, which zipfile holds tenfold in memory. CelebA's has 16 MB."""

MAX_HEADERS = 2**20
"""Bytes of what a tar says of a member before its content: names of any length, attributes."""

MAX_WINDOW = 2**27
"""Bytes that unpacking a .tar.xz may hold; `xz -9` asks for half as many."""

MAX_REJECTED = 1_000
"""Members whose rejection is told one by one."""

MAX_DEPTH = 32
"""Names in the path of a member, its own included."""

PHOTO_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Files with these names may have MAX_BYTES, as no larger photo is read. A table of photos may have any size."""

TEMPORARY = ".unpacking"
"""A file in the folder while it is being written, under one name so that the next call replaces what a kill left."""

_CHUNK = 2**18
_DRIVE = re.compile(r"[A-Za-z]:")


class _Refused(ValueError):
    """An archive that is not unpacked, or not further; the text is complete."""


class _Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: as the archive has it.
        problem: why it cannot be unpacked; None if it can.
        content: the bytes, in chunks; to be asked for before the next member is.
    """

    name: str
    problem: str | None
    content: Iterable[bytes]


def is_archive(path: Path) -> bool:
    """Whether a file is one that `unpack` unpacks, by its content: a zip, or a tar, plain or as gz, bz2 or xz."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if _is_zip(file):
            return True
        try:
            tarfile.TarInfo.frombuf(_decompressed(file).read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except Exception:  # decompressors raise whatever they like
            return False
        return True


def unpack(archive: Path, folder: Path) -> list[Rejected]:
    """Unpack the files of an archive into a folder, and nothing anywhere else.

    What the archive says of itself is not relied on. Members are left out that are no plain files (links, devices),
    are encrypted, have a name that leads out of the folder or that some file system cannot take, or the name of an
    earlier member, be it in other capitals. Archives inside the archive stay packed. Files get the permissions that
    new ones have.

    The same call ends the same after it was killed: every file is there whole or not at all, and is written anew. Only
    one process at a time may unpack into a folder.

    Args:
        archive: the file; see `is_archive`.
        folder: made if it is not there.

    Returns:
        The members that were left out, and why; of very many, the first and a count.

    Raises:
        ValueError: the archive is damaged, cut short or of another kind, unpacks to absurdly much, has absurdly many
            members, or does not fit on the disk. What was unpacked before stays.
        OSError: reading or writing failed.
    """
    log.info("Unpacking '%s' into '%s'", archive, folder)
    rejected = _Rejections(archive)
    folder.mkdir(parents=True, exist_ok=True)
    target = _Target(archive, folder)
    try:
        with archive.open("rb") as file:
            for number, member in enumerate(_members(archive, file), 1):
                if number + len(target.folders) > MAX_MEMBERS:
                    raise _Refused(
                        f"'{archive}' holds more than {MAX_MEMBERS:,} files and folders, expected fewer: if you trust "
                        "it, unpack it yourself and give the folder"
                    )
                if reason := member.problem or target.put(member.name, member.content):
                    rejected.add(member.name, reason)
    finally:
        target.temporary.unlink(missing_ok=True)
    return rejected.all()


class _Rejections:
    """Members that were left out, but no more of them than anybody reads."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.first: list[Rejected] = []
        self.more = 0

    def add(self, name: str, reason: str) -> None:
        if len(self.first) < MAX_REJECTED:
            self.first.append(Rejected(self.archive, f"{repr(name[:200])[:200]}: {reason}"))
        else:
            self.more += 1

    def all(self) -> list[Rejected]:
        return self.first + ([Rejected(self.archive, f"and {self.more:,} more members")] if self.more else [])


# What is written.


class _Target:
    """The folder that an archive is unpacked into.

    Attributes:
        temporary: the file that is being written.
        folders: hashes of the folders in it, without regard to capitals and to how accents are composed.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive = archive
        self.folder = folder
        self.temporary = folder / TEMPORARY
        self.temporary.unlink(missing_ok=True)
        self.folders: set[int] = set()
        self._files = {hash(TEMPORARY)}  # of files likewise; Python draws the hash anew in every process
        self._made: tuple[str, ...] | None = None

    def put(self, name: str, content: Iterable[bytes]) -> str | None:
        """Write a file all at once; gives the reason if it is left out."""
        parts = _parts(name)
        if isinstance(parts, str):
            return parts
        if reason := self._take(parts) or self._make_folders(parts[:-1]):
            return reason
        most = MAX_BYTES if Path(parts[-1]).suffix.lower() in PHOTO_SUFFIXES else None
        size = 0
        with self.temporary.open("xb") as file:  # "x": what is there already, a link out of the folder say, is not used
            for chunk in content:
                size += len(chunk)
                if most is not None and size > most:
                    break
                self._check_disk(len(chunk))
                file.write(chunk)
        if most is not None and size > most:
            self.temporary.unlink()
            return f"more than {most:,} bytes, which no photo has"
        try:
            self.temporary.replace(self.folder.joinpath(*parts))
        except OSError as error:  # there is a folder, or the file system cannot take the name
            self.temporary.unlink()
            return f"cannot be written ({error.strerror})"
        return None

    def _take(self, parts: tuple[str, ...]) -> str | None:
        """Remember a name; gives the reason if it is not free."""
        folded = [portable(part).casefold() for part in parts]
        *above, itself = [hash("/".join(folded[:end])) for end in range(1, len(folded) + 1)]
        if itself in self._files:
            return "an earlier member has its name, be it in other capitals"
        if itself in self.folders:
            return "an earlier member has made a folder of its name"
        if not self._files.isdisjoint(above):
            return "an earlier member is a file where its folder should be"
        self._files.add(itself)
        self.folders.update(above)
        return None

    def _make_folders(self, parts: tuple[str, ...]) -> str | None:
        """Make the folders that lead to a file, one by one: what stands there already may be a link to elsewhere."""
        if parts == self._made:
            return None
        path = self.folder
        for part in parts:
            path = path / part
            try:
                path.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(path.lstat().st_mode):
                    return f"'{path}' is in its way"
            except OSError as error:
                return f"cannot be written ({error.strerror})"
        self._made = parts
        return None

    def _check_disk(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < RESERVE + size:
            raise _Refused(
                f"'{self.archive}' does not fit on the disk of '{self.folder}': {free:,} bytes are free, expected "
                f"{RESERVE:,} to be left when it is unpacked: free some, or choose another disk"
            )


def _parts(name: str) -> tuple[str, ...] | str:
    """The folders and the file that a member's name leads to, or why it is not used."""
    if len(name) > MAX_PATH:
        return f"a name of {len(name):,} characters, expected {MAX_PATH:,} or fewer"
    if has_control_characters(name):
        return "control characters in its name"
    if name.startswith("/"):
        return "its name leads out of the folder"
    if "\\" in name:
        return "a backslash in its name, which elsewhere parts folders"
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        return "its name leads out of the folder"
    if any(_DRIVE.match(part) for part in parts):
        return "a drive letter in its name"
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        return "its name cannot be written here"
    if not parts or len(parts) > MAX_DEPTH:
        return f"{len(parts)} names to its path, expected 1 to {MAX_DEPTH}"
    if max(lengths) > MAX_PART or sum(lengths) + len(parts) > MAX_PATH:
        return f"its name is too long, expected {MAX_PART} bytes a part and {MAX_PATH:,} in all"
    return parts


# What is read.


def _members(archive: Path, file: BinaryIO) -> Iterator[_Member]:
    """The files of an archive, in its order."""
    spend = _spender(archive, os.fstat(file.fileno()).st_size)
    return _zip_members(archive, spend) if _is_zip(file) else _tar_members(archive, file, spend)


def _is_zip(file: BinaryIO) -> bool:
    """Whether a file begins as a zip does; zipfile would take any file that ends as one."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic in (b"PK\x03\x04", b"PK\x05\x06")


def _spender(archive: Path, size: int) -> Callable[[int], None]:
    """What counts the bytes that were decompressed, and refuses the archive when they are too many."""
    most = MAX_RATIO * size + SLACK
    spent = 0

    def spend(count: int) -> None:
        nonlocal spent
        spent += count
        if spent > most:
            raise _Refused(
                f"'{archive}' has {size:,} bytes and unpacks to more than {most:,}, expected fewer: photos hardly "
                "shrink when packed, so that it may be a decompression bomb. If you trust it, unpack it yourself and "
                "give the folder"
            )

    return spend


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Say in words that an archive cannot be read."""
    try:
        yield
    except _Refused:
        raise
    except Exception as error:  # damage makes zipfile, tarfile and decompressors raise whatever comes
        told = f"{error}" or type(error).__name__
        raise ValueError(
            f"'{archive}' is damaged or cut short ({told[:200]}), expected a whole zip or tar: download it again"
        ) from error


class _BoundedFile(io.BufferedReader):
    """A file that is not read in pieces so large that they fill the memory, whatever the file says of its own parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # the end of the file, where a zip may have a comment of up to 64 KiB
            size = _CHUNK
        piece = super().read(min(size, MAX_DIRECTORY + 1))
        if len(piece) > MAX_DIRECTORY:
            raise _Refused(
                f"'{self.name}' has a list of contents of more than {MAX_DIRECTORY:,} bytes, expected fewer: if you "
                "trust it, unpack it yourself and give the folder"
            )
        return piece


def _zip_members(archive: Path, spend: Callable[[int], None]) -> Iterator[_Member]:
    def content(info: zipfile.ZipInfo) -> Iterator[bytes]:
        with _reading(archive), packed.open(info) as source:
            while chunk := source.read(_CHUNK):
                spend(len(chunk))
                yield chunk

    with _BoundedFile(io.FileIO(archive)) as file:
        with _reading(archive):
            packed = zipfile.ZipFile(file)
        for info in packed.infolist():
            if not info.orig_filename.endswith("/"):  # `filename` ends at the first NUL
                yield _Member(info.orig_filename, _zip_problem(info), content(info))


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x2041:  # of the file, strongly, of the list of contents
        return "is encrypted"
    if info.flag_bits & 0x20 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile bounds the memory of these two alone
        return f"packed by method {info.compress_type}, expected stored (0) or deflated (8)"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    return None


def _tar_members(archive: Path, file: BinaryIO, spend: Callable[[int], None]) -> Iterator[_Member]:
    def content(size: int) -> Iterator[bytes]:
        with _reading(archive):
            if size < 0:
                raise ValueError(f"a member of {size} bytes")
            while size > 0:
                chunk = stream.data(min(size, _CHUNK))
                if not chunk:
                    raise EOFError(f"{size:,} bytes of a member lie behind the end")
                size -= len(chunk)
                yield chunk

    stream = _TarStream(_decompressed(file), spend)
    with _reading(archive):
        packed = tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8")  # type: ignore[arg-type]
        if not packed.members:  # type: ignore[attr-defined]
            raise EOFError("it holds nothing but zeros")
    while True:
        stream.headers = 0
        with _reading(archive):
            info = packed.next()
            if info is None and stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
                raise EOFError("it does not end as a tar does")
        if info is None:
            break
        packed.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all,
        packed.pax_headers = {}  # and what is said of all members, piece by piece
        if not info.isdir():
            yield _Member(info.name, _tar_problem(info), content(info.size))
    with _reading(archive):
        while stream.data(_CHUNK):  # decompressors compare their checksums at the end
            pass


def _tar_problem(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "is a link, not a file"
    if info.issparse():
        return "is a sparse file: pack it without --sparse"
    if not info.isreg():
        return "is a device or of an unknown kind, not a file"
    return None


class _TarStream:
    """What tarfile needs of a file: read from the beginning to the end, once, and in bounded pieces.

    Attributes:
        headers: how many bytes tarfile has read itself since this was set to 0.
        last: what it read last.
    """

    def __init__(self, source: BinaryIO, spend: Callable[[int], None]) -> None:
        self.headers = 0
        self.last = b""
        self._source = source
        self._spend = spend
        self._place = 0

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> int:
        if place < self._place:
            raise ValueError("a member of negative size")
        while place > self._place and self.data(min(place - self._place, _CHUNK)):
            pass
        return self._place

    def read(self, size: int) -> bytes:
        self.headers += max(size, 0)
        if size < 0 or self.headers > MAX_HEADERS:
            raise ValueError(f"headers of more than {MAX_HEADERS:,} bytes")
        self.last = self.data(size)
        return self.last

    def data(self, size: int) -> bytes:
        """Read so many bytes, fewer at the end; they are no header's."""
        data = self._source.read(size)
        self._spend(len(data))
        self._place += len(data)
        return data


def _decompressed(file: BinaryIO) -> BinaryIO:
    """What is in a file that is compressed as gz, bz2 or xz; the file itself if it is not."""
    file.seek(0)
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if magic.startswith(b"BZh"):
        return io.BufferedReader(_Decompressor(file, bz2.BZ2Decompressor), _CHUNK)
    if magic == b"\xfd7zXZ\0":
        return io.BufferedReader(
            _Decompressor(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)), _CHUNK
        )
    return file


class _Decompressor(io.RawIOBase):
    """Decompresses a file of one or more streams; unlike `lzma.open`, in no more memory than is allowed."""

    def __init__(self, file: BinaryIO, make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file = file
        self._make = make
        self._stream = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0")  # streams may be filled up with zeros
                while not packed:
                    if not (packed := self._file.read(_CHUNK)):
                        return 0
                    packed = packed.lstrip(b"\0")
                self._stream = self._make()
            elif self._stream.needs_input and not (packed := self._file.read(_CHUNK)):
                raise EOFError("the compressed data ends too early")
            if data := self._stream.decompress(packed, len(buffer)):
                buffer[: len(data)] = data
                return len(data)
