"""Files that are there whole or not at all."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives the path to write to; what was written gets the name of `file` at the end, after a power cut as well."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    yield unfinished
    with unfinished.open("rb+") as written:
        os.fsync(written.fileno())
    unfinished.replace(file)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as CSV, there whole or as it was before."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
