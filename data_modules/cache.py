"""What was found out about photos, kept for the next start."""

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from data_modules.files import printable
from data_modules.photos import Photo, PhotoError, map_photos, open_photo, progress

log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """What is known of a photo.

    Attributes:
        reason: why it cannot be used; None if it can.
        landmarks: five points (x, y), in pixels of the upright photo, where they were looked for.
    """

    reason: str | None
    landmarks: list[list[float]] | None = None


def default_cache_dir() -> Path:
    """The project's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idface"


def look_at_photos(
    photos: Sequence[Photo],
    look: Callable[[Sequence[Photo]], Iterable[Finding]],
    *,
    kind: str,
    root: Path,
    cache_dir: Path | None,
    task: str,
    at_once: int,
) -> dict[str, Finding]:
    """Look at photos, but only at those that have changed since the last time, by size and time of change.

    Findings are saved as they are made: an interrupted start goes on where it was.

    Args:
        photos: the photos.
        look: finds something out about a few photos at a time, in order.
        kind: what is looked for, and the version of how; another kind is another cache.
        root: the data set's folder; another folder is another cache.
        cache_dir: where the caches are; None for the user's cache folder.
        task: what the progress bar says.
        at_once: photos that `look` is given at a time, and that are lost at most when it is interrupted.

    Returns:
        The finding for each photo's name.
    """
    folder = cache_dir or default_cache_dir()
    file = folder / f"{root.name}-{kind}-{sha256(str(root.resolve()).encode()).hexdigest()[:12]}.sqlite"
    with closing(_open(file)) as database:
        marks = {printable(photo.name): _mark(photo.path) for photo in photos}
        known = {
            key: Finding(*json.loads(finding))
            for key, mark, finding in database.execute("SELECT name, mark, finding FROM photos")
            if marks.get(key) == mark
        }
        findings = {photo.name: known[key] for photo in photos if (key := printable(photo.name)) in known}
        todo = [photo for photo in photos if photo.name not in findings]
        chunks = [todo[start : start + at_once] for start in range(0, len(todo), at_once)]
        for finding, photo in progress(_in_chunks(database, chunks, look, marks), task, len(todo)):
            findings[photo.name] = finding
    return findings


def _in_chunks(
    database: sqlite3.Connection,
    chunks: Iterable[Sequence[Photo]],
    look: Callable[[Sequence[Photo]], Iterable[Finding]],
    marks: dict[str, str],
) -> Iterable[tuple[Finding, Photo]]:
    for chunk in chunks:
        found = list(zip(look(chunk), chunk, strict=True))
        rows = [(key := printable(photo.name), marks[key], json.dumps(finding)) for finding, photo in found]
        with database:
            database.executemany("INSERT OR REPLACE INTO photos VALUES (?, ?, ?)", rows)
        yield from found


def find_unreadable(photos: Sequence[Photo], *, root: Path, cache_dir: Path | None) -> dict[str, str]:
    """Decode every photo that was not decoded before; why each unreadable one is so, by name."""

    def look(chunk: Sequence[Photo]) -> Iterable[Finding]:
        for result in map_photos(lambda photo: open_photo(photo).close(), chunk):
            yield Finding(str(result) if isinstance(result, PhotoError) else None)

    findings = look_at_photos(
        photos, look, kind="decode-1", root=root, cache_dir=cache_dir, task="Checking photos", at_once=256
    )
    return {name: finding.reason for name, finding in findings.items() if finding.reason is not None}


def count_unreadable(photos: Sequence[Photo], *, root: Path, cache_dir: Path | None) -> list[str]:
    """How many photos cannot be decoded, and the first of them, in a sentence for `verify`; empty if all can."""
    broken = find_unreadable(photos, root=root, cache_dir=cache_dir)
    if not broken:
        return []
    name, reason = next(iter(broken.items()))
    return [f"{len(broken):,} of {len(photos):,} photos cannot be read; the first: {name} ({reason})."]


def _open(file: Path) -> sqlite3.Connection:
    create = "CREATE TABLE IF NOT EXISTS photos (name TEXT PRIMARY KEY, mark TEXT, finding TEXT)"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file, timeout=60)  # seconds: other processes of a run may be writing
        database.execute(create)
        database.execute(
            "INSERT OR REPLACE INTO photos VALUES ('', '', '[null]')"
        )  # fails where nothing can be written
        database.commit()
    except (OSError, sqlite3.Error) as error:
        log.warning("What is found out about the photos cannot be kept in %s (%s): set cache_dir", file, error)
        database = sqlite3.connect(":memory:")
        database.execute(create)
    return database


def _mark(path: Path) -> str:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:  # gone, or a link to nowhere: decoding will say so
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
