"""Prepared faces on disk: Parquet shards, and an index of where in them the pictures lie.

OUT/README.md               what the set is, and how to open it; the Hugging Face `datasets` library reads its head
OUT/manifest.json           settings, counts, checksums, where the photos are from; written last
OUT/index.parquet           a row a face: all but the picture, and where the picture lies
OUT/shards/00000.parquet    the faces
OUT/rejected.csv            every photo that was left out, and why
OUT/contact_sheet.png       some of the faces
OUT/detection_sheet.png     some of the photos with what was found in them, rejected ones first
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
"""Version of the layout, in the manifest."""

MANIFEST, INDEX, SHARDS = "manifest.json", "index.parquet", "shards"

_ROWS, _BYTES = 1024, 2**26  # of a row group, at most

_POINTS = pa.list_(pa.list_(pa.float32()))
_COLUMNS = {
    "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),  # as the Hugging Face library stores pictures
    "name": pa.string(),
    "person": pa.string(),
    "partition": pa.string(),
    "landmarks": _POINTS,
    "photo_width": pa.int32(),
    "photo_height": pa.int32(),
    "photo_landmarks": _POINTS,
    "photo_box": pa.list_(pa.float32()),
    "photo_sha256": pa.string(),
    "probability": pa.float32(),
    "faces": pa.int16(),
}


def schema_of(labels: Mapping[str, int]) -> pa.Schema:
    """The columns of a shard.

    Args:
        labels: for each label of the set the length of its vector; 0 for a number.
    """
    extra = {key: pa.list_(pa.float32()) if length else pa.float32() for key, length in labels.items()}
    names = list(_COLUMNS)
    at = names.index("landmarks")
    columns = {name: _COLUMNS[name] for name in names[:at]} | extra | {name: _COLUMNS[name] for name in names[at:]}
    schema = pa.schema(columns)
    features = {field.name: _feature(field.type) for field in schema} | {"image": {"_type": "Image"}}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> Any:
    """A column's type in the words of the Hugging Face library."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}


class ShardWriter:
    """Writes one shard; `close` says what came of it.

    Args:
        file: the shard; it is there once it is whole, and in place of an earlier one.
        schema: its columns.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.file = file
        self.schema = schema
        self._lengths: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._unfinished = _unfinished(file)
        columns = _leaves(schema)
        self._writer = pq.ParquetWriter(
            self._unfinished,
            schema,
            # Pictures are compressed as they are, and lie in the file as they are, so that one can be read alone.
            compression={column: "NONE" if column == "image.bytes" else "ZSTD" for column in columns},
            use_dictionary=[column for column in columns if column in ("person", "partition")],
            write_statistics=[column for column in columns if column != "image.bytes"],
        )

    def add(self, row: dict[str, Any]) -> None:
        """Add a face; `row` holds a value a column."""
        length = len(row["image"]["bytes"])
        self._rows.append(row)
        self._lengths.append(length)
        self._bytes += length
        if len(self._rows) == _ROWS or self._bytes > _BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema))
        self._rows, self._bytes = [], 0

    def close(self) -> tuple[dict[str, Any], bytes]:
        """Finish the shard.

        Returns:
            What the manifest says of it, and int64 (rows, 2) of where each picture begins and how long it is.
        """
        self._flush()
        self._writer.close()
        places = np.array(list(zip(_offsets(self._unfinished), self._lengths, strict=True)), np.int64).reshape(-1, 2)
        described = {"file": f"{SHARDS}/{self.file.name}", "rows": len(places), **describe(self._unfinished)}
        put_in_place(self._unfinished, self.file)
        return described, places.tobytes()


def _leaves(schema: pa.Schema) -> list[str]:
    """The dotted names of the columns as Parquet stores them."""

    def below(name: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from below(f"{name}.{field.name}", field.type)
        elif pa.types.is_list(kind):
            yield from below(f"{name}.list.element", kind.value_type)
        else:
            yield name

    return [leaf for field in schema for leaf in below(field.name, field.type)]


def _offsets(file: Path) -> Iterator[int]:
    """Where in a shard each picture begins: it is looked for behind the one before, from where its column begins."""
    if file.stat().st_size == 0:
        return
    shard = pq.ParquetFile(file, memory_map=True)
    column = _leaves(shard.schema_arrow).index("image.bytes")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in range(shard.num_row_groups):
            position = shard.metadata.row_group(group).column(column).data_page_offset
            for picture in shard.read_row_group(group, columns=["image.bytes"])["image"]:
                picture = picture["bytes"].as_py()
                position = content.find(picture, position)
                assert position >= 0, "the column of pictures is stored as it is"
                yield position
                position += len(picture)


def write_index(file: Path, folder: Path, schema: pa.Schema, shards: Iterable[tuple[Mapping[str, Any], bytes]]) -> None:
    """Gather all shards' rows without their pictures into one file.

    Args:
        file: the index to write.
        folder: of the prepared set.
        schema: of the shards.
        shards: as ShardWriter.close gave them.
    """
    kept = [field for field in schema if field.name != "image"]
    columns = [*kept, pa.field("shard", pa.int32()), pa.field("offset", pa.int64()), pa.field("length", pa.int64())]
    with whole_file(file) as unfinished, pq.ParquetWriter(unfinished, pa.schema(columns), compression="ZSTD") as writer:
        for number, (shard, places) in enumerate(shards):
            start, where = 0, np.frombuffer(places, np.int64).reshape(-1, 2)
            rows = pq.ParquetFile(folder / shard["file"]).iter_batches(_ROWS, columns=[field.name for field in kept])
            for batch in rows:
                there = where[start : start + len(batch)]
                start += len(batch)
                place = [np.full(len(batch), number, np.int32), there[:, 0], there[:, 1]]
                writer.write_batch(
                    pa.RecordBatch.from_arrays([*batch.columns, *map(pa.array, place)], schema=pa.schema(columns))
                )


def describe(file: Path) -> dict[str, Any]:
    """A file's size and checksum, for the manifest."""
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": file_digest(opened, "sha256").hexdigest()}


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives the path to write to; what was written gets the name of `file` at the end."""
    unfinished = _unfinished(file)
    yield unfinished
    put_in_place(unfinished, file)


def _unfinished(file: Path) -> Path:
    return file.with_name(f".{file.name}.unfinished")


def put_in_place(unfinished: Path, file: Path) -> None:
    """Give a finished file its name; after a power cut it is there whole or not at all."""
    _sync(unfinished)
    unfinished.replace(file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    """See that what was written to a file, or renamed in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, lines: Iterable[str]) -> None:
    """Write a text file that is there whole or not at all."""
    with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as opened:
        opened.writelines(lines)


def as_points(flat: Sequence[float]) -> list[list[float]]:
    """Ten numbers as five points."""
    return [list(flat[i : i + 2]) for i in range(0, 10, 2)]
