"""`morph` and `frontalize`, by the small model that comes along."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.batch import to_float
from data_modules.orl import orl_root
from idface.checkpoints import CheckpointError, load_model_of
from idface.cli import main
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import SYNTHETIC, is_marked_synthetic
from idface.protocols.frontalize import choose_frontal, frontalize, light
from idface.protocols.morph import morph, smoothness
from idface.recognition.base import distance
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


def test_faces_from_the_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = tmp_path / "frontal"
    faces.mkdir()
    for person in range(10, 16):
        Image.open(photo(person)).save(faces / f"{person}.png")
    out = tmp_path / "out"
    report = frontalize("zoo:quickstart", photo(5).parent, faces, out, align=False)
    with (out / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert report["photos"] == len(rows) == 10
    column = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key not in ("photo", "frontal")}
    for when in ("before", "frontal", "after"):
        assert report[f"yaw_{when}"] == pytest.approx(np.abs(column[f"yaw_{when}"]).mean(), abs=1e-3)
    assert report["more_turned"] == pytest.approx(np.mean(np.abs(column["yaw_after"]) > np.abs(column["yaw_before"])))
    parts = ("brightness", "left", "right")
    lit, lit_after = (np.stack([column[f"{part}_{when}"] for part in parts], 1) for when in ("before", "after"))
    assert report["light_change"] == pytest.approx(np.abs(lit - lit_after).mean(), abs=1e-3)
    assert report["distance"] == pytest.approx(column["distance"].mean(), abs=1e-3)
    assert report["nearer_to_photo"] == pytest.approx(np.mean(column["distance"] < column["distance_to_frontal"]))

    strips = torch.from_numpy(np.stack([np.asarray(Image.open(out / f"{row['photo']}.png")) for row in rows]))
    taken, given = (to_float(strips[:, :64, left : left + 64].movedim(-1, 1)) for left in (0, 66))
    model, judge = load_model_of(OpenSetIPGAN, "zoo:quickstart"), build_judge(None, None)
    own, other, result = (judge.embed(pictures) for pictures in (taken, given, model.recombine(taken, given)))
    assert distance(own, result).numpy() == pytest.approx(column["distance"], abs=2e-3)
    assert distance(other, result).numpy() == pytest.approx(column["distance_to_frontal"], abs=2e-3)
    assert judge.everyday is not None
    same = distance(own, other) < judge.everyday.unit.best_threshold
    assert report["same_person_frontal"] == int(same.sum())
    lights = [light(pictures) for pictures in (taken, given)]
    assert lights[0].numpy() == pytest.approx(lit, abs=1e-3)
    assert report["light_of_frontal"] == pytest.approx(float((lights[0] - lights[1]).abs().mean()), abs=1e-3)
    assert {row["frontal"] for row in rows} <= {str(person) for person in range(10, 16)}
    assert (out / "1.png").is_file()

    alike = tmp_path / "alike"
    alike.mkdir()
    Image.open(photo(5, 2)).save(alike / "another.png")
    options = ["--photo", str(photo(5)), "--frontal", str(alike), "--no-align", "--out", str(tmp_path / "one")]
    main(["frontalize", "--checkpoint", "zoo:quickstart", *options])
    assert json.loads((tmp_path / "one" / "report.json").read_text())["same_person_frontal"] == 1
    assert "1 photos were given a frontal face that the judge takes for the same person" in capsys.readouterr().out
