"""What tests of the preparation share: sets to prepare, and engines without processes."""

import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules.orl import orl_root

REJECTED = {
    "ann/blank.png": "no face found in it",
    "ann/bomb.png": "cannot be decoded: Image size (3600000000 pixels) exceeds limit of 178956970 pixels",
    "ann/copy.pgm": "duplicate: the same file as ann/1.pgm",
    "ann/empty.jpg": "empty file",
    "ann/far, far away.png": "face too small: ",
    "ann/notes.txt": "not an image in a known format",
    "ann/tiny.png": "too small: 64x2, expected 16 pixels or more a side",
    "ann/truncated.jpg": "cannot be decoded: ",
    "ben/copy.pgm": "duplicate: the same file as ann/1.pgm, as a photo of ann",
    "ben/\\udcff.jpg": "empty file",
    "ben/nowhere.jpg": "cannot be read: ",
}
"""What `write_raw` puts among the photos, by name, and how the reason begins that is given for it."""

LEFT_OUT = {
    "ann/.hidden.png": "hidden file",
    "ben/two\nlines.png": "control characters in its name",
    "readme.txt": "not in a person's folder",
}
"""Likewise, what is no photo of the set at all."""

KEPT = {'ben/"quoted", he said.png', "ben/caf\\udce9.png"}
"""Photos with odd names that are prepared; a byte that is no UTF-8 is written so."""


def orl(person: int, photo: int) -> Path:
    """One of the ORL photos."""
    return orl_root() / f"s{person}" / f"{photo}.pgm"


def face(person: int, photo: int) -> Image.Image:
    """One of the ORL photos, as RGB."""
    with Image.open(orl(person, photo)) as image:
        return image.convert("RGB")


def write_raw(root: Path, photos: int = 5) -> Path:
    """Write four people's folders, with everything that people put into folders."""
    for person, name in enumerate(("ann", "ben", "cy", "dot"), 1):
        (root / name).mkdir(parents=True)
        for photo in range(1, photos + 1):
            shutil.copy(orl(person, photo), root / name / f"{photo}.pgm")
    ann, ben = root / "ann", root / "ben"
    Image.new("RGB", (100, 100), (90, 120, 150)).save(ann / "blank.png")
    write_bomb(ann / "bomb.png", 60_000)
    shutil.copy(ann / "1.pgm", ann / "copy.pgm")
    (ann / "empty.jpg").touch()
    far = Image.new("RGB", (200, 200), (90, 90, 90))
    far.paste(face(1, 7).resize((24, 29)), (90, 90))
    far.resize((400, 400)).resize((200, 200)).save(ann / "far, far away.png")
    (ann / "notes.txt").write_text("not a face")
    Image.new("RGB", (64, 2)).save(ann / "tiny.png")
    face(1, 8).save(ann / "truncated.jpg")
    (ann / "truncated.jpg").write_bytes((ann / "truncated.jpg").read_bytes()[:1500])
    shutil.copy(ann / "1.pgm", ben / "copy.pgm")
    (ben / "\udcff.jpg").touch()
    (ben / "nowhere.jpg").symlink_to("/nonexistent/photo.jpg")
    (ann / ".hidden.png").write_bytes(b"x")
    face(2, 7).save(ben / "two\nlines.png")
    (root / "readme.txt").write_text("photos")
    face(2, 8).save(ben / '"quoted", he said.png')
    face(2, 9).save(ben / "caf\udce9.png")
    return root


def write_bomb(file: Path, side: int) -> None:
    """Write a PNG of a few bytes that declares billions of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def in_process(worker: Any, chunks: Iterable[Any], workers: int) -> Iterator[tuple[int, bytes]]:
    """An engine without processes."""
    for chunk in chunks:
        yield chunk.number, worker(chunk)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared set but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def centre_face(image: np.ndarray) -> Any:
    """A stand-in for the detector: a face that fills most of the photo, unless it is of one colour."""
    from idface.recognition.alignment import FACE_TEMPLATE, Face

    height, width = image.shape[:2]
    points = FACE_TEMPLATE * np.array([width, height], np.float32) * 0.9
    sure = 0.999 if image.std() > 1 else 0.0
    return [Face(points, np.array([0, 0, width, height], np.float32), sure)] if sure else []
