"""MATLAB files that would take all memory."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from data_modules import matlab
from data_modules.matlab import check_mat

HEAD = b"x" * 124 + b"\0\1IM"
CELL, STRUCT, CHAR, SPARSE, DOUBLE, OPAQUE = 1, 2, 4, 5, 6, 17


def cells(*values: Any) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0] = values
    return array


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def compressed(content: bytes) -> bytes:
    """These are not filled up to a multiple of 8."""
    packed = zlib.compress(content)
    return struct.pack("<II", 15, len(packed)) + packed


def array(kind: int, dims: tuple[int, ...], content: bytes, name: bytes = b"imdb") -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims))
    return element(14, head + element(1, name) + content)


@pytest.mark.parametrize("compress", [False, True])
def test_ordinary_files_pass(tmp_path: Path, compress: bool) -> None:
    values = {
        "dob": np.arange(5000.0)[None],
        "photo_taken": np.arange(50, dtype=np.uint16)[None],
        "complex": np.array([[1 + 2j]]),
        "flags": np.ones((3, 4, 5), bool),
        "name": cells(
            "", "Ann", "n" * 1000, "Zo\u00eb \u674e", np.zeros((0, 0)), np.zeros((1, 4)), cells("in", "side")
        ),
        "inner": {"a": cells("b"), "c": {"d": 1.0}},
        "none": cells(),
    }
    file = tmp_path / "wiki.mat"
    savemat(file, {"wiki": values, "other": 1.0}, do_compression=compress)
    check_mat(file, "wiki")
    assert set(loadmat(file, variable_names=["wiki"])["wiki"].dtype.names) == set(values)


HUGE = (1, 2**31 - 1)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "cells": (lambda: array(CELL, HUGE, b""), "holds 2,147,483,647 arrays, in 0 bytes"),
    "cells of many dimensions": (lambda: array(CELL, (2**16,) * 8, b""), "arrays, in 0 bytes"),
    "text": (lambda: array(CHAR, HUGE, element(4, b"")), "holds 2,147,483,647 values, in 8 bytes"),
    "numbers": (lambda: array(DOUBLE, HUGE, element(9, b"")), "2,147,483,647 values"),
    "text in a cell": (lambda: array(CELL, (1, 1), array(CHAR, HUGE, element(4, b""), b"")), "2,147,483,647 values"),
    "structs": (
        lambda: array(STRUCT, HUGE, element(5, struct.pack("<i", 8)) + element(1, b"field\0\0\0")),
        "2,147,483,647 arrays",
    ),
    "structs without fields": (
        lambda: array(STRUCT, HUGE, element(5, struct.pack("<i", 8)) + element(1, b"")),
        "2,147,483,647 arrays",
    ),
    "dimensions": (lambda: array(DOUBLE, (1,) * 40, b""), "too many dimensions"),
    "negative": (lambda: array(CELL, (-1, 5), b""), "negative size"),
    "sparse": (lambda: array(SPARSE, HUGE, b""), "kind 5, expected numbers"),
    "opaque": (lambda: array(OPAQUE, (1, 1), b""), "kind 17"),
    "beyond the end": (lambda: array(CELL, (1, 1), struct.pack("<II", 14, 2**31)), "an array was expected"),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_sizes_are_not_believed(tmp_path: Path, case: str, compress: bool) -> None:
    make, message = HOSTILE[case]
    content = make()
    file = tmp_path / "imdb.mat"
    file.write_bytes(HEAD + (compressed(content) if compress else content))
    with pytest.raises(ValueError, match=message):
        check_mat(file, "imdb")


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MAX_BYTES", 2**20)
    file = tmp_path / "imdb.mat"
    pieces = [compressed(array(DOUBLE, (1, 2**16), element(9, bytes(2**19)), b"other"))] * 3
    file.write_bytes(HEAD + b"".join(pieces))
    with pytest.raises(ValueError, match="more than 1,048,576 bytes when decompressed"):
        check_mat(file, "imdb")
    with file.open("r+b") as content:
        content.truncate(2**20 + 1)
    with pytest.raises(ValueError, match="1,048,577 bytes, expected 1,048,576 or fewer"):
        check_mat(file, "imdb")


def test_absurdly_many_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MAX_CELLS", 100)
    file = tmp_path / "imdb.mat"
    file.write_bytes(HEAD + array(CELL, (1, 1000), element(14, b"") * 1000))
    with pytest.raises(ValueError, match="more than 100 arrays in arrays"):
        check_mat(file, "imdb")


def test_cells_in_cells_in_cells(tmp_path: Path) -> None:
    content = b""
    for _ in range(5_000):
        content = array(CELL, (1, 1), content, b"")
    file = tmp_path / "imdb.mat"
    file.write_bytes(HEAD + array(CELL, (1, 1), content))
    with pytest.raises(ValueError, match="more than 16 deep"):
        check_mat(file, "imdb")


def test_scipy_would_take_the_memory(tmp_path: Path) -> None:
    """Why there is a check: 200 bytes ask for gigabytes."""
    file = tmp_path / "imdb.mat"
    file.write_bytes(HEAD + array(CHAR, (1, 2**28), element(4, b"")))
    script = (  # in whatever way scipy ends: what counts is the memory that it took before
        "import resource, sys, scipy.io\n"
        "try:\n    scipy.io.loadmat(sys.argv[1])\nexcept Exception: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    told = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert int(told.stdout) > 2**20  # KiB
