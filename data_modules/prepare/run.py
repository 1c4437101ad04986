"""The whole preparation: from a data set as it was published to shards of aligned faces."""

import csv
import io
import itertools
import json
import logging
import math
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.base import FaceDataModule
from data_modules.files import files_below, printable
from data_modules.photos import Hint, Photo
from data_modules.prepare.align import device_or_default
from data_modules.prepare.archives import ARCHIVE_SUFFIXES, is_archive, unpack
from data_modules.prepare.engines import Engine
from data_modules.prepare.journal import Journal
from data_modules.prepare.shards import (
    FORMAT,
    INDEX,
    MANIFEST,
    SHARDS,
    ShardWriter,
    as_points,
    describe,
    schema_of,
    write_index,
    write_text,
)
from data_modules.prepare.sheets import FACES, write_contact_sheet, write_detection_sheet
from data_modules.prepare.worker import (
    Chunk,
    FaceWorker,
    Settings,
    count_rejected,
    unpack_result,
)

log = logging.getLogger(__name__)

CHUNK = 32
"""Photos that are worked on together. Another number gives other batches, and other last digits of landmarks."""

SHARD = 256 * CHUNK
"""Photos that make a shard, less those that are rejected."""

_REJECTED_PER_KIND = 12  # on the detection sheet


class NothingPrepared(ValueError):
    """Not one photo of a set could be used."""


def prepare(
    open_set: Callable[[Path], FaceDataModule],
    root: Path | None,
    source: str,
    out: Path,
    settings: Settings,
    *,
    options: Mapping[str, str] | None = None,
    engine: Engine,
    workers: int | None = None,
    device: str | None = None,
    shard_size: int = SHARD,
) -> dict[str, Any]:
    """Find, align and encode the faces of a data set, and write them as Parquet shards.

    It can be killed at any moment: called again with the same arguments it goes on, and what comes out is the same,
    byte for byte, as without the interruption, on one machine and device. What is prepared is what was there when the
    preparation began.

    Args:
        open_set: makes the data module of a folder.
        root: the data set's folder; None if it has none. Archives in it, or an archive in its place, are unpacked
            inside `out` for the time being if the folder alone is not what the data module expects.
        source: what the manifest calls it, such as "lfw".
        out: the folder to write; see `data_modules.prepare.shards` for what it holds.
        settings: what the faces look like.
        options: what else decides which photos `open_set` gives, for the manifest.
        engine: where the work is done.
        workers: processes; None for one a core.
        device: where the detector runs; None for a GPU if there is one.
        shard_size: photos that make a shard, a multiple of CHUNK.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError, ValueError: the data set is not as it should be.
        ValueError: the folder to write holds something else, or a preparation with other settings.
        BlockingIOError: another preparation into the folder is running.
        NothingPrepared: not one photo could be used; the folder says why for each.
    """
    if shard_size < CHUNK or shard_size % CHUNK:
        raise ValueError(f"shard_size is {shard_size}, expected a multiple of {CHUNK}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}, expected 1 or more")
    root = root and root.absolute()  # the next start may be from another folder
    if root is not None and out.absolute().is_relative_to(root):
        raise ValueError(f"'{out}' lies inside the data set '{root}': give a folder elsewhere as --out")
    asked = {
        "source": source,
        "options": {name: printable(value) for name, value in (options or {}).items()},
        "shard_size": shard_size,
        **settings.as_dict(),
    }
    there = out.exists()
    if there and not out.is_dir():
        raise NotADirectoryError(f"'{out}' is a file: give a new folder as --out")
    if there and not (out / MANIFEST).exists() and not (out / ".work").exists():
        _check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if (out / MANIFEST).is_file():
                return _not_empty(_finished(out, asked, open_set, root), out)
            work = out / ".work"
            work.mkdir(exist_ok=True)
            journal = Journal(work / "journal.sqlite")
            try:
                made_with = _versions(device)
                _check_begun(journal, {**asked, "root": root and str(root), **made_with}, out)
                data = _open(journal, open_set, root, (work / "source").absolute())
                _plan(journal, data)
                preparation = _Preparation(journal, data, out, shard_size)
                preparation.make_shards(engine, FaceWorker(settings, data.check(), device), workers)
                manifest = preparation.finish(asked, made_with)
            finally:
                begun = _is_begun(journal)
                journal.close()
                if not begun:  # nothing is lost: the data set could not be opened
                    shutil.rmtree(work)
            shutil.rmtree(work)
    except sqlite3.Error as error:  # the disk is full, or the like
        raise OSError(f"'{out / '.work'}' cannot be written ({error}): the same command goes on from there") from error
    except Timeout:
        raise BlockingIOError(
            f"another preparation into '{out}' is running: wait for it, or give another folder as --out"
        ) from None
    return _not_empty(manifest, out)


def _versions(device: str | None) -> dict[str, str]:
    """What the last digits of a face depend on: a preparation goes on with the same."""
    packages = ("idface", "torch", "facenet-pytorch", "opencv-python-headless", "pillow", "pyarrow")
    return {"device": device_or_default(device)} | {package: version(package) for package in packages}


def _not_empty(manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    if not manifest["counts"]["prepared"]:
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in manifest["counts"]["rejected"].items())
        raise NothingPrepared(f"not one photo was prepared: {reasons or 'there is none'}; see '{out / 'rejected.csv'}'")
    return manifest


def _finished(
    out: Path, asked: Mapping[str, Any], open_set: Callable[[Path], FaceDataModule], root: Path | None
) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text("utf-8"))
    _check_same(out, manifest.get("settings", {}), asked, "a set that was prepared")
    shutil.rmtree(out / ".work", ignore_errors=True)  # left if the end itself was interrupted
    if not manifest["source"]["archives"]:
        photos, _ = open_set(root or Path()).wanted_photos()
        if _digest(photos) != manifest["source"]["names_sha256"]:
            raise ValueError(
                f"'{out}' was prepared from other photos ({manifest['counts']['photos']:,} then, {len(photos):,} in "
                f"'{root}' now): give another folder as --out"
            )
    log.warning("'%s' was prepared before, from the same photos with the same options: nothing is done", out)
    return manifest


def _digest(photos: Iterable[Photo]) -> str:
    """A checksum of what photos are called, in order."""
    digest = sha256()
    for photo in photos:
        digest.update(photo.name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _check_same(out: Path, before: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    differing = [
        f"{key} was {before.get(key)}, now {asked.get(key)}"
        for key in asked.keys() | before.keys()
        if before.get(key) != asked.get(key)
    ]
    if differing:
        raise ValueError(
            f"'{out}' holds {what} in another way ({'; '.join(sorted(differing))}): give the options it was begun "
            "with, or another folder as --out"
        )


def _check_empty(out: Path) -> None:
    there = [path.name for path in out.iterdir() if path.name != ".lock"]
    if there:
        raise ValueError(f"'{out}' holds {len(there)} other files, {min(there)} among them: give a new folder as --out")


def _is_begun(journal: Journal) -> bool:
    """Whether a preparation got as far as opening the data set."""
    return any(journal.fact(key) is not None for key in ("labels", "unpacked"))


def _check_begun(journal: Journal, asked: Mapping[str, Any], out: Path) -> None:
    """See that an interrupted preparation goes on as it was begun."""
    if _is_begun(journal) and (before := journal.fact("asked")) is not None:
        _check_same(out, before, asked, "a preparation that was begun")
    else:
        journal.note("asked", asked)


def _open(
    journal: Journal, open_set: Callable[[Path], FaceDataModule], root: Path | None, unpacked: Path
) -> FaceDataModule:
    """Open the data set; from its archives, if without them it has no photos."""
    if root is None:
        return open_set(Path())
    if journal.fact("unpacked"):
        return open_set(unpacked)
    files = [root] if root.is_file() else sorted([*root.glob("*.*"), *root.glob("*/*.*")])
    archives = [path for path in files if path.suffix.lower() in ARCHIVE_SUFFIXES and is_archive(path)]
    if not archives:
        try:
            return open_set(root)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not root.is_file():
                raise
            raise ValueError(
                f"root: '{root}' is a file, but no archive (zip, tar, tar.gz, tar.bz2, tar.xz): give the set's folder"
            ) from error
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # what is wrong will show with the archives
        data = open_set(root)
        if any(isinstance(entry, Photo) for entry in data.list_photos()):
            return data
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    folder = root.parent if root.is_file() else root
    with journal.transaction():
        for archive in archives:
            log.warning("Unpacking '%s', until the preparation is done", archive)
            journal.leave_out(unpack(archive, unpacked / archive.parent.relative_to(folder)))
        # After the archives, which must not write through a link; file by file, for readers do not follow those to
        # folders.
        for path in [] if root.is_file() else files_below(root):
            link = unpacked / path.relative_to(root)
            if path not in archives and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        try:
            data = open_set(unpacked)
        except (FileNotFoundError, ValueError) as error:
            packed = ", ".join(f"'{path.name}'" for path in archives)
            raise ValueError(
                f"{str(error).replace(str(unpacked), str(root))} (with {packed} unpacked; what lies beside an "
                "archive is only seen if --root is the folder that holds both)"
            ) from error
        os.sync()  # a power cut must not leave empty files behind what is noted next
        journal.note("unpacked", [path.name for path in archives])
    return data


def _plan(journal: Journal, data: FaceDataModule) -> None:
    """Note what is to be done, if that is not done yet."""
    if journal.fact("labels") is not None:
        return
    data.partition([])  # a damaged list is better found now
    with journal.transaction():
        photos, left_out = data.wanted_photos()
        journal.plan(itertools.chain(photos, left_out))
        journal.note("names", _digest(photos))
        some = journal.photos(0, 1)
        labels = data.labels(some) if some else {}
        journal.note("labels", {key: math.prod(column.shape[1:]) * (column.ndim > 1) for key, column in labels.items()})


@dataclass
class _Preparation:
    """A preparation that is under way.

    Attributes:
        journal: what has been done.
        data: the data set.
        out: the folder to write.
        shard_size: photos that make a shard.
    """

    journal: Journal
    data: FaceDataModule
    out: Path
    shard_size: int

    def __post_init__(self) -> None:
        self.total = self.journal.count_photos()
        self.labels: dict[str, int] = self.journal.fact("labels")
        self.schema = schema_of(self.labels)

    def make_shards(self, engine: Engine, worker: FaceWorker, workers: int | None) -> None:
        """Work on the photos that nobody has worked on yet, and write every shard as soon as its chunks are there."""
        (self.out / SHARDS).mkdir(exist_ok=True)
        self._check_shards()
        number, last = sum(1 for _ in self.journal.shards()), -(-self.total // self.shard_size)
        columns = (
            TextColumn("Preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}, {task.fields[rejected]:,} rejected"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        missing = {shard: self._missing(shard) for shard in range(number, last)}
        waiting = sum(self._photos_in(chunk) for chunks in missing.values() for chunk in chunks)
        with Progress(*columns) as progress, ExitStack() as stack:
            rejected = sum(self.journal.count_rejected().values())
            task = progress.add_task(
                "", total=self.total, completed=self.total - waiting, speed="starting", rejected=rejected
            )
            results = stack.enter_context(closing(engine(worker, self._chunks(missing), workers)))
            while number < last:
                if not missing[number]:
                    with self.journal.transaction():
                        self._make_shard(number)
                    number += 1
                    rejected = sum(self.journal.count_rejected().values())
                    progress.update(task, rejected=rejected)
                    continue
                chunk, result = next(results)
                self.journal.keep(chunk, result)
                missing[chunk * CHUNK // self.shard_size].discard(chunk)
                rejected += count_rejected(result)
                progress.advance(task, self._photos_in(chunk))
                speed = progress.tasks[task].speed
                progress.update(task, speed="" if speed is None else f"{speed:.1f} photos/s", rejected=rejected)

    def _check_shards(self) -> None:
        for shard, _ in self.journal.shards():
            file = self.out / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"'{file}' is not as it was written: take '{self.out}' away and begin anew, or put the file back"
                )

    def _photos_in(self, chunk: int) -> int:
        return min(CHUNK, self.total - chunk * CHUNK)

    def _range(self, shard: int) -> tuple[int, int]:
        """The numbers of a shard's photos: the first, and the one after the last."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.total)

    def _missing(self, shard: int) -> set[int]:
        start, stop = self._range(shard)
        chunks = range(start // CHUNK, -(-stop // CHUNK))
        return set(chunks) - self.journal.kept(chunks.start, chunks.stop)

    def _chunks(self, missing: Mapping[int, set[int]]) -> Iterator[Chunk]:
        for shard, wanted in missing.items():
            start, stop = self._range(shard)
            photos = self.journal.photos(start, stop) if wanted else []
            hints = self.data.hints(photos)
            for chunk in sorted(wanted):
                some = photos[chunk * CHUNK - start : (chunk + 1) * CHUNK - start]
                yield Chunk(chunk, some, {photo.name: hints[photo.name] for photo in some if photo.name in hints})

    def _make_shard(self, number: int) -> None:
        """Write a shard from the results of its chunks, and note what it rejects."""
        start, stop = self._range(number)
        photos = self.journal.photos(start, stop)
        known = {key: column.numpy() for key, column in self.data.labels(photos).items()}
        hints = self.data.hints(photos)
        uses = self.data.partition([photo for photo in photos if photo.person is not None])
        writer = ShardWriter(self.out / SHARDS / f"{number:05d}.parquet", self.schema)
        first, last = start // CHUNK, -(-stop // CHUNK)
        results = (row for chunk in range(first, last) for row in unpack_result(self.journal.result(chunk)))
        for i, (photo, row) in enumerate(zip(photos, results, strict=True)):
            found = {key: row[key] for key in ("photo_box", "photo_landmarks")}
            reason = row["reason"] or _repeats(
                self.journal, photo, row["photo_sha256"], hints.get(photo.name), start + i
            )
            if reason is not None:
                self.journal.reject(start + i, reason.partition(":")[0], printable(reason), found)
                continue
            name = printable(photo.name)
            person = photo.person and printable(photo.person)
            place = {"name": name, "person": person, "partition": uses.get(photo.person or "")}
            values = {key: _label(column[i]) for key, column in known.items()}
            picture = {"bytes": row["image"], "path": name}
            points = {key: as_points(row[key]) for key in ("landmarks", "photo_landmarks")}
            content = {"image": picture, "photo_sha256": row["photo_sha256"].hex()}
            writer.add(row | place | values | points | content)
            self.journal.sample(sha256(name.encode()).digest(), start + i, found, row["image"], FACES)
        shard, places = writer.close()
        self.journal.keep_shard(number, shard, places)
        self.journal.forget(first, last)

    def finish(self, asked: Mapping[str, Any], made_with: Mapping[str, str]) -> dict[str, Any]:
        """Write all that is not a shard, the manifest last, and give the manifest."""
        journal, data, out = self.journal, self.data, self.out
        write_index(out / INDEX, out, self.schema, journal.shards())
        root = getattr(data, "root", Path())
        kinds: Counter[str] = Counter()
        write_text(out / "rejected.csv", _rejected_lines(journal, root, data.exclude, kinds))
        samples = journal.samples(FACES)
        write_contact_sheet(out / "contact_sheet.png", samples)
        write_detection_sheet(out / "detection_sheet.png", journal.some_rejected(_REJECTED_PER_KIND), samples[::3])
        shards = [shard for shard, _ in journal.shards()]
        prepared = sum(shard["rows"] for shard in shards)
        manifest = {
            "format": FORMAT,
            "made_with": dict(made_with),
            "source": {
                "name": asked["source"],
                "module": type(data).__name__,
                "licence": data.licence,
                "archives": journal.fact("unpacked") or [],
                "names_sha256": journal.fact("names"),
            },
            "settings": dict(asked),
            "counts": {
                "photos": self.total,
                "prepared": prepared,
                "people": _count_people(out / INDEX),
                "rejected": dict(sorted(kinds.items())),
            },
            "labels": {key: length or None for key, length in self.labels.items()},
            "attribute_names": list(getattr(data, "attribute_names", [])),
            "shards": shards,
            "files": {name: describe(out / name) for name in (INDEX, "rejected.csv")},
        }
        write_text(out / "README.md", [_card(manifest)])
        write_text(out / MANIFEST, [json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"])
        return manifest


def _repeats(journal: Journal, photo: Photo, digest: bytes, hint: Hint | None, number: int) -> str | None:
    """Why a photo is left out whose content an earlier one has; another box in the same file is another face."""
    if hint is not None and hint.box is not None:
        digest = sha256(digest + repr(tuple(map(float, hint.box))).encode()).digest()
    earlier = journal.first(digest, number)
    if earlier == number:
        return None
    (same,) = journal.photos(earlier, earlier + 1)
    other = "" if same.person in (photo.person, None) else f", as a photo of {same.person}"
    return f"duplicate: the same file as {same.name}{other}"


def _label(value: np.ndarray) -> float | list[float | None] | None:
    known = [None if np.isnan(each) else float(each) for each in value.reshape(-1)]
    return known if value.ndim else known[0]


def _rejected_lines(journal: Journal, root: Path, exclude: Path | None, kinds: Counter[str]) -> Iterator[str]:
    """The table of rejected files; counts the kinds of reasons on the way."""

    def line(*fields: str) -> str:
        text = io.StringIO()
        csv.writer(text).writerow([printable(field) for field in fields])
        return text.getvalue()

    yield line("name", "person", "reason")
    for path, reason in journal.left_out():
        # The manifest and its companions tell nothing of the machine they were made on.
        if reason.endswith(f" is named in {exclude}"):
            kinds["people to leave out"] += 1
            reason = reason.removesuffix(f" in {exclude}") + " in the list of people to leave out"
        else:
            kinds["files that are no photos of the set, or that its own rules leave out"] += 1
        yield line(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name, "", reason)
    for photo, kind, reason in journal.rejected():
        kinds[kind] += 1
        yield line(photo.name, photo.person or "", reason)


def _count_people(index: Path) -> int:
    people = pq.ParquetFile(index)
    seen: set[str] = set()
    for batch in people.iter_batches(columns=["person"]):
        seen.update(person for person in batch["person"].to_pylist() if person is not None)
    return len(seen)


def _card(manifest: Mapping[str, Any]) -> str:
    """The set's README; the lines between the dashes tell the Hugging Face library which files to open."""
    counts, source, settings = manifest["counts"], manifest["source"], manifest["settings"]
    rejected = "".join(f"- {count:,}: {kind}\n" for kind, count in counts["rejected"].items()) or "- none\n"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {SHARDS}/*.parquet
---

# Aligned faces of `{source["name"]}`

{counts["prepared"]:,} photos of real people ({counts["people"]:,} known ones), {settings["size"]} pixels a side, in the
common aligned frame of idface {manifest["made_with"]["idface"]}. All are under the one split that the Hugging Face
library wants to see, "train"; the column `partition` holds the set's own split where it has one.

Licence of the photos: {source["licence"]}

    idface verify --data prepared --root .          # counts and checksums
    datasets.load_dataset(".")                      # Hugging Face
    pandas.read_parquet("{SHARDS}")                 # or index.parquet, without the pictures
    duckdb.sql("SELECT person, count(*) FROM '{SHARDS}/*.parquet' GROUP BY person")

| column | what it holds |
|---|---|
| `image` | the picture: `bytes`, and `path`, its name |
| `name`, `person` | the photo's name in the set; who it shows, null if unknown |
| `partition` | train, val or test, where the set comes with a split |
| `sex`, `age`, `attributes`, ... | labels, if the set has them: sex 1 male, -1 female; years; 1 present, -1 absent |
| `landmarks` | left eye, right eye, nose, left and right corner of the mouth (the viewer's left): x, y in pixels |
| `photo_...` | the original: its size, the same points and the face's box in its pixels, SHA-256 of the file |
| `probability`, `faces` | how sure the detector was, and how many faces it saw; null where the set gave the points |
| `shard`, `offset`, `length` | in `index.parquet`: where the picture's bytes lie |

Of {counts["photos"]:,} photos and the files that are none, these were left out (`rejected.csv` has each with its
reason, `detection_sheet.png` shows some):

{rejected}"""
