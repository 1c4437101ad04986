"""Cascades: what they find on real faces and on noise, alone and by threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_modules.orl import orl_root
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


def test_threads_find_the_same() -> None:
    faces = orl_faces(12)
    with ThreadPoolExecutor(3) as pool:
        parts = find_faces_aside(faces, pool, 3)
        found = np.concatenate([part.result() for part in parts])
    np.testing.assert_array_equal(found, find_faces(faces))
    assert find_faces(faces[:0]).shape == (0,)
