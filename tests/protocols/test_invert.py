"""`idface invert` on photos, with a recogniser of two small layers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from idface.cli import main
from idface.pictures import is_marked_synthetic
from idface.protocols.invert import invert
from idface.recognition.build import build_recognizer
from tests.latent.test_inversion import Small


def run(target: Path, out: Path, **options: Any) -> str:
    return invert(target, out, **({"recognizer": Small(), "size": 64, "steps": 8, "align": False} | options))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_all_photos_are_one_person_unless_each_has_a_result(face_folder: Path, tmp_path: Path) -> None:
    folder = face_folder / "person_1"
    run(folder, tmp_path / "one")
    run(folder, tmp_path / "each", each=True)
    for out, names in (("one", ["person_1"]), ("each", ["1", "2", "3", "4"])):
        result = read(tmp_path / out / "result.json")
        assert [each["name"] for each in result["results"]] == names
        assert result["photos"] == 4
        assert {path.stem for path in (tmp_path / out / "results").iterdir()} == set(names)
        with Image.open(tmp_path / out / "strip.png") as strip:
            assert strip.size == (6 * 64, len(names) * 64)
            assert "trainedAlgorithmicMedia" in strip.info["DigitalSourceType"]
        with (tmp_path / out / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows if row["target"] == names[-1]] == [str(i) for i in range(9)]
        for each in result["results"]:
            assert is_marked_synthetic(np.asarray(Image.open(tmp_path / out / "results" / f"{each['name']}.png")))
            assert 0 <= each["judges"][0]["distance"] <= 4


def test_the_person_is_the_mean_of_the_photos(face_folder: Path, tmp_path: Path) -> None:
    text = run(face_folder / "person_1", tmp_path / "out", steps=2)
    assert "person_1: squared distance" in text
    assert "pairs" not in text  # this recogniser has no calibration
    history = list(csv.DictReader((tmp_path / "out" / "history.csv").open(newline="")))
    result = read(tmp_path / "out" / "result.json")["results"][0]["judges"][0]
    assert float(history[-1]["distance"]) == pytest.approx(result["distance"], abs=5e-3)  # in 8 bits


def test_another_judge_says_what_it_sees_by_percentiles(face_folder: Path, tmp_path: Path) -> None:
    photo = face_folder / "person_1" / "1.png"
    text = run(photo, tmp_path / "out", judge="dlib", steps=1, guide=photo, guide_layer="second")
    own, other = read(tmp_path / "out" / "result.json")["results"][0]["judges"]
    assert not own["is_independent"]
    assert other["is_independent"]
    assert other["recognizer"] == "dlib"
    assert 0 <= other["different_person_pairs_nearer_percent"] <= other["same_person_pairs_nearer_percent"] <= 100
    assert other["pairs"] == build_recognizer("dlib").everyday.data
    assert "another network than was inverted" in text


def test_what_cannot_work_is_refused_by_name(face_folder: Path, tmp_path: Path) -> None:
    photo = face_folder / "person_1" / "1.png"
    with pytest.raises(ValueError, match=r"--guide-layer second is of no use without --guide PHOTO"):
        run(photo, tmp_path / "out", guide_layer="second")
    with pytest.raises(ValueError, match=r"--guide .*person_1 is a folder"):
        run(photo, tmp_path / "out", guide=photo.parent)
    with pytest.raises(ValueError, match="--judge small is the network that is inverted"):
        run(photo, tmp_path / "out", judge=Small())
    with pytest.raises(ValueError, match=r"'secnd'\. Did you mean 'second'\?"):
        run(photo, tmp_path / "out", guide=photo, guide_layer="secnd")


def test_a_photo_without_a_face_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wall = tmp_path / "wall.png"
    Image.new("RGB", (120, 120), "grey").save(wall)
    with pytest.raises(SystemExit) as stopped:
        main(["invert", "--target", str(wall), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "--target" in (error := capsys.readouterr().err)
    assert "no face found" in error
