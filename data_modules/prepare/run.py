"""The whole preparation: from a data set as it was published to shards of aligned faces."""

import csv
import io
import itertools
import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.base import FaceDataModule
from data_modules.photos import Photo
from data_modules.prepare.archives import is_archive, unpack
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
    printable,
    schema_of,
    write_index,
    write_text,
)
from data_modules.prepare.sheets import FACES, write_contact_sheet, write_detection_sheet
from data_modules.prepare.worker import Chunk, FaceWorker, Settings, count_rejected, unpack_result

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
    root: Path,
    source: str,
    out: Path,
    settings: Settings,
    *,
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
        root: the data set's folder. Archives in it, or an archive in its place, are unpacked inside `out` for the time
            being if the folder alone is not what the data module expects.
        source: what the manifest calls it, such as "lfw".
        out: the folder to write; see `data_modules.prepare.shards` for what it holds.
        settings: what the faces look like.
        engine: where the work is done.
        workers: processes; None for one a core.
        device: where the detector runs; None for a GPU if there is one.
        shard_size: photos that make a shard, a multiple of CHUNK.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError, ValueError: the data set is not as it should be.
        ValueError: the folder to write holds something else, or a preparation with other settings.
        RuntimeError: another preparation into the folder is running.
        NothingPrepared: not one photo could be used; the folder says why for each.
    """
    if shard_size < CHUNK or shard_size % CHUNK:
        raise ValueError(f"shard_size is {shard_size}, expected a multiple of {CHUNK}")
    workers = workers or len(os.sched_getaffinity(0))
    asked = {"source": source, "shard_size": shard_size, **settings.as_dict()}
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if (out / MANIFEST).is_file():
                return _finished(out, asked)
            work = out / ".work"
            if not work.is_dir():
                _check_empty(out)
            work.mkdir(exist_ok=True)
            journal = Journal(work / "journal.sqlite")
            try:
                _check_begun(journal, {**asked, "root": str(root.absolute())}, out)
                data = _open(journal, open_set, root, work / "source")
                _plan(journal, data)
                worker = FaceWorker(settings, data.check(), device)
                _make_shards(journal, data, worker, engine, workers, out, shard_size)
                manifest = _finish(journal, data, asked, out)
            finally:
                journal.close()
            shutil.rmtree(work)
    except Timeout:
        raise RuntimeError(
            f"another preparation into '{out}' is running: wait for it, or give another folder as --out"
        ) from None
    if not manifest["counts"]["prepared"]:
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in manifest["counts"]["rejected"].items())
        raise NothingPrepared(f"not one photo was prepared: {reasons or 'there is none'}; see '{out / 'rejected.csv'}'")
    return manifest


def _finished(out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text("utf-8"))
    _check_same(out, manifest.get("settings", {}), asked, "a set that was prepared")
    shutil.rmtree(out / ".work", ignore_errors=True)  # left if the end itself was interrupted
    log.info("'%s' is prepared already", out)
    return manifest


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


def _check_begun(journal: Journal, asked: Mapping[str, Any], out: Path) -> None:
    """See that an interrupted preparation goes on as it was begun."""
    if (before := journal.fact("asked")) is not None:
        _check_same(out, before, asked, "a preparation that was begun")
    else:
        journal.note("asked", asked)


def _open(journal: Journal, open_set: Callable[[Path], FaceDataModule], root: Path, unpacked: Path) -> FaceDataModule:
    """Open the data set, from its archives if they are not unpacked."""
    if journal.fact("unpacked"):
        return open_set(unpacked)
    archives = [root] if root.is_file() else sorted(path for path in root.glob("*") if path.is_file())
    archives = [path for path in archives if is_archive(path)]
    if not root.is_file():
        try:
            return open_set(root)
        except FileNotFoundError:
            if not archives:
                raise
    elif not archives:
        return open_set(root)  # some sets are a file
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    with journal.transaction():
        for archive in archives:
            log.warning("Unpacking %s, until the preparation is done", archive)
            journal.leave_out(unpack(archive, unpacked))
        # After the archives, which must not write through a link.
        for path in root.iterdir() if root.is_dir() else ():
            if path not in archives and not (unpacked / path.name).exists():
                (unpacked / path.name).symlink_to(path.absolute())
        data = open_set(unpacked)
        journal.note("unpacked", [path.name for path in archives])
    return data


def _plan(journal: Journal, data: FaceDataModule) -> None:
    """Note what is to be done, if that is not done yet."""
    if journal.fact("labels") is not None:
        return
    with journal.transaction():
        journal.plan(itertools.chain(*data.wanted_photos()))
        some = journal.photos(0, 1)
        labels = data.labels(some) if some else {}
        journal.note("labels", {key: math.prod(column.shape[1:]) * (column.ndim > 1) for key, column in labels.items()})


def _make_shards(
    journal: Journal,
    data: FaceDataModule,
    worker: FaceWorker,
    engine: Engine,
    workers: int,
    out: Path,
    shard_size: int,
) -> None:
    (out / SHARDS).mkdir(exist_ok=True)
    total = journal.count_photos()
    labels = journal.fact("labels")
    schema = schema_of(labels)
    done = sum(1 for _ in journal.shards())
    columns = (
        TextColumn("Preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}, {task.fields[rejected]:,} rejected"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns) as progress:
        rejected = sum(journal.count_rejected().values())
        task = progress.add_task("", total=total, completed=min(done * shard_size, total), speed="", rejected=rejected)
        for number in range(done, -(-total // shard_size)):
            start, stop = number * shard_size, min((number + 1) * shard_size, total)
            photos = journal.photos(start, stop)
            first, last = start // CHUNK, -(-stop // CHUNK)
            kept = journal.kept(first, last)
            before = start + sum(min(CHUNK, stop - chunk * CHUNK) for chunk in kept)
            progress.update(task, completed=before, refresh=True)
            unusable = sum(count_rejected(journal.result(chunk)) for chunk in kept)
            chunks = _chunks(data, photos, start, [chunk for chunk in range(first, last) if chunk not in kept])
            for chunk, result in engine(worker, chunks, workers):
                journal.keep(chunk, result)
                progress.advance(task, min(CHUNK, stop - chunk * CHUNK))
                unusable += count_rejected(result)
                speed = progress.tasks[task].speed
                progress.update(
                    task, speed="" if speed is None else f"{speed:.1f} photos/s", rejected=rejected + unusable
                )
            with journal.transaction():
                rejected += _make_shard(journal, data, photos, start, schema, labels, out, number)
            progress.update(task, rejected=rejected)


def _chunks(data: FaceDataModule, photos: list[Photo], start: int, wanted: Iterable[int]) -> Iterator[Chunk]:
    hints = data.hints(photos)
    for chunk in wanted:
        some = photos[chunk * CHUNK - start : (chunk + 1) * CHUNK - start]
        yield Chunk(chunk, some, {photo.name: hints[photo.name] for photo in some if photo.name in hints})


def _make_shard(
    journal: Journal,
    data: FaceDataModule,
    photos: list[Photo],
    start: int,
    schema: pa.Schema,
    labels: Mapping[str, int],
    out: Path,
    number: int,
) -> int:
    """Write a shard from the results of its chunks, and note what it rejects; gives how many."""
    known = {key: column.numpy() for key, column in data.labels(photos).items()}
    uses = data.partition([photo for photo in photos if photo.person is not None])
    writer = ShardWriter(out / SHARDS / f"{number:05d}.parquet", schema)
    first, last = start // CHUNK, -(-(start + len(photos)) // CHUNK)
    results = (row for chunk in range(first, last) for row in unpack_result(journal.result(chunk)))
    rejected = 0
    for i, (photo, row) in enumerate(zip(photos, results, strict=True)):
        found = {key: row[key] for key in ("photo_box", "photo_landmarks")}
        reason = row["reason"] or _repeats(journal, photo, row["photo_sha256"], start + i)
        if reason is not None:
            journal.reject(start + i, reason.partition(":")[0], printable(reason) or "", found)
            rejected += 1
            continue
        name = printable(photo.name) or ""
        place = {"name": name, "person": printable(photo.person), "partition": uses.get(photo.person or "")}
        values = {key: _label(column[i]) for key, column in known.items()}
        picture = {"bytes": row["image"], "path": name}
        points = {key: as_points(row[key]) for key in ("landmarks", "photo_landmarks")}
        content = {"image": picture, "photo_sha256": row["photo_sha256"].hex()}
        writer.add(row | place | values | points | content)
        journal.sample(sha256(name.encode()).digest(), start + i, found, row["image"], FACES)
    shard, places = writer.close()
    journal.keep_shard(number, shard, places)
    journal.forget(first, last)
    return rejected


def _repeats(journal: Journal, photo: Photo, digest: bytes, number: int) -> str | None:
    """Why a photo is left out whose content an earlier one has."""
    earlier = journal.first(digest, number)
    if earlier == number:
        return None
    (same,) = journal.photos(earlier, earlier + 1)
    other = "" if same.person == photo.person else f", as a photo of {same.person}"
    return f"duplicate: the same file as {same.name}{other}"


def _label(value: np.ndarray) -> float | list[float] | None:
    if value.ndim:
        return [float(each) for each in value.reshape(-1)]
    return None if np.isnan(value) else float(value)


def _finish(journal: Journal, data: FaceDataModule, asked: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write all that is not a shard; the manifest last."""
    labels = journal.fact("labels")
    write_index(out / INDEX, out, schema_of(labels), journal.shards())
    root = getattr(data, "root", Path())
    kinds: Counter[str] = Counter()
    write_text(out / "rejected.csv", _rejected_lines(journal, root, kinds))
    samples = journal.samples(FACES)
    write_contact_sheet(out / "contact_sheet.png", samples)
    write_detection_sheet(out / "detection_sheet.png", journal.some_rejected(_REJECTED_PER_KIND), samples[::3])
    shards = [shard for shard, _ in journal.shards()]
    prepared = sum(shard["rows"] for shard in shards)
    manifest = {
        "format": FORMAT,
        "idface": version("idface"),
        "source": {"name": asked["source"], "module": type(data).__name__, "licence": data.licence},
        "settings": dict(asked),
        "counts": {
            "photos": journal.count_photos(),
            "prepared": prepared,
            "people": _count_people(out / INDEX),
            "rejected": dict(sorted(kinds.items())),
        },
        "labels": {key: length or None for key, length in labels.items()},
        "attribute_names": list(getattr(data, "attribute_names", [])),
        "shards": shards,
        "files": {name: describe(out / name) for name in (INDEX, "rejected.csv")},
    }
    write_text(out / "README.md", [_card(manifest)])
    write_text(out / MANIFEST, [json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"])
    return manifest


def _rejected_lines(journal: Journal, root: Path, kinds: Counter[str]) -> Iterator[str]:
    """The table of rejected files; counts the kinds of reasons on the way."""

    def line(*fields: str) -> str:
        text = io.StringIO()
        csv.writer(text).writerow([printable(field) for field in fields])
        return text.getvalue()

    yield line("name", "person", "reason")
    for path, reason in journal.left_out():
        kinds["left out by the set's own rules"] += 1
        # The manifest and its companions tell nothing of the machine they were made on.
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
common aligned frame of idface {manifest["idface"]}. All are under the one split that the Hugging Face library wants to
see, "train"; the column `partition` holds the set's own split where it has one.

Licence of the photos: {source["licence"]}

    idface verify --data prepared --root .          # counts and checksums
    datasets.load_dataset(".")                      # Hugging Face
    pandas.read_parquet("{SHARDS}")                 # or index.parquet, without the pictures
    duckdb.sql("SELECT person, count(*) FROM '{SHARDS}/*.parquet' GROUP BY person")

Of {counts["photos"]:,} photos and the files that are none, these were left out (`rejected.csv` has each with its
reason, `detection_sheet.png` shows some):

{rejected}"""
