"""Folders and names of files, the same on every machine."""

import difflib
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_LINE, MAX_LINES, MAX_TEXT = 2**16, 2**21, 2**28
"""Characters of a line in a list, lines, and characters in all: ten times as many as the longest published list has.

A damaged list, or a hostile one, must not ask for all memory.
"""

MAX_PART, MAX_PATH = 255, 1_024
"""Bytes of the name of a file or folder, and of a path inside a set: what file systems can take wherever the set is."""

MAX_NAME = 100
"""Characters of a person's name."""


def files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder, in the order of their names; hidden folders are passed over."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in sorted(files))


def portable(name: str) -> str:
    """The same for a name whichever way the file system composes its accents."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A name as valid UTF-8: bytes of a file name that are none are written as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def nearest_folder(missing: Path) -> Path | None:
    """The existing folder most like one that does not exist: the first missing part of its path is the misspelt one."""
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    return _nearest(missing, Path.is_dir)


def nearest_file(missing: Path) -> Path | None:
    """The file most like one that does not exist, beside it; or the folder most like its own, if that is missing."""
    return _nearest(missing, Path.is_file) if missing.parent.is_dir() else nearest_folder(missing.parent)


def _nearest(missing: Path, wanted: Callable[[Path], bool]) -> Path | None:
    names = [entry.name for entry in missing.parent.iterdir() if wanted(entry)] if missing.parent.is_dir() else []
    like = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
    return missing.with_name(like[0]) if like else None


def did_you_mean(path: Path | None) -> str:
    """A suggestion for the end of an error message; nothing if there is none."""
    return "" if path is None else f" Did you mean '{path}'?"


def bounded_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list, without their ends, and their numbers, from 1; bytes that are not UTF-8 are replaced.

    Raises:
        ValueError: a line is absurdly long, or there are absurdly many; names the file and the line.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        number = total = 0
        while line := lines.readline(MAX_LINE + 1):
            number += 1
            total += len(line)
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{file}, line {number}: more than {MAX_LINE:,} characters, expected fewer; the list is damaged"
                )
            if number > MAX_LINES or total > MAX_TEXT:
                raise ValueError(
                    f"{file}, line {number}: expected {MAX_LINES:,} lines and {MAX_TEXT:,} characters or fewer before; "
                    "the list is damaged"
                )
            yield number, line.rstrip("\n")


def has_control_characters(text: str) -> bool:
    """Whether a text holds line breaks, escapes or the like, with which a name could forge lines of a log or a list."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def person_problem(name: str) -> str | None:
    """Why a name from a file is no person's name; None if it may be one."""
    if not 0 < len(name) <= MAX_NAME:
        return f"a name of {len(name):,} characters, expected 1 to {MAX_NAME}"
    if has_control_characters(name) or "/" in name or "\\" in name or name in (".", ".."):
        return f"{name!r} where a person's name was expected"
    return None
