"""Cascades: what they find on real faces and on noise, alone and by threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_modules.orl import orl_root
from idface.metrics import detection
from idface.metrics.detection import CASCADES, find_faces, find_faces_aside, hits_of_each
from idface.pictures import Picture


def orl_faces(count: int) -> Picture:
    files = sorted(orl_root().glob("s*/1.pgm"))[:count]
    squares = (Image.open(file).convert("RGB").crop((0, 10, 92, 102)).resize((64, 64)) for file in files)
    return np.stack([np.asarray(square) for square in squares])


def test_faces_are_found_and_noise_is_none() -> None:
    faces = orl_faces(20)
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    assert find_faces(faces).mean() >= 0.7
    assert find_faces(noise).mean() <= 0.1


def test_any_of_the_seven_counts() -> None:
    faces = np.concatenate([orl_faces(10), np.zeros((2, 64, 64, 3), np.uint8)])
    each = hits_of_each(faces)
    assert set(each) == set(CASCADES)
    assert len(each) == 7
    np.testing.assert_array_equal(find_faces(faces), np.any(list(each.values()), 0))
    for name in ("frontalface_alt2", "frontalface_default", "lbp_frontalface"):  # they are read, and see faces
        assert each[name][:10].any(), name
    assert not find_faces(faces)[10:].any()


def test_the_cascades_are_asked_as_in_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    class Cascade:
        def detectMultiScale(self, grey: Picture, *given: object, **named: object) -> list[int]:
            asked.append((grey.shape, *given, named))
            return []

    names: list[str] = []
    monkeypatch.setattr(detection, "_of_this_thread", lambda name: names.append(name) or Cascade())
    assert not find_faces(np.zeros((1, 128, 128, 3), np.uint8)).any()
    assert asked == [((64, 64), 1.1, {"minSize": (32, 32), "maxSize": (64, 64)})] * 7
    haar = {"alt", "alt2", "alt_tree", "default"}
    assert set(names) == {f"frontalface_{name}" for name in haar} | {"smile", "eye_tree_eyeglasses", "lbp_frontalface"}


def test_threads_find_the_same() -> None:
    faces = orl_faces(12)
    with ThreadPoolExecutor(3) as pool:
        parts = find_faces_aside(faces, pool, 3)
        found = np.concatenate([part.result() for part in parts])
    np.testing.assert_array_equal(found, find_faces(faces))
    assert find_faces(faces[:0]).shape == (0,)
