"""Folders and names of files, the same on every machine."""

import difflib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder, in the order of their names; hidden folders are passed over."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in sorted(files))


def portable(name: str) -> str:
    """The same for a name whichever way the file system composes its accents."""
    return unicodedata.normalize("NFC", name)


def nearest_folder(missing: Path) -> Path | None:
    """The existing folder most like one that does not exist: the first missing part of its path is the misspelt one."""
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    names = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()] if missing.parent.is_dir() else []
    like = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
    return missing.with_name(like[0]) if like else None


def did_you_mean(folder: Path | None) -> str:
    """A suggestion for the end of an error message; nothing if there is none."""
    return "" if folder is None else f" Did you mean '{folder}'?"
