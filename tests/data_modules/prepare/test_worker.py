"""What becomes of a photo: the face that is taken, its place, and why others are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.photos import Hint, Photo
from data_modules.prepare.worker import Chunk, FaceWorker, Settings, unpack_result
from idface.recognition.alignment import FACE_TEMPLATE
from tests.data_modules.prepare.helpers import centre_face, face


def work(worker: FaceWorker, *files: Path, **hints: Hint) -> list[dict[str, Any]]:
    photos = [Photo(file.name, None, file) for file in files]
    return unpack_result(worker(Chunk(0, photos, {f"{name}.png": hint for name, hint in hints.items()})))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[float, float]]]:
    """A small face in the middle, one that is a little larger beside it, and the largest in a corner."""
    picture = Image.new("RGB", (640, 480), (110, 110, 110))
    centres = {}
    for name, person, (x, y), scale in (
        ("middle", 1, (275, 190), 1.0),
        ("beside", 3, (100, 150), 1.6),
        ("corner", 5, (440, 235), 2.1),
    ):
        photo = face(person, 1)
        photo = photo.resize((round(92 * scale), round(112 * scale)))
        picture.paste(photo, (x, y))
        centres[name] = (x + photo.width / 2, y + photo.height / 2)
    file = tmp_path_factory.mktemp("three") / "three.png"
    picture.save(file)
    return file, centres


@pytest.fixture(scope="module")
def worker() -> FaceWorker:
    return FaceWorker(Settings(face="largest"), device="cpu")


def centre(row: dict[str, Any]) -> tuple[float, float]:
    left, top, right, bottom = row["photo_box"]
    return (left + right) / 2, (top + bottom) / 2


def nearest(row: dict[str, Any], centres: dict[str, tuple[float, float]]) -> str:
    return min(centres, key=lambda name: float(np.hypot(*np.subtract(centres[name], centre(row)))))


@pytest.mark.parametrize(("rule", "expected"), [("largest", "corner"), ("nearest", "middle"), ("main", "middle")])
def test_the_face_that_is_asked_for_is_taken(
    three: tuple[Path, dict[str, tuple[float, float]]], worker: FaceWorker, rule: Any, expected: str
) -> None:
    chooser = FaceWorker(Settings(face=rule), device="cpu")
    chooser._detector = worker._detector
    (row,) = work(chooser, three[0])
    assert row["reason"] is None
    assert row["faces"] == 3
    assert nearest(row, three[1]) == expected
    eyes = np.array(row["landmarks"]).reshape(5, 2)[[0, 1, 3, 4]]
    assert np.abs(eyes - (FACE_TEMPLATE[[0, 1, 3, 4]] * 128 - 0.5)).max() < 10


def test_the_face_in_the_box_is_taken(three: tuple[Path, dict[str, tuple[float, float]]], worker: FaceWorker) -> None:
    for name, (x, y) in three[1].items():
        chooser = FaceWorker(Settings(face="nearest"), device="cpu")
        (row,) = work(chooser, three[0], three=Hint(box=(x - 40, y - 45, x + 40, y + 45)))
        assert nearest(row, three[1]) == name


@pytest.mark.parametrize(
    "box", [(700, 10, 800, 90), (10, 500, 90, 600), (90, 10, 10, 90), (np.nan, 1, 2, 3), (0, 0, np.inf, 50)]
)
def test_a_box_that_is_none_is_refused(
    three: tuple[Path, dict[str, tuple[float, float]]], worker: FaceWorker, box: tuple[float, ...]
) -> None:
    (row,) = work(worker, three[0], three=Hint(box=box))  # type: ignore[arg-type]
    assert row["reason"].startswith("the face's box does not lie in the photo: "), "one kind of reason"


def test_landmarks_that_are_known_are_used(tmp_path: Path) -> None:
    face(1, 1).save(tmp_path / "a.png")
    points = FACE_TEMPLATE * 80 + 6
    for margin in (0.0, 0.25):
        (row,) = work(
            FaceWorker(Settings(size=60, margin=margin), device="cpu"), tmp_path / "a.png", a=Hint(points.tolist())
        )
        expected = (FACE_TEMPLATE + margin) / (1 + 2 * margin) * 60 - 0.5
        assert np.abs(np.array(row["landmarks"]).reshape(5, 2) - expected)[[0, 1, 3, 4]].max() < 0.01
        assert row["faces"] is None
        assert row["probability"] is None


@pytest.mark.parametrize(
    "points", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), FACE_TEMPLATE * 20, FACE_TEMPLATE * 1e30]
)
def test_landmarks_that_make_no_face_are_refused(tmp_path: Path, points: np.ndarray) -> None:
    face(1, 1).save(tmp_path / "a.png")
    face(1, 2).save(tmp_path / "b.png")
    good = Hint((FACE_TEMPLATE * 80).tolist())
    bad, fine = work(
        FaceWorker(Settings(), device="cpu"), tmp_path / "a.png", tmp_path / "b.png", a=Hint(points.tolist()), b=good
    )
    assert bad["reason"] is not None
    assert fine["reason"] is None


def test_a_very_long_photo_is_refused_alone(tmp_path: Path) -> None:
    Image.new("RGB", (40_000, 100), (9, 9, 9)).save(tmp_path / "a.png")
    face(1, 2).save(tmp_path / "b.png")
    good = Hint((FACE_TEMPLATE * 80).tolist())
    long, fine = work(FaceWorker(Settings(), device="cpu"), tmp_path / "a.png", tmp_path / "b.png", a=good, b=good)
    assert long["reason"].startswith("cannot be aligned: ")
    assert fine["reason"] is None


def test_photos_in_memory_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_modules.prepare.worker as module

    groups: list[int] = []

    def detect(self: FaceWorker, images: Any) -> Any:
        groups.append(len(images))
        return [centre_face(image) for image in images]

    files = [tmp_path / f"{number}.png" for number in range(7)]
    for number, file in enumerate(files):
        face(1, number + 1).save(file)
    monkeypatch.setattr(FaceWorker, "_detect", detect)
    monkeypatch.setattr(module, "_AT_ONCE", (3, 10**9))
    whole = work(FaceWorker(Settings(), device="cpu"), *files)
    monkeypatch.setattr(module, "_AT_ONCE", (16, 2 * 92 * 112))
    assert work(FaceWorker(Settings(), device="cpu"), *files) == whole
    assert groups == [3, 3, 1, 2, 2, 2, 1]
