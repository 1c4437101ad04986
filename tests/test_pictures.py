from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.orl import orl_root
from idface.pictures import (
    is_marked_synthetic,
    mark_synthetic,
    recombination_grid,
    save_synthetic,
    synthetic_score,
    without_mark,
)


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    files = [orl_root() / f"s{person}" / "1.pgm" for person in range(1, 41)]
    return [np.asarray(Image.open(file).convert("RGB").resize((64, 64))) for file in files]


def test_the_mark_is_found_on_marked_faces_and_on_no_others(faces: list[np.ndarray]) -> None:
    assert not any(is_marked_synthetic(face) for face in faces)
    assert all(is_marked_synthetic(mark_synthetic(face)) for face in faces)


def test_the_mark_cannot_be_seen(faces: list[np.ndarray]) -> None:
    differences = [np.abs(mark_synthetic(face).astype(int) - face).max() for face in faces]
    assert max(differences) <= 2


def test_the_mark_survives_png_and_good_jpeg(faces: list[np.ndarray]) -> None:
    for form, options, least in (("PNG", {}, 6.0), ("JPEG", {"quality": 95}, 6.0)):
        for face in faces:
            buffer = BytesIO()
            Image.fromarray(mark_synthetic(face)).save(buffer, form, **options)
            assert synthetic_score(np.asarray(Image.open(buffer))) > least


def test_a_written_picture_says_what_it_is_and_how_it_was_made(tmp_path: Path, faces: list[np.ndarray]) -> None:
    save_synthetic(mark_synthetic(faces[0]), tmp_path / "a" / "face.png", {"checkpoint": "zoo:x", "seed": 3})
    with Image.open(tmp_path / "a" / "face.png") as picture:
        assert "trainedAlgorithmicMedia" in picture.info["DigitalSourceType"]
        assert '"checkpoint": "zoo:x"' in picture.info["Recipe"]
        assert is_marked_synthetic(np.asarray(picture))


def test_a_grid_shows_photos_as_they_are_and_results_marked_where_row_and_column_meet(faces: list[np.ndarray]) -> None:
    rows, columns = np.stack(faces[:2]), np.stack(faces[2:5])
    results = np.stack([faces[5:8], faces[8:11]])
    grid = recombination_grid(rows, columns, results, gap=4)
    assert grid.shape == (68 + 128, 68 + 192, 3)
    assert np.array_equal(grid[68 + 64 : 68 + 128, :64], rows[1])
    assert np.array_equal(grid[:64, 68 + 64 : 68 + 128], columns[1])
    tile = grid[68 + 64 : 68 + 128, 68 + 128 :]
    assert np.array_equal(tile, mark_synthetic(results[1, 2]))


def test_the_mark_can_be_taken_off_for_training(faces: list[np.ndarray]) -> None:
    for face in faces:
        plain = without_mark(mark_synthetic(face))
        middle = (face > 3) & (face < 252)
        assert np.array_equal(plain[middle], face[middle])
        assert not is_marked_synthetic(plain)
