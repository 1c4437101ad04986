"""Synthetic sets: what is in them, that they can be read, that they are checked, that a synthesis goes on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_modules.folder import FaceFolderDataModule
from data_modules.prepared import PreparedDataModule
from idface.checkpoints import load_model_of
from idface.cli import main
from idface.files import save_tensors
from idface.modules.cond_vaegan import CondVAEGAN
from idface.pictures import SYNTHETIC, mark_synthetic, to_picture
from idface.protocols import synthesize as module
from idface.protocols.sources import data_of_recipe, evaluated_people
from idface.protocols.synthesize import plan, synthesize

PEOPLE = 4
SIZES: dict[str, Any] = {"latent_dim": 6, "image_size": 32, "width": 4, "encoder_width": 4, "identity_dim": 5}


def saved(folder: Path, people: int = PEOPLE) -> str:
    """A model of people, untrained."""
    torch.manual_seed(0)
    arguments = {"num_identities": people, "discriminators": 0, **SIZES}
    model = CondVAEGAN(**arguments)
    recipe = {"class_path": "idface.modules.cond_vaegan.CondVAEGAN", "init_args": arguments}
    state = {f"synthesizer.{name}": value.contiguous() for name, value in model.synthesizer.state_dict().items()}
    save_tensors(state, folder / "model.safetensors", {"recipe": json.dumps(recipe)})
    return str(folder / "model.safetensors")


def pictures(folder: Path) -> dict[str, np.ndarray]:
    data = PreparedDataModule(str(folder), image_size=32)
    photos, _ = data.wanted_photos()
    read = data.reader(photos)
    return {photo.name: read(photo) for photo in photos}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Photos (4, 3, 32, 32) in [-1, 1] by person."""
    people: dict[str, list[np.ndarray]] = {}
    for name, pixels in sorted(pictures(folder).items()):
        people.setdefault(name.partition("/")[0], []).append(pixels)
    return {
        name: torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2).float() / 127.5 - 1 for name, each in people.items()
    }


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_new_people_are_mixtures_of_different_known_ones() -> None:
    names = [f"p{number}" for number in range(7)]
    people = plan(names, 3, 200, seed=1)
    assert len({person.name for person in people}) == 200
    for person in people:
        assert len(set(person.labels)) == 3
        assert set(person.labels) <= set(range(7))
        assert sum(person.weights) == pytest.approx(1)
        assert min(person.weights) > 0
    assert plan(names, 3, 200, seed=1) == people
    assert plan(names, 3, 50, seed=1)[7].labels == people[7].labels  # a larger set begins as the smaller one
    assert plan(names, 3, 200, seed=2) != people
    weights = np.array([person.weights for person in people])
    assert abs(weights.mean() - 1 / 3) < 1e-9
    assert weights.std() > 0.15  # not all in the middle
    known = plan(names, 0, 0, seed=1)
    assert [(person.name, person.labels, person.weights) for person in known[:2]] == [
        ("p0", (0,), (1.0,)),
        ("p1", (1,), (1.0,)),
    ]


def test_an_unchecked_set_is_read_by_both_readers_and_says_what_it_is(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    result = synthesize(checkpoint, tmp_path / "shards", 5, unchecked=True)
    assert (result["people"], result["faces"], result["settings"]["checked"]) == (4, 20, False)
    synthesize(checkpoint, tmp_path / "folder", 5, unchecked=True, format="folder")

    prepared = PreparedDataModule(str(tmp_path / "shards"), image_size=32, batch_size=4, partner=False)
    assert prepared.verify() == []
    folder = FaceFolderDataModule(tmp_path / "folder" / "faces", align=False, image_size=32)
    assert prepared.people() == folder.people() == ["00000", "00001", "00002", "00003"]
    assert not folder.rejected
    batch = next(iter(prepared.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32)

    from_shards = pictures(tmp_path / "shards")
    assert len(from_shards) == 20
    for name, pixels in from_shards.items():
        with Image.open(tmp_path / "folder" / "faces" / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
            assert image.info["DigitalSourceType"] == SYNTHETIC
            recipe = json.loads(image.info["Recipe"])
            assert f"{recipe['labels'][0]:05d}/{recipe['number']:05d}" == name
    made = recipe_makes(checkpoint, recipe)
    assert np.abs(made.astype(int) - pixels).max() <= 3  # the batch was another one, perhaps in bfloat16
    assert (tmp_path / "shards" / "sheet.png").is_file()


def recipe_makes(checkpoint: str, recipe: dict[str, Any]) -> np.ndarray:
    """The face, from what is written in its file."""
    model = load_model_of(CondVAEGAN, checkpoint)
    latents = module.latent(recipe["seed"], recipe["number"], 6)
    weights = torch.zeros(1, PEOPLE)
    weights[0, recipe["labels"]] = torch.tensor(recipe["weights"])
    face = model.generate(latents[None], weights)
    return mark_synthetic(to_picture(face)[0])


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Tensor]], None]:
    """Let the model make given pictures (P, 3, 32, 32) of people, by the label that weighs most, in turns."""

    def plant(faces: dict[int, Tensor]) -> None:
        def generate(self: CondVAEGAN, latents: Tensor, identity: Tensor) -> Tensor:
            made = CondVAEGAN_generate(self, latents, identity)
            for label, own in faces.items():
                mine = identity.argmax(1) == label
                made[mine] = own[torch.arange(int(mine.sum())) % len(own)].to(made.dtype)
            return made

        monkeypatch.setattr(CondVAEGAN, "generate", generate)

    return plant


CondVAEGAN_generate = CondVAEGAN.generate


def blended(photos: Tensor) -> Tensor:
    """Faces of a person that are none of the photos."""
    return torch.stack([0.5 * photos[0] + 0.5 * photos[1], 0.5 * photos[2] + 0.5 * photos[3]])


def test_the_gate_finds_planted_people_and_the_filters_planted_copies(
    sets: tuple[Path, Path], tmp_path: Path, planted: Callable[[dict[int, Tensor]], None]
) -> None:
    training, evaluation = sets
    photos, others = tensors(training), tensors(evaluation)
    names = sorted(photos)
    own = [photos[name] for name in names]
    faces = {
        0: blended(own[0]),  # as it should be
        1: own[1],  # copies of training photos
        2: others["person_5"],  # somebody of the evaluation set
        3: torch.cat([blended(own[3]), torch.rand(2, 3, 32, 32) * 2 - 1]),  # half of them no faces
    }
    planted(faces)
    out = tmp_path / "set"
    arguments: dict[str, Any] = {"data": training, "evaluation": [evaluation], "duplicate_distance": 5e-3}
    result = synthesize(saved(tmp_path), out, 4, **arguments)
    assert result["excluded_people"] == {names[2]: "person_5"}
    people = {row["person"]: row for row in rows(out / "identities.csv")}
    assert (people[names[0]]["drawn"], people[names[0]]["kept"]) == ("4", "4")
    assert people[names[1]]["kept"] == people[names[2]]["kept"] == "0"
    assert people[names[3]]["kept"] == "4"  # drawn again until there are enough
    assert int(people[names[3]]["drawn"]) > 4
    reasons = {name: {row["left_out"] for row in rows(out / "faces.csv") if row["person"] == name} for name in names}
    assert reasons[names[1]] == {"copy of a training photo"}
    assert reasons[names[2]] == {"taken for somebody else"}
    assert reasons[names[3]] == {"", "no face found"}
    assert {name.partition("/")[0] for name in pictures(out)} == {names[0], names[3]}
    assert sum(result["left_out"].values()) + result["faces"] == result["drawn"] == len(rows(out / "faces.csv"))

    with pytest.raises(ValueError, match="a set takes two"):  # all of these new people are real ones
        synthesize(saved(tmp_path), tmp_path / "new", 4, mix=2, new_identities=12, **arguments)
    for row in rows(tmp_path / "new" / "identities.csv"):
        heaviest = int(row["labels"].split()[int(np.argmax([float(w) for w in row["weights"].split()]))])
        assert row["kept"] == "0"
        assert row["taken_for"] == {0: names[0], 1: names[1], 2: "person_5", 3: names[3]}[heaviest]


def test_the_gate_searches_those_whom_the_models_own_data_hold_out(
    sets: tuple[Path, Path], tmp_path: Path, planted: Callable[[dict[int, Tensor]], None]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    options = f"root: '{sets[0]}', image_size: 32, val_identities: 0, test_identities: 2, held_out_photos: 0"
    recipe.write_text(f"data: {{class_path: PreparedDataModule, init_args: {{{options}}}}}\n")
    data = data_of_recipe(recipe, 32)
    known, held_out = (data.identity_names[:2], evaluated_people(data))
    assert held_out is not None
    assert sorted([*known, *held_out.names]) == sorted(tensors(sets[0]))
    photos = tensors(sets[0])
    planted({0: blended(photos[known[0]]), 1: photos[held_out.names[0]]})
    out = tmp_path / "set"
    with pytest.raises(ValueError, match="faces of 1 people passed"):
        synthesize(saved(tmp_path, 2), out, 3, data=recipe, detect=False, max_distance=4.0, duplicate_distance=0.0)
    assert [row["taken_for"] for row in rows(out / "identities.csv")] == ["", held_out.names[0]]


def test_faces_of_people_who_are_left_out_whole_count_as_left_out(
    sets: tuple[Path, Path], tmp_path: Path, planted: Callable[[dict[int, Tensor]], None]
) -> None:
    training, evaluation = sets
    photos, others = tensors(training), tensors(evaluation)
    names = sorted(photos)
    planted({0: torch.cat([blended(photos[names[0]]), others["person_5"][:1]]), 1: blended(photos[names[1]])})
    given: dict[str, Any] = {"data": training, "evaluation": [evaluation], "detect": False, "max_distance": 4.0}
    result = synthesize(saved(tmp_path), tmp_path / "set", 3, **given)
    assert result["excluded_people"][names[0]] == "person_5"
    reasons = [row["left_out"] for row in rows(tmp_path / "set" / "faces.csv") if row["person"] == names[0]]
    assert sorted(reasons) == [module.WHOLE, module.WHOLE, "taken for somebody else"]
    assert sum(result["left_out"].values()) + result["faces"] == result["drawn"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("format", ["shards", "folder"])
def test_a_synthesis_that_was_stopped_goes_on_and_comes_out_the_same(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    monkeypatch.setattr(module, "FACES", 6)
    checkpoint = saved(tmp_path)
    arguments: dict[str, Any] = {"mix": 2, "new_identities": 7, "data": sets[0], "format": format, "detect": False}
    arguments |= {"max_distance": 4.0, "leak_distance": 0.0, "duplicate_distance": 0.0}
    whole = synthesize(checkpoint, tmp_path / "whole", 3, **arguments)
    assert whole["faces"] == 21

    stopped = tmp_path / "stopped"
    done: list[int] = []
    embedded: list[int] = []
    write, reference = module._Synthesis._write, module.references

    def dies(self: Any, number: int, states: Any) -> None:
        if done and len(done) % 2 == 0:
            done.append(-1)
            raise KeyboardInterrupt
        write(self, number, states)
        done.append(number)

    monkeypatch.setattr(module._Synthesis, "_write", dies)
    monkeypatch.setattr(module, "references", lambda *a: embedded.append(1) or reference(*a))
    for _ in range(10):
        try:
            synthesize(checkpoint, stopped, 3, **arguments)
            break
        except KeyboardInterrupt:
            assert not (stopped / "synthesis.json").exists()
    numbers = [number for number in done if number >= 0]
    assert numbers == [0, 1, 2, 3]  # none of them twice
    assert len(done) > len(numbers)
    assert len(embedded) == 1
    assert files(stopped) == files(tmp_path / "whole")
    assert synthesize(checkpoint, stopped, 3, **arguments) == whole  # nothing is done
    with pytest.raises(ValueError, match=r"begun in another way .per_identity was 3, now 4"):
        synthesize(checkpoint, stopped, 4, **arguments)


@pytest.mark.parametrize("format", ["shards", "folder"])
def test_a_synthesis_that_was_stopped_at_its_very_end_keeps_its_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    checkpoint, write = saved(tmp_path), module.write_json

    def dies(path: Path, content: Any) -> None:
        if path.name == "synthesis.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        synthesize(checkpoint, tmp_path / "stopped", 3, unchecked=True, format=format)
    monkeypatch.setattr(module, "write_json", write)
    synthesize(checkpoint, tmp_path / "stopped", 3, unchecked=True, format=format)
    synthesize(checkpoint, tmp_path / "whole", 3, unchecked=True, format=format)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "3"], "--mix is given, and --new-identities is not: new people take both"),
        (["--new-identities", "3"], "new people take both"),
        (["--mix", "1", "--new-identities", "3"], "2 or more known ones"),
        (["--mix", "5", "--new-identities", "3"], "the model knows 4 people"),
        (["--leak-distance", "5"], "--leak-distance is 5"),
        (["--seed", "-1"], "--seed is -1"),
        (["--unchecked", "--leak-distance", "1"], "--leak-distance is of a check, but --unchecked"),
        (["--unchecked", "--evaluation", "{evaluation}"], "--evaluation is of a check, but --unchecked"),
        (["--unchecked", "--recognizer", "facenet:vggface2"], "--recognizer is of a check, but --unchecked"),
        (["--unchecked", "--no-detect"], "--no-detect is of a check, but --unchecked"),
        ([], "lies in no run's folder"),
        (["--data", "{evaluation}"], "the model knows 4 people, but these data train 2"),
        (["--data", "{training}", "--evaluation", "{model}"], "--evaluation"),
        (["--checkpoint", "zoo:quickstart"], "is of OpenSetIPGAN"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    arguments: list[str],
    message: str,
    sets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = saved(tmp_path)
    places = {"training": sets[0], "evaluation": sets[1], "model": tmp_path}
    given = [argument.format(**places) for argument in arguments]
    command = ["synthesize", "--checkpoint", checkpoint, "--out", str(tmp_path / "out"), "--per-identity", "2", *given]
    with pytest.raises(SystemExit) as refused:
        main(command)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_a_command_that_was_refused_can_be_given_anew(sets: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    with pytest.raises(ValueError, match="no recogniser 'dlbi'"):
        synthesize(checkpoint, tmp_path / "x", 2, data=sets[0], recognizer="dlbi")
    with pytest.raises(FileNotFoundError, match="--evaluation"):
        synthesize(checkpoint, tmp_path / "x", 2, data=sets[0], evaluation=[tmp_path])
    loose: dict[str, Any] = {"max_distance": 4.0, "leak_distance": 0.0, "duplicate_distance": 0.0, "detect": False}
    assert synthesize(checkpoint, tmp_path / "x", 2, data=sets[0], **loose)["faces"] == 8


def test_a_face_of_a_later_round_is_made_anew_from_its_recipe(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(tmp_path)
    judge_faces = module.judge_faces

    def strict(*arguments: Any) -> list[Any]:
        return [each._replace(reason="too far" if row == 0 else "") for row, each in enumerate(judge_faces(*arguments))]

    monkeypatch.setattr(module, "judge_faces", strict)
    loose: dict[str, Any] = {"leak_distance": 0.0, "detect": False, "format": "folder"}
    synthesize(checkpoint, tmp_path / "x", 3, data=sets[0], **loose)
    later = sorted((tmp_path / "x" / "faces").glob("*/*.png"))
    assert {path.stem for path in later} == {"00001", "00002"}  # the first of each round is left out
    with Image.open(later[-1]) as image:
        made = recipe_makes(checkpoint, json.loads(image.info["Recipe"]))
        assert np.abs(made.astype(int) - np.asarray(image)).max() <= 3


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    with pytest.raises(ValueError, match="holds other files"):
        synthesize(checkpoint, tmp_path, 2, unchecked=True)


def test_the_command_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--checkpoint", saved(tmp_path), "--out", str(tmp_path / "x")]
    main(["synthesize", *where, "--per-identity", "2", "--unchecked", "--mix", "2", "--new-identities", "3"])
    said = capsys.readouterr().out
    assert "6 faces of 3 people, of 6 drawn" in said
    assert "none of them was checked" in said
    assert said.strip().endswith(str(tmp_path / "x"))
