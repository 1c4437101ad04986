"""A look at a MATLAB file before it is read: what it says of sizes decides how much memory reading it takes."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 2**30
"""Of a file, and of what is in it once it is decompressed. imdb.mat, the largest that is read here, is far below."""

MAX_CELLS = 2**22
"""Arrays in arrays, which take some 200 bytes each whatever is in them; imdb.mat has 1.4 million."""

MAX_DEPTH = 16
"""Of arrays in arrays; imdb.mat has 2."""

_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = range(6, 16)
_TAG = struct.Struct("<II")
_USUAL = struct.Struct("<8I2i")  # an array's tag, flags, and size where it has two dimensions


def check_mat(file: Path, variable: str) -> None:
    """Refuse a file, of version 5 as `scipy.io.savemat` and MATLAB 5 to 7 write it, that would take absurd memory.

    scipy believes an array's size, and sets aside memory for it, before it looks for the content.

    Raises:
        ValueError: the file or the variable is too large, is damaged, or holds what is neither numbers, text, cells nor
            structs.
        struct.error: the file is cut short.
        zlib.error: the file is damaged.
    """
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, expected {MAX_BYTES:,} or fewer")
    with file.open("rb") as content:
        head = content.read(128)
        if len(head) < 128 or head[124:] != b"\0\1IM":
            raise ValueError("no MATLAB file of version 5, little-endian")
        whole = content.read()
    for array in _arrays(whole):
        check = _Check(array)
        if check.name() == variable.encode():
            check.array(0, len(array))


def _arrays(whole: bytes) -> Iterator[bytes]:
    """The variables of a file, decompressed, each with its tag."""
    at = total = 0
    while at < len(whole):
        kind, size = _TAG.unpack_from(whole, at)
        if kind == _COMPRESSED:
            array = zlib.decompressobj().decompress(memoryview(whole)[at + 8 : at + 8 + size], MAX_BYTES - total + 1)
            total += len(array)
            if total > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES:,} bytes when decompressed, expected fewer")
            yield array
        elif kind == _MATRIX:
            yield whole[at : at + 8 + size]
        at += 8 + size


class _Check:
    """Goes through a variable, array by array."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cells = 0

    def name(self) -> bytes:
        """The variable's."""
        return self._head(0)[3]

    def _element(self, at: int) -> tuple[int, int, int]:
        """Where an element's data begins, how many bytes it has, and where the next element is."""
        kind, size = _TAG.unpack_from(self.content, at)
        if kind >> 16:  # of up to 4 bytes, which stand in the tag
            return at + 4, kind >> 16, at + 8
        return at + 8, size, at + 8 + size + -size % 8

    def _head(self, at: int) -> tuple[int, int, int, bytes]:
        """An array's class, how many values it says it has, where they begin, and its name."""
        (flags,) = struct.unpack_from("<I", self.content, at + 16)
        begin, size, at = self._element(at + 24)
        if size > 128:  # 32 dimensions
            raise ValueError("an array of too many dimensions")
        sizes = struct.unpack_from(f"<{size // 4}i", self.content, begin)
        if min(sizes, default=0) < 0:
            raise ValueError("an array of negative size")
        begin, size, at = self._element(at)
        return flags & 255, math.prod(sizes), at, self.content[begin : begin + min(size, 64)]

    def array(self, at: int, end: int, depth: int = 0) -> int:
        """Check the array at a place, and all in it; gives where the next one begins."""
        if depth > MAX_DEPTH:
            raise ValueError(f"arrays in arrays, more than {MAX_DEPTH} deep")
        self.cells += 1
        if self.cells > MAX_CELLS:
            raise ValueError(f"more than {MAX_CELLS:,} arrays in arrays, expected fewer")
        kind, size = _TAG.unpack_from(self.content, at)
        after = at + 8 + size
        if kind != _MATRIX or after > end:
            raise ValueError(f"an array was expected at byte {at:,}")
        if size == 0:  # an empty one
            return after
        if size <= 128:  # as almost all: a short text, a box
            _, _, _, _, flags, _, dims, eight, rows, columns = _USUAL.unpack_from(self.content, at)
            if flags & 255 in (_CHAR, *_NUMBERS) and (dims, eight) == (5, 8) and 0 <= rows * columns <= size:
                return after
        return self._contents(at, after, depth)

    def _contents(self, at: int, end: int, depth: int) -> int:
        kind, count, at, _ = self._head(at)
        if kind == _STRUCT:
            begin, _, at = self._element(at)
            (length,) = struct.unpack_from("<i", self.content, begin)
            _, size, at = self._element(at)
            if length < 1:
                raise ValueError("a struct whose fields have no names")
            count *= max(1, size // length)
        if kind in (_CELL, _STRUCT):
            if count * 8 > end - at:
                raise ValueError(f"an array says that it holds {count:,} arrays, in {end - at:,} bytes")
            for _ in range(count):
                at = self.array(at, end, depth + 1)
        elif kind != _CHAR and kind not in _NUMBERS:
            raise ValueError(f"an array of kind {kind}, expected numbers, text, cells or structs")
        elif count > end - at:
            raise ValueError(f"an array says that it holds {count:,} values, in {end - at:,} bytes")
        return end
