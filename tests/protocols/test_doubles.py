"""`idface data doubles`: who is held out of one set under one name is found in another under another name."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_modules.orl import orl_root
from idface.cli import main
from idface.protocols.doubles import in_words, recall_of
from idface.protocols.sources import data_of_recipe, unseen_people
from idface.recognition.build import build_recognizer


def write_person(folder: Path, person: int, photos: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as image:
            image.save(folder / f"{person}-{photo}.png")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Twelve people, five of them held out; and the same by other names, with six others."""
    for person in range(1, 13):
        write_person(tmp_path / f"first/by_name_{person}", person, range(1, 5))
        write_person(tmp_path / f"second/number_{person}", person, range(5, 8))
    for person in range(13, 19):
        write_person(tmp_path / f"second/number_{person}", person, range(1, 4))
    split = {"val_identities": 2, "test_identities": 3, "held_out_photos": 2}
    sets = [
        {"class_path": "FaceFolderDataModule", "init_args": {"root": str(tmp_path / name), "align": False} | more}
        for name, more in (("first", split), ("second", {}))
    ]
    data = {"class_path": "JoinedDataModule", "init_args": {"sets": sets, "image_size": 64}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    return tmp_path / "recipe.yaml"


def test_people_held_out_are_found_under_other_names(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of_recipe(recipe, None)
    held_out = {name.rpartition("_")[2] for name in data.identity_names[data.num_identities :]}
    assert len(held_out) == 5
    main(["data", "doubles", "--data", str(recipe), "--out", str(tmp_path / "out")])
    with (tmp_path / "out/doubles.csv").open(newline="") as file:
        found = {row["person"]: row["resembles"] for row in csv.DictReader(file)}
    same = {f"number_{number}": f"by_name_{number}" for number in held_out}
    assert {person: found.get(person) for person in same} == same
    assert len(found) <= 9  # of 18: grey photos that no detector has aligned are like each other
    assert "look like one of 5 people held out" in capsys.readouterr().out
    assert Image.open(tmp_path / "out/doubles.png").width == 12 * 64 + 11 * 2

    content = yaml.safe_load(recipe.read_text())
    content["data"]["init_args"]["leave_out"] = str(tmp_path / "out/leave_out.txt")
    recipe.write_text(yaml.safe_dump(content))
    left = data_of_recipe(recipe, None)
    training = {left.photos[row].person for row in left.split.train}
    assert not training & found.keys()
    assert len(training) == 12 - 5 + 18 - len(found)
    assert left.identity_names[left.num_identities :] == data.identity_names[data.num_identities :]


def test_single_photos_have_a_limit_of_their_own(recipe: Path, tmp_path: Path) -> None:
    data = data_of_recipe(recipe, None)
    held_out = {int(name.rpartition("_")[2]) for name in data.identity_names[data.num_identities :]}
    for person in range(1, 19):
        write_person(tmp_path / "second/unlabelled", person, range(9, 10))
    main(["data", "doubles", "--data", str(recipe), "--share", "0.05", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/report.json").read_text())
    with (tmp_path / "out/doubles.csv").open(newline="") as file:
        singles = {row["photo"]: float(row["distance"]) for row in csv.DictReader(file) if not row["person"]}
    assert {int(Path(name).stem.partition("-")[0]) for name in singles} >= held_out
    assert max(singles.values()) <= report["single_limit"] != report["limit"]


def test_who_is_found_again() -> None:
    angle = torch.tensor([0.0, 90, 4, 180, 120, 160, 8]).deg2rad()  # the first person is at 0, 4 and 8 degrees
    single, person = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 1, 0, 2, 1, 1, 0])

    def apart(degrees: float) -> float:
        return 2 - 2 * float(np.cos(np.deg2rad(degrees)))

    # Halves: 4 from the mean of 0 and 8; 120 from the mean of 90 and 160. Photos: 6, 0, 6; 50, 5, 55 from the others'.
    expected = {(0.1, 5.5): (0.5, 2 / 6), (4.9, 6.1): (0.5, 4 / 6), (5.1, 50.1): (1, 5 / 6), (0.1, 60): (0.5, 1)}
    for (limit, single_limit), shares in expected.items():
        found = recall_of(single, person, apart(limit), apart(single_limit))
        assert tuple(found.values()) == pytest.approx(shares)
    assert recall_of(single, torch.arange(7), 4, 4) == {"people": None, "photos": None}


def test_recall_is_of_the_people_held_out(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    somebody = data_of_recipe(recipe, None).identity_names[-1]
    for number in (2, 4):  # half of somebody's photos show another person, who is not found again
        with Image.open(orl_root() / f"s30/{number}.pgm") as image:
            image.save(tmp_path / "first" / somebody / f"{somebody.rpartition('_')[2]}-{number}.png")
    main(["data", "doubles", "--data", str(recipe), "--share", "0.01", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/report.json").read_text())
    held_out = unseen_people(data_of_recipe(recipe, None), ("val", "test"))
    embedded = build_recognizer("dlib").embed(held_out.images).double().numpy()
    halves, others = [], []
    for person in range(5):
        a, b, c, d = embedded[held_out.person.numpy() == person]
        halves.append(between([a, c], [b, d]))
        others += [between([a], [b, c, d]), between([b], [a, c, d]), between([c], [a, b, d]), between([d], [a, b, c])]
    expected = {"people": np.mean(np.array(halves) <= report["limit"])}
    expected["photos"] = np.mean(np.array(others) <= report["single_limit"])
    assert report["recall"] == pytest.approx(expected)
    assert 0 < report["recall"]["photos"] < 1
    assert report["recall"]["people"] == pytest.approx(0.8)
    assert "these limits find 80% of the people held out, and 70% of their photos, again" in capsys.readouterr().out
    assert len(in_words(report | {"recall": {"people": None, "photos": None}})) == 1


def between(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Squared distance of the mean directions."""
    first, second = (np.mean(vectors, axis=0) for vectors in (some, others))
    return float(2 - 2 * first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_refusals(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "doubles", "--data", str(recipe), "--share", "0", "--out", str(tmp_path / "out")])
    assert "--share is 0" in capsys.readouterr().err
    content = yaml.safe_load(recipe.read_text())
    (first, second) = content["data"]["init_args"]["sets"]
    recipe.write_text(yaml.safe_dump({"data": first}))
    with pytest.raises(SystemExit):
        main(["data", "doubles", "--data", str(recipe), "--out", str(tmp_path / "out")])
    assert "all its training photos are of the set that holds people out" in capsys.readouterr().err
    second["init_args"]["root"] = str(tmp_path / "nowhere")
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        main(["data", "doubles", "--data", str(recipe), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.strip()
    assert "there is no" in said
    assert "nowhere" in said
    assert "\n" not in said
