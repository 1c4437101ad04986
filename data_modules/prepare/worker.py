"""What is done with photos, some at a time, wherever the engine runs it: find the face, align, encode."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_modules.files import printable
from data_modules.photos import Hint, Photo, PhotoCheck, PhotoError, Pixels, decode_photo, photo_content
from data_modules.prepare.align import NO_FACE, device_or_default
from idface.recognition.alignment import Face, FaceDetector, FaceRule, choose_face, similarity_transform, warp_face

BOX_SURROUNDINGS = 0.5
"""Where the set gives a box, the face is looked for in it and so much around it, in shares of its sides."""

_AT_ONCE = 16, 24_000_000  # photos and pixels, at most, that are in memory together


@dataclass(frozen=True)
class Settings:
    """What a prepared face depends on, beside its photo.

    Attributes:
        size: side of the pictures in pixels, margin included.
        margin: how much they show around the common aligned frame on each side, in units of the frame's side.
        face: which face of several is taken. What it is compared with is the centre of the box that the set gives, or
            the photo's centre.
        min_side: pixels; a face whose aligned frame covers fewer in the photo, a side, is too small.
        encoding: how pictures are stored.
        quality: of JPEG, 1 to 100; colours are not subsampled.
    """

    size: int = 128
    margin: float = 0.0
    face: FaceRule = "main"
    min_side: int = 32
    encoding: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("size", self.size, 16, 2048),
            ("margin", self.margin, 0, 2),
            ("min_side", self.min_side, 1, 2048),
            ("quality", self.quality, 1, 100),
        ):
            if not low <= value <= high:
                raise ValueError(f"{option} is {value}, expected {low} to {high}")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


class Chunk(NamedTuple):
    """Photos that are worked on together. The same photos make the same chunk in every run, and give the same bytes.

    Attributes:
        number: of the chunk.
        photos: the photos.
        hints: what the set says of where their faces are, by name.
    """

    number: int
    photos: list[Photo]
    hints: dict[str, Hint]


RESULT = pa.schema(
    {
        "reason": pa.string(),  # why the photo is rejected, or null
        "image": pa.binary(),
        "landmarks": pa.list_(pa.float32(), 10),  # in the picture
        "photo_width": pa.int32(),
        "photo_height": pa.int32(),
        "photo_landmarks": pa.list_(pa.float32(), 10),
        "photo_box": pa.list_(pa.float32(), 4),
        "photo_sha256": pa.binary(32),
        "probability": pa.float32(),
        "faces": pa.int16(),
    }
)
"""What becomes of a photo: a row each, in the chunk's order."""

_Row = dict[str, Any]


class Opened(NamedTuple):
    """A photo in memory.

    Attributes:
        pixels: all of it.
        corner: x and y of the part in which the face is looked for.
        part: that part.
        near: x and y where the face is expected, in pixels of the part.
    """

    pixels: Pixels
    corner: tuple[int, int]
    part: Pixels
    near: tuple[float, float]


class FaceWorker:
    """Makes faces of photos; lives in a process of its own.

    Args:
        settings: of the preparation.
        check: the set's own rules for photos.
        device: where the detector runs; None for a GPU if there is one.
    """

    def __init__(self, settings: Settings, check: PhotoCheck | None = None, device: str | None = None) -> None:
        self.settings = settings
        self.check = check
        self.device = device_or_default(device)
        self._detector: FaceDetector | None = None

    def __call__(self, chunk: Chunk) -> bytes:
        """Work on a chunk; gives a table of RESULT, as an Arrow stream."""
        rows: list[_Row] = [{} for _ in chunk.photos]
        for group in self._groups(chunk, rows):
            self._find(group, chunk, rows)
            for i, opened in group.items():
                if "reason" not in rows[i]:
                    self._finish(opened.pixels, rows[i])
        return _pack(pa.Table.from_pylist(rows, RESULT))

    def _groups(self, chunk: Chunk, rows: list[_Row]) -> Iterator[dict[int, Opened]]:
        """Open the photos, as many together as memory allows, by their place in the chunk."""
        most, most_pixels = _AT_ONCE
        group: dict[int, Opened] = {}
        pixels = 0
        for i, photo in enumerate(chunk.photos):
            try:
                content = photo_content(photo)
                rows[i]["photo_sha256"] = sha256(content).digest()
                image = decode_photo(io.BytesIO(content))
                rows[i] |= {"photo_width": image.width, "photo_height": image.height}
                if self.check is not None:
                    self.check(image)
                opened = _look_where(np.asarray(image), chunk.hints.get(photo.name, Hint()))
            except PhotoError as error:
                rows[i]["reason"] = printable(str(error))
                continue
            size = opened.pixels.shape[0] * opened.pixels.shape[1]
            if group and (len(group) == most or pixels + size > most_pixels):
                yield group
                group, pixels = {}, 0
            group[i] = opened
            pixels += size
        yield group

    def _find(self, group: Mapping[int, Opened], chunk: Chunk, rows: list[_Row]) -> None:
        """Find the landmarks of each photo's face, but for those that are known."""
        unknown: dict[int, Opened] = {}
        for i, opened in group.items():
            landmarks = chunk.hints.get(chunk.photos[i].name, Hint()).landmarks
            if landmarks is None:
                unknown[i] = opened
            else:
                rows[i]["photo_landmarks"] = np.array(landmarks, np.float32).reshape(-1)
        if not unknown:
            return
        for i, faces in zip(unknown, self._detect([opened.part for opened in unknown.values()]), strict=True):
            rows[i]["faces"] = 0 if isinstance(faces, PhotoError) else len(faces)
            chosen = None if isinstance(faces, PhotoError) else choose_face(faces, unknown[i].near, self.settings.face)
            if chosen is None:
                rows[i]["reason"] = str(faces) if isinstance(faces, PhotoError) else NO_FACE
                continue
            x, y = unknown[i].corner
            rows[i] |= {
                "photo_landmarks": (chosen.landmarks + np.array([x, y], np.float32)).reshape(-1),
                "photo_box": chosen.box + np.array([x, y, x, y], np.float32),
                "probability": chosen.probability,
            }

    def _detect(self, images: Sequence[Pixels]) -> list[list[Face] | PhotoError]:
        if self._detector is None:  # made late: sets with landmarks need none
            self._detector = FaceDetector(self.device)
        try:
            return list(self._detector.find(images))
        except (ValueError, IndexError, cv2.error) as error:  # what a photo of an odd shape brings up
            if len(images) == 1:
                return [PhotoError(f"cannot be searched for a face: {error}")]
            return [self._detect([image])[0] for image in images]

    def _finish(self, photo: Pixels, row: _Row) -> None:
        """Cut the face out and encode it."""
        settings = self.settings
        landmarks = row["photo_landmarks"].reshape(5, 2)
        middle = landmarks.mean(0)
        if not ((middle >= 0) & (middle < photo.shape[1::-1])).all():
            row["reason"] = "its landmarks lie outside the photo"
            return
        try:
            matrix = similarity_transform(landmarks, settings.size, settings.margin)
            side = settings.size / (1 + 2 * settings.margin) / math.hypot(matrix[0, 0], matrix[1, 0])
            if side < settings.min_side:
                row["reason"] = f"face too small: {side:.0f} pixels a side, expected {settings.min_side} or more"
                return
            picture = warp_face(photo, landmarks, settings.size, settings.margin)
        except (ValueError, cv2.error) as error:  # OpenCV's: a side of 32,768 pixels or more
            row["reason"] = f"cannot be aligned: {error}"
            return
        row["landmarks"] = (landmarks @ matrix[:, :2].T + matrix[:, 2]).reshape(-1)
        row["image"] = encode(picture, settings)


def unpack_result(result: bytes) -> list[dict[str, Any]]:
    """The rows that a worker made of a chunk."""
    rows: list[dict[str, Any]] = pa.ipc.open_stream(result).read_all().to_pylist()
    return rows


def count_rejected(result: bytes) -> int:
    """How many photos of a chunk a worker has rejected."""
    reasons = pa.ipc.open_stream(result).read_all()["reason"]
    return len(reasons) - int(reasons.null_count)


def rejected_result(error: PhotoError) -> bytes:
    """The result of a chunk of one photo that cannot be worked on."""
    return _pack(pa.Table.from_pylist([{"reason": str(error)}], RESULT))


def join_results(results: Iterable[bytes]) -> bytes:
    """The result of a chunk whose photos were worked on apart."""
    return _pack(pa.concat_tables([pa.ipc.open_stream(result).read_all() for result in results]))


def _pack(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, RESULT) as stream:
        stream.write_table(table)
    return sink.getvalue()


def encode(picture: NDArray[np.uint8], settings: Settings) -> bytes:
    """A picture, uint8 (S, S, 3) RGB, as an image file."""
    options = []
    if settings.encoding == "jpeg":
        options = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    good, content = cv2.imencode(f".{settings.encoding}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    assert good
    return content.tobytes()


def _look_where(pixels: Pixels, hint: Hint) -> Opened:
    """Where to look for the face: around the box that the set gives, or everywhere."""
    height, width = pixels.shape[:2]
    if hint.box is None:
        return Opened(pixels, (0, 0), pixels, ((width - 1) / 2, (height - 1) / 2))
    left, top, right, bottom = hint.box
    inside = right >= 0 and left <= width and bottom >= 0 and top <= height and left < right and top < bottom
    if not (inside and np.isfinite(hint.box).all()):
        box = ", ".join(f"{value:g}" for value in hint.box)
        raise PhotoError(f"the face's box does not lie in the photo: {box} in {width}x{height} pixels")
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    across, down = (right - left) * BOX_SURROUNDINGS, (bottom - top) * BOX_SURROUNDINGS
    x, y = max(math.floor(left - across), 0), max(math.floor(top - down), 0)
    part = pixels[y : math.ceil(bottom + down), x : math.ceil(right + across)]
    return Opened(pixels, (x, y), np.ascontiguousarray(part), ((left + right) / 2 - x, (top + bottom) / 2 - y))
