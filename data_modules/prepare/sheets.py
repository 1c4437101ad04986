"""Pictures that show a preparation at a glance."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_modules.files import printable
from data_modules.photos import Photo, PhotoError, open_photo
from data_modules.prepare.engines import CRASHED
from data_modules.prepare.shards import whole_file

FACES, PER_ROW = 120, 12
"""How many faces the contact sheet shows."""

_FACE, _TILE, _TEXT = 96, 160, 36  # pixels: sides of pictures, height of what is written below
_FOUND, _REJECTED = (40, 220, 90), (240, 60, 60)


def write_contact_sheet(file: Path, samples: Sequence[tuple[Photo, Mapping[str, Any], bytes]]) -> None:
    """Write a sheet of prepared faces with the names of their people.

    Args:
        file: the PNG to write.
        samples: photo, what was found in it, and the face's image file.
    """
    tiles = []
    for photo, _, content in samples:
        with Image.open(io.BytesIO(content)) as face:
            tiles.append(_tile(face, _FACE, [_words(photo.person or photo.name)]))
    _write(file, tiles, PER_ROW)


def write_detection_sheet(
    file: Path,
    rejected: Sequence[tuple[Photo, str, Mapping[str, Any]]],
    samples: Sequence[tuple[Photo, Mapping[str, Any], bytes]],
) -> None:
    """Write a sheet of photos with the box and the landmarks found in each, and the reason under rejected ones.

    Args:
        file: the PNG to write.
        rejected: photo, reason, and what was found.
        samples: photo, what was found in it, and the face's image file.
    """
    tiles = [_marked(photo, found, reason) for photo, reason, found in rejected]
    tiles += [_marked(photo, found, None) for photo, found, _ in samples]
    _write(file, tiles, 8)


def _marked(photo: Photo, found: Mapping[str, Any], reason: str | None) -> Image.Image:
    colour = _FOUND if reason is None else _REJECTED
    try:
        if reason == CRASHED:  # it would again, here
            raise PhotoError(reason)
        image = open_photo(photo)
    except PhotoError:
        image = Image.new("RGB", (_TILE, _TILE), (70, 70, 70))
    scale = _TILE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    if box := found.get("photo_box"):
        draw.rectangle([value * scale for value in box], outline=colour, width=2)
    points = np.array(found.get("photo_landmarks") or []).reshape(-1, 2) * scale
    for x, y in points.tolist():
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return _tile(image, _TILE, [_words(photo.name), *([] if reason is None else [_words(reason)])], colour)


def _tile(
    picture: Image.Image, side: int, lines: Sequence[str], colour: tuple[int, int, int] = (200, 200, 200)
) -> Image.Image:
    tile = Image.new("RGB", (side, side + _TEXT), (24, 24, 24))
    scale = side / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(9)
    y = side + 1
    for number, line in enumerate(lines):
        while line and y < side + _TEXT - 8:  # broken where it no longer fits
            length = len(line)
            while draw.textlength(line[:length], font) > side - 4:
                length -= 1
            draw.text((2, y), line[:length], (200, 200, 200) if number == 0 else colour, font)
            line, y = line[length:], y + 11
            if number == 0:
                break
    return tile


def _words(text: str) -> str:
    """What can be drawn: names may hold anything."""
    shown = printable(text).encode("latin-1", "replace").decode("latin-1")
    return "".join(letter if letter.isprintable() else " " for letter in shown)[:200]


def _write(file: Path, tiles: Sequence[Image.Image], per_row: int) -> None:
    if not tiles:
        tiles = [Image.new("RGB", (_TILE, _TILE), (24, 24, 24))]
    width, height = tiles[0].size
    rows = -(-len(tiles) // per_row)
    sheet = Image.new("RGB", (min(per_row, len(tiles)) * (width + 4) + 4, rows * (height + 4) + 4), (0, 0, 0))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (4 + i % per_row * (width + 4), 4 + i // per_row * (height + 4)))
    with whole_file(file) as unfinished:
        sheet.save(unfinished, "PNG")
