"""What a preparation has done so far, in one SQLite file, so that it can be killed at any moment and go on."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_modules.photos import Part, Photo, Rejected

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS photos (
    number INTEGER PRIMARY KEY, name BLOB UNIQUE, person BLOB, path BLOB, offset INT, length INT, base64 INT);
CREATE TABLE IF NOT EXISTS left_out (path BLOB, reason BLOB);
CREATE TABLE IF NOT EXISTS results (chunk INTEGER PRIMARY KEY, content BLOB);
CREATE TABLE IF NOT EXISTS shards (number INTEGER PRIMARY KEY, shard TEXT, places BLOB);
CREATE TABLE IF NOT EXISTS seen (sha256 BLOB PRIMARY KEY, number INT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejected (number INTEGER PRIMARY KEY, kind TEXT, reason TEXT, found TEXT);
CREATE TABLE IF NOT EXISTS samples (lot BLOB PRIMARY KEY, number INT, found TEXT, image BLOB) WITHOUT ROWID;
"""

_PHOTO = "name, person, path, offset, length, base64"  # what `_photo` takes


class Journal:
    """The state of a preparation. One process writes it.

    Args:
        file: the SQLite file; made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        # A killed process loses nothing that was committed; a power cut may lose the last moments, not the file.
        # Alone, it needs no memory shared with others, which network file systems lack.
        self._database.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;")
        self._database.executescript(f"PRAGMA synchronous = NORMAL; {_TABLES}")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done within is kept whole or not at all."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite has rolled back already where the disk is full
                self._database.execute("ROLLBACK")
            raise

    # Facts: settings and counts.

    def fact(self, key: str) -> Any:
        """What is kept under a key; None if nothing."""
        row = self._database.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return row and json.loads(row[0])

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    # What is to be done.

    def plan(self, entries: Iterable[Photo | Rejected]) -> None:
        """Take in a set's photos and the files that it leaves out; the photos are numbered as they come.

        Raises:
            ValueError: two photos have one name.
        """
        number = 0
        for entry in entries:
            if isinstance(entry, Rejected):
                self.leave_out([entry])
                continue
            if "\\udc" in entry.name:  # it could not be told from another one, see `printable`
                self.leave_out([Rejected(entry.path, r"\udc in its name, which stands for bytes that are no UTF-8")])
                continue
            part = entry.part or (None, None, None)
            try:
                self._database.execute(
                    "INSERT INTO photos VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, _encode(entry.name), _encode(entry.person), os.fsencode(entry.path), *part),
                )
            except sqlite3.IntegrityError:
                raise ValueError(f"two photos are named {entry.name!r}: {entry.path} is the second") from None
            number += 1

    def leave_out(self, files: Iterable[Rejected]) -> None:
        """Note files that are no photos of the set."""
        for path, reason in files:
            self._database.execute("INSERT INTO left_out VALUES (?, ?)", (os.fsencode(path), _encode(reason)))

    def count_photos(self) -> int:
        """How many photos there are to prepare."""
        return int(self._database.execute("SELECT count(*) FROM photos").fetchone()[0])

    def photos(self, start: int, stop: int) -> list[Photo]:
        """The photos of these numbers."""
        rows = self._database.execute(
            f"SELECT {_PHOTO} FROM photos WHERE number >= ? AND number < ? ORDER BY number",
            (start, stop),
        )
        return [_photo(*row) for row in rows]

    def left_out(self) -> Iterator[Rejected]:
        """The files that the set itself leaves out, by path."""
        for path, reason in self._database.execute("SELECT path, reason FROM left_out ORDER BY path, reason"):
            yield Rejected(Path(os.fsdecode(path)), _decode(reason))

    # What is done.

    def keep(self, chunk: int, content: bytes) -> None:
        """Keep what a worker made of a chunk."""
        self._database.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (chunk, content))

    def kept(self, start: int, stop: int) -> set[int]:
        """Which of these chunks are done."""
        rows = self._database.execute("SELECT chunk FROM results WHERE chunk >= ? AND chunk < ?", (start, stop))
        return {chunk for (chunk,) in rows}

    def result(self, chunk: int) -> bytes:
        """What a worker made of a chunk."""
        return bytes(self._database.execute("SELECT content FROM results WHERE chunk = ?", (chunk,)).fetchone()[0])

    def forget(self, start: int, stop: int) -> None:
        """Drop the results of these chunks: they are in a shard."""
        self._database.execute("DELETE FROM results WHERE chunk >= ? AND chunk < ?", (start, stop))

    def first(self, sha256: bytes, number: int) -> int:
        """The number of the first photo with this content: this one if no earlier one has it."""
        self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (sha256, number))
        return int(self._database.execute("SELECT number FROM seen WHERE sha256 = ?", (sha256,)).fetchone()[0])

    def reject(self, number: int, kind: str, reason: str, found: Mapping[str, Any]) -> None:
        """Note why a photo is left out, and what was found in it."""
        row = (number, kind, reason, json.dumps(found))
        self._database.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", row)

    def rejected(self) -> Iterator[tuple[Photo, str, str]]:
        """Photos that were rejected, by number, with the kind of the reason and the reason."""
        rows = self._database.execute(
            f"SELECT {_PHOTO}, kind, reason FROM rejected JOIN photos USING (number) ORDER BY number"
        )
        for *photo, kind, reason in rows:
            yield _photo(*photo), kind, reason

    def count_rejected(self) -> dict[str, int]:
        """Rejected photos by the kind of the reason."""
        return dict(self._database.execute("SELECT kind, count(*) FROM rejected GROUP BY kind ORDER BY kind"))

    def some_rejected(self, each: int) -> list[tuple[Photo, str, dict[str, Any]]]:
        """Photos that were rejected, a few of each kind, spread over the set: with the reason and what was found."""
        rows = self._database.execute(
            f"SELECT {_PHOTO}, reason, found FROM ("
            "SELECT *, row_number() OVER (PARTITION BY kind ORDER BY (number * 2654435761) % 4294967296) AS place "
            "FROM rejected) JOIN photos USING (number) WHERE place <= ? ORDER BY kind, place",
            (each,),
        )
        return [(_photo(*photo), reason, json.loads(found)) for *photo, reason, found in rows]

    def sample(self, lot: bytes, number: int, found: Mapping[str, Any], image: bytes, most: int) -> None:
        """Offer a face for the sheets: those with the lowest lots, `most` of them, stay."""
        self._database.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", (lot, number, json.dumps(found), image))
        (count,) = self._database.execute("SELECT count(*) FROM samples").fetchone()
        if count > 2 * most:
            self._database.execute(
                "DELETE FROM samples WHERE lot NOT IN (SELECT lot FROM samples ORDER BY lot LIMIT ?)", (most,)
            )

    def samples(self, most: int) -> list[tuple[Photo, dict[str, Any], bytes]]:
        """The faces drawn for the sheets, in the order of the set: photo, what was found in it, picture."""
        rows = self._database.execute(
            f"SELECT {_PHOTO}, found, image FROM "
            "(SELECT * FROM samples ORDER BY lot LIMIT ?) JOIN photos USING (number) ORDER BY number",
            (most,),
        )
        return [(_photo(*photo), json.loads(found), bytes(image)) for *photo, found, image in rows]

    def keep_shard(self, number: int, shard: Mapping[str, Any], places: bytes) -> None:
        """Note that a shard is whole: what the manifest says of it, and where in it the pictures lie."""
        self._database.execute("INSERT INTO shards VALUES (?, ?, ?)", (number, json.dumps(shard), places))

    def shards(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """What was noted of the shards, in order."""
        for shard, places in self._database.execute("SELECT shard, places FROM shards ORDER BY number"):
            yield json.loads(shard), bytes(places)


def _photo(
    name: bytes, person: bytes | None, path: bytes, offset: int | None, length: int | None, base64: int | None
) -> Photo:
    part = None if offset is None or length is None else Part(offset, length, bool(base64))
    return Photo(_decode(name), None if person is None else _decode(person), Path(os.fsdecode(path)), part)


def _encode(text: str | None) -> bytes | None:
    """Names may hold what is no UTF-8; SQLite's text may not."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
