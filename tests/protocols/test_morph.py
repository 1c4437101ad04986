"""`morph` and `frontalize`, by the small model that comes along."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.orl import orl_root
from idface.checkpoints import CheckpointError
from idface.cli import main
from idface.pictures import SYNTHETIC, is_marked_synthetic
from idface.protocols.frontalize import choose_frontal, frontalize, light
from idface.protocols.morph import morph, smoothness
from idface.recognition.build import build_judge
from idface.recognition.light_cnn import LightCNN


def photo(person: int, number: int = 1) -> Path:
    return orl_root() / f"s{person}" / f"{number}.pgm"


def test_steps_are_compared() -> None:
    even = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 4, 4)
    assert smoothness(even) == pytest.approx(1)
    jump = torch.tensor([0.0, 0.1, 0.4])[:, None, None, None].expand(3, 3, 4, 4)
    assert smoothness(jump) == pytest.approx(0.3 / 0.2)
    assert smoothness(torch.zeros(3, 3, 4, 4)) == 1


def test_a_way_between_two_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--identity", str(photo(3)), "--steps", "5", "--no-align", "--out", str(out)]
    main(["morph", str(photo(1)), str(photo(2, 5)), "--checkpoint", "zoo:quickstart", *options])
    assert "the largest step" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert len(report["distances"]) == 5
    assert 1 <= report["smoothness"] < 2
    with Image.open(out / "morph.gif") as film:
        assert film.n_frames == 8  # forth, and back without the ends
        assert json.loads(film.info["comment"])["DigitalSourceType"] == SYNTHETIC
        assert json.loads(film.info["comment"])["Recipe"]["steps"] == 5
        assert film.info["duration"] == 500
        for frame in range(8):
            film.seek(frame)
            assert is_marked_synthetic(np.asarray(film.convert("RGB")))
    with Image.open(out / "strip.png") as strip:
        assert is_marked_synthetic(np.asarray(strip)[:64, 66:130])
        assert not is_marked_synthetic(np.asarray(strip)[:64, :64])
    with pytest.raises(ValueError, match="--steps is 1"):
        morph("zoo:quickstart", photo(1), photo(2), photo(3), out, steps=1)
    with pytest.raises(ValueError, match=r"--seconds is 0.1, expected 0.18 for 10 steps"):
        morph("zoo:quickstart", photo(1), photo(2), photo(3), out, steps=10, seconds=0.1)
    with pytest.raises(ValueError, match="10 photos, expected one"):
        morph("zoo:quickstart", photo(1).parent, photo(2), photo(3), out, align=False)
    with pytest.raises(CheckpointError, match="OpenSetIPGAN"):
        morph("zoo:attributes", photo(1), photo(2), photo(3), out)


def test_a_models_own_judge_says_who_it_is_unless_another_is_asked_for() -> None:
    own = LightCNN("zoo:lightcnn9")
    assert build_judge(None, own) is own
    assert [build_judge("dlib", own).name, build_judge(None, None).name] == ["dlib", "dlib"]


def test_the_frontal_face_of_the_nearest_light_is_chosen() -> None:
    own = torch.tensor([[0.5, 0.3, 0.7], [0.5, 0.7, 0.3]])
    lit = torch.tensor([[0.5, 0.3, 0.7], [0.5, 0.35, 0.65], [0.5, 0.65, 0.35], [0.9, 0.9, 0.9]])
    yaw = torch.tensor([40.0, 3.0, -5.0, 0.0])
    assert choose_frontal(own, lit, yaw).tolist() == [1, 2]
    lit, yaw = torch.cat([lit, lit[3:], lit[3:]]), torch.tensor([80.0, 20, -25, 15, 30, 35])
    assert choose_frontal(own, lit, yaw).tolist() == [1, 2]  # none is frontal: of the five nearest to it
    lit, yaw = lit[:4], torch.tensor([40.0, 3.0, -5.0, 0.0])
    barred = torch.tensor([[False, True, False, False], [False] * 4])
    assert choose_frontal(own, lit, yaw, barred).tolist() == [2, 2]
    with pytest.raises(ValueError, match="the photo itself alone"):
        choose_frontal(own, lit, yaw, torch.ones(2, 4, dtype=torch.bool))
    halves = torch.cat([torch.full((1, 3, 8, 4), -1.0), torch.full((1, 3, 8, 4), 1.0)], -1)
    torch.testing.assert_close(light(halves), torch.tensor([[0.5, 0.0, 1.0]]))


def test_faces_from_the_front(tmp_path: Path) -> None:
    faces = tmp_path / "frontal"
    faces.mkdir()
    for person in range(10, 16):
        Image.open(photo(person)).save(faces / f"{person}.png")
    out = tmp_path / "out"
    report = frontalize("zoo:quickstart", photo(5).parent, faces, out, align=False)
    with (out / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert report["photos"] == len(rows) == 10
    assert report["yaw_before"] == pytest.approx(np.mean([abs(float(row["yaw_before"])) for row in rows]), abs=1e-3)
    assert {row["frontal"] for row in rows} <= {str(person) for person in range(10, 16)}
    assert (out / "1.png").is_file()
    options = ["--photo", str(photo(5)), "--frontal", str(faces), "--no-align", "--out", str(tmp_path / "one")]
    main(["frontalize", "--checkpoint", "zoo:quickstart", *options])
    assert (tmp_path / "one" / "report.json").is_file()
