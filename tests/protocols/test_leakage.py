"""The probe: what is in vectors it finds, what is not it does not."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from idface.protocols.leakage import halves, leakage, probe, surroundings, with_enough_photos
from idface.protocols.sources import People


def test_halves_are_of_everybody_and_share_no_photo() -> None:
    person = torch.arange(50) % 7
    trained, asked = halves(person, seed=0)
    assert sorted([*trained.tolist(), *asked.tolist()]) == list(range(50))
    difference = person[trained].bincount() - person[asked].bincount()
    assert set(difference.tolist()) <= {0, 1}
    assert not torch.equal(trained, halves(person, seed=1)[0])


def test_people_with_few_photos_are_left_out() -> None:
    person = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    people = with_enough_photos(People(["a", "b", "c"], torch.arange(12)[:, None], person))
    assert people.names == ["a", "c"]
    assert people.person.tolist() == [0] * 5 + [1] * 4
    assert people.images[:, 0].tolist() == [*range(5), *range(8, 12)]
    with pytest.raises(ValueError, match="1 people have 4"):
        with_enough_photos(People(["a", "b"], torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 1, 1])))


def test_the_probe_finds_what_is_there_and_no_more() -> None:
    noise = torch.Generator().manual_seed(0)
    person = torch.arange(400) % 10
    trained, asked = halves(person, seed=0)
    blank = torch.randn(400, 8, generator=noise)
    told = blank + 4 * torch.randn(10, 8, generator=noise)[person]
    assert probe(told, person, trained, asked, 20, 0).val[-1] > 0.9
    nothing = probe(blank, person, trained, asked, 20, 0)
    assert nothing.val[-1] < 0.25  # chance is 0.1
    assert nothing.train[-1] > 0.4  # it can learn by heart


def test_models_are_asked_on_the_same_photos(tmp_path: Path, face_folder: Path) -> None:
    shutil.copytree(face_folder, tmp_path / "set" / "faces")
    models = {"full": "zoo:quickstart", "again": "zoo:quickstart"}
    report = leakage(models, tmp_path / "set", tmp_path / "out", epochs=30)
    assert report["people"] == 6
    assert report["models"]["full"]["f_A"] == report["models"]["again"]["f_A"]
    assert report["models"]["full"]["f_I"]["val"] > 0.6
    with (tmp_path / "out/curves.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == (2 * 3 + 1) * 30
    assert rows[-1]["vector"] == "f_I"
    assert report["models"]["full"]["f_I"]["val"] > report["models"]["full"]["f_A drawn"]["val"]
    assert report["most_frequent"] == pytest.approx(1 / 6)
    assert json.loads((tmp_path / "out/report.json").read_text())["chance"] == 1 / 6
    assert (tmp_path / "out/curves.png").is_file()
    told = report["models"]["full"]["f_I"]
    assert told["low"] <= told["val"] <= told["high"]


def test_surroundings_hold_nothing_of_the_face() -> None:
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    images[1] = images[0]
    images[1, :, 13:51, 13:51] = 0
    one, other = surroundings(images)
    assert torch.equal(one, other)
    images[1, :, 0, 0] = 255 - images[1, :, 0, 0]
    assert not torch.equal(*surroundings(images))
