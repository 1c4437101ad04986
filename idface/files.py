"""Files that are there whole or not at all."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """A JSON file, there whole or as it was before."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, there whole or as it was before, and as readable to others as any other file."""
    from safetensors.torch import save_file

    with whole_file(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(dict(tensors), unfinished, None if metadata is None else dict(metadata))
        unfinished.chmod(mode)  # safetensors lets nobody else read
