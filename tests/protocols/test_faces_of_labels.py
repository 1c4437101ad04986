"""`sample`, `age`, `evaluate`, `data clean`: what they write, of small models and faces with made-up labels."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_modules.orl import orl_root
from data_modules.utkface import UTKFaceDataModule
from idface.checkpoints import CheckpointError, export_weights
from idface.cli import main
from idface.modules.age_sex import AgeSexTraining
from idface.modules.base import digest_of_training_photos
from idface.modules.label_dcgan import LabelConditionedDCGAN
from idface.networks.age_sex import YEARS
from idface.pictures import is_marked_synthetic
from idface.protocols import clean as clean_module
from idface.protocols.age import age_photos
from idface.protocols.clean import (
    LIST,
    PAGE,
    TABLE,
    LabelledPhotos,
    Predicted,
    clean,
    cross_validated,
    doubts,
    fold_of,
    labelled_photos,
    plant_errors,
)
from idface.protocols.evaluate import evaluate
from idface.protocols.sample import LABELS, parse_ages, sample

SIZE = 64
ARGUMENTS = {"image_size": SIZE, "latent_dim": 5, "width": 4, "hidden": 16, "encoder_width": 4}


def checkpoint(folder: Path, **arguments: Any) -> str:
    """An untrained model's checkpoint."""
    torch.manual_seed(0)
    given = ARGUMENTS | arguments
    model = LabelConditionedDCGAN(**given)
    model.recipe = {"class_path": "idface.modules.label_dcgan.LabelConditionedDCGAN", "init_args": given}
    return save(model, folder / "model.ckpt")


def save(model: Any, file: Path) -> str:
    torch.save({"state_dict": model.state_dict(), "recipe": model.recipe}, file)
    return str(file)


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of an untrained estimator's weights."""
    folder = tmp_path_factory.mktemp("estimator")
    torch.manual_seed(0)
    arguments = {"input_size": 16, "width": 4}
    model = AgeSexTraining(**arguments)  # type: ignore[arg-type]
    model.recipe = {"class_path": "idface.modules.age_sex.AgeSexTraining", "init_args": arguments}
    export_weights(save(model, folder / "last.ckpt"), folder / "age-sex.safetensors")
    return str(folder / "age-sex.safetensors")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose data are 80 ORL faces as UTKFace names them; men's are dark; a bar is as light as the age."""
    folder = tmp_path_factory.mktemp("utkface")
    (folder / "faces").mkdir()
    files = sorted(orl_root().glob("s*/[1-2].pgm"))
    for row, file in enumerate(files):
        sex, age = row % 2, 15 + (row // 2 * 7) % 80
        shade = np.asarray(Image.open(file).convert("RGB").crop((0, 10, 92, 102)).resize((80, 80)), dtype=float)
        shade = shade * (0.5 if sex == 0 else 1.0)
        shade[:20] = age * 2.5
        name = f"{age}_{sex}_0_20170101{row:09d}.jpg.chip.jpg"
        Image.fromarray(shade.astype(np.uint8)).save(folder / "faces" / name, quality=95)
    data = {"root": str(folder / "faces"), "align": False, "cache_dir": str(folder / "cache"), "test_share": 0.3}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"data": {"class_path": "UTKFaceDataModule", "init_args": data}})
    )
    return folder / "recipe.yaml"


# ---------------------------------------------------------------------------------------------------------- sample


def test_ages_are_read() -> None:
    model = LabelConditionedDCGAN(**ARGUMENTS)  # type: ignore[arg-type]
    assert parse_ages("15:75:10", model) == [15, 25, 35, 45, 55, 65, 75]
    assert parse_ages("20,40.5", model) == [20, 40.5]
    assert parse_ages("10:11:0.1", model)[-1] == pytest.approx(11)
    for bad in ("old", "20:10:5", "20:30:0", "20:30", "nan:30:1", "", "10:100:0.00001"):
        with pytest.raises(ValueError, match="expected an age"):
            parse_ages(bad, model)
    for outside in ("5", "20,101", "nan"):
        with pytest.raises(ValueError, match="none of the model's ages, 10 to 100"):
            parse_ages(outside, model)


def test_grids_images_and_folders(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    main(["sample", "--checkpoint", model, "--age", "20:60:20", "--count", "2", "--out", str(tmp_path / "grid")])
    with Image.open(tmp_path / "grid/grid.png") as grid:
        assert grid.size == (3 * SIZE, 26 + 4 * SIZE)
        assert json.loads(grid.info["Recipe"])["ages"] == [20, 40, 60]
    files = sample(model, tmp_path / "images", ["female"], "30,50", count=11, format="images")
    assert len(files) == 22
    assert files[0] == tmp_path / "images/00-female-30.png"
    files = sample(model, tmp_path / "set", ages="30", count=2, seed=3, format="folder")
    with (tmp_path / "set" / LABELS).open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["sex"] for row in rows] == ["female", "male"] * 2
    assert rows[3] == {"file": "1-male-30.png", "sex": "male", "age": "30.0", "noise": "1"}
    for file in files:
        with Image.open(file) as image:
            assert image.size == (SIZE, SIZE)
            assert is_marked_synthetic(np.asarray(image))
            assert json.loads(image.info["Recipe"])["seed"] == 3
    again = sample(model, tmp_path / "again", ages="30", count=2, seed=3, format="images")
    np.testing.assert_array_equal(np.asarray(Image.open(again[0])), np.asarray(Image.open(files[0])))
    with pytest.raises(CheckpointError, match=r"is of .*, expected a checkpoint of LabelConditionedDCGAN"):
        sample("zoo:quickstart", tmp_path)


# ------------------------------------------------------------------------------------------------------------- age


def test_a_photo_at_other_ages(tmp_path: Path, estimator: str) -> None:
    model = checkpoint(tmp_path, learns="encoder")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (1, 2):
        Image.open(orl_root() / f"s{number}/1.pgm").save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    report = age_photos(model, photos, "20,60", out, steps=2, estimator=estimator, align=False)
    assert set(report["results"]) == {"reconstruction", "aged"}
    with (out / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["photo"], row["kind"]) for row in rows[:3]] == [("1", "reconstruction"), ("1", "aged"), ("1", "aged")]
    assert [float(row["age"]) for row in rows[1:3]] == [20, 60]
    assert report["results"]["aged"]["distance"] == pytest.approx(
        np.mean([float(row["distance"]) for row in rows if row["kind"] == "aged"]), abs=1e-5
    )
    with Image.open(out / "1.png") as strip:
        assert strip.height == SIZE + 26
    assert "broken.jpg" in (out / "rejected.csv").read_text()

    sexes = ["--sex", "male", "--own-age", "33", "--steps", "0", "--no-align", "--estimator", estimator]
    main(["age", "--checkpoint", model, "--photo", str(photos / "1.png"), "--ages", "50", "--out", str(out), *sexes])
    with (out / "results.csv").open(newline="") as table:
        first = next(csv.DictReader(table))
    assert (first["sex"], float(first["age"])) == ("male", 33)
    with pytest.raises(ValueError, match="own-age 5 is none"):
        age_photos(model, photos, "20", out, own_age=5, estimator=estimator)
    with pytest.raises(ValueError, match="has no encoder"):
        age_photos(checkpoint(tmp_path), photos, "20", out, estimator=estimator)


# -------------------------------------------------------------------------------------------------------- evaluate


def test_figures_of_generated_and_of_real_faces(
    tmp_path: Path, estimator: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(tmp_path)
    out = tmp_path / "out"
    main(["evaluate", "--checkpoint", model, "--data", str(recipe), "--estimator", estimator, "--out", str(out)])
    assert "by MTCNN" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    data = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    split = UTKFaceDataModule(**{**data, "root": Path(data["root"])}).split
    held_out = len(split.unseen["val"]) + len(split.unseen["test"])
    assert report["faces"] == held_out
    assert report["training_photos"] == len(split.train)
    real, made = report["real"], report["generated"]
    assert set(real) == set(made)
    assert {"cascades", "cascades/smile", "mtcnn", "age_error", "sex_accuracy", "variety", "nearest_training"} <= set(
        real
    )
    assert made["mtcnn"] < real["mtcnn"]  # nothing was trained
    assert report["ratio"]["mtcnn"] == pytest.approx(made["mtcnn"] / real["mtcnn"])
    assert made["variety"] < 0.5 * real["variety"]
    assert real["nearer_than_most"] < 0.1
    assert made["frechet_distance"] > real["frechet_distance"]
    assert made["nearest_training"] > real["nearest_training"]
    assert (out / "nearest.png").is_file()
    with (out / "nearest.csv").open(newline="") as table:
        nearest = list(csv.DictReader(table))
    assert len(nearest) == held_out
    data_module = UTKFaceDataModule(**{**data, "root": Path(data["root"])})
    training = {data_module.photos[row].name for row in data_module.split.train}
    assert {row["training_photo"] for row in nearest} <= training
    assert report["estimator_has_seen_none"] is False  # what it was trained on is not known
    few = evaluate(model, tmp_path / "few", recipe, count=5, estimator=estimator)
    assert few["faces"] == 5
    with pytest.raises(ValueError, match="--count is 3"):
        evaluate(model, tmp_path / "few", recipe, count=3, estimator=estimator)


def test_data_that_a_model_was_not_trained_on_are_refused(tmp_path: Path, estimator: str, recipe: Path) -> None:
    file = checkpoint(tmp_path)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"photos_digest": "0" * 12}, file)
    with pytest.raises(ValueError, match="these data train on other photos"):
        evaluate(file, tmp_path / "out", recipe, estimator=estimator)
    config = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    digest = digest_of_training_photos(UTKFaceDataModule(**{**config, "root": Path(config["root"])}))
    torch.save(content | {"photos_digest": digest}, file)
    assert evaluate(file, tmp_path / "out", recipe, count=4, estimator=estimator)["faces"] == 4


# ----------------------------------------------------------------------------------------------------------- clean


def photos_of(count: int, person: torch.Tensor | None = None) -> LabelledPhotos:
    noise = torch.Generator().manual_seed(0)
    age = 10 + 80 * torch.rand(count, generator=noise)
    sex = torch.where(torch.rand(count, generator=noise) < 0.5, -1.0, 1.0)
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    person = torch.full((count,), -1) if person is None else person
    return LabelledPhotos([str(row) for row in range(count)], images, person, sex, age)


def test_nobody_is_in_two_folds() -> None:
    person = torch.arange(100) % 20
    fold = fold_of(person, 4, seed=1)
    assert all(len(fold[person == each].unique()) == 1 for each in range(20))
    alone = fold_of(torch.full((100,), -1), 4, seed=1)
    assert alone.bincount().tolist() == [25] * 4


def test_planted_labels_are_wrong() -> None:
    photos = photos_of(200)
    changed, planted = plant_errors(photos, 0.1, seed=0)
    assert int(planted.sum()) == 20
    other_sex = changed.sex != photos.sex
    other_age = changed.age != photos.age
    assert torch.equal(other_sex | other_age, planted)
    assert int(other_sex.sum()) == int(other_age.sum()) == 10
    assert bool(((changed.age - photos.age).abs()[other_age] >= 20).all())


def test_wrong_labels_are_the_most_doubtful() -> None:
    photos, planted = plant_errors(photos_of(300), 0.1, seed=0)
    truth = photos_of(300)
    noise = torch.Generator().manual_seed(1)
    years = -0.5 * ((torch.arange(YEARS) - truth.age[:, None]) / 6).square()
    predicted = Predicted(3 * truth.sex + torch.randn(300, generator=noise), years)
    doubt = doubts(predicted, photos.sex, photos.age)
    worst = doubt.argsort(descending=True)[:30]
    assert int(planted[worst].sum()) >= 26
    surer = doubts(Predicted(10 * predicted.male, 10 * years), photos.sex, photos.age)
    assert torch.allclose(surer.mean(), doubt.mean(), rtol=0.2)  # the temperatures take confidence out


def test_networks_judge_photos_that_they_were_not_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    photos = photos_of(60)
    seen: list[torch.Tensor] = []

    class Blind:
        def trained(self, name: str) -> torch.nn.Module:
            return self.Network(len(seen))

        class Network(torch.nn.Module):
            def __init__(self, number: int) -> None:
                super().__init__()
                self.number = number

            def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.full((len(image),), float(self.number)), torch.zeros(len(image), YEARS)

    def train(photos: LabelledPhotos, rows: torch.Tensor, *_: Any) -> Blind:
        seen.append(rows)
        return Blind()

    monkeypatch.setattr(clean_module, "_train", train)
    predicted = cross_validated(photos, 4, 1, 0, tmp_path)
    for number, rows in enumerate(seen, 1):
        judged = (predicted.male == number).nonzero()[:, 0]
        assert not set(judged.tolist()) & set(rows.tolist())
        assert len(judged) + len(rows) == 60


def test_what_clean_writes_is_what_readers_leave_out(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--folds", "2", "--steps", "6", "--share", "0.1"]
    main(["data", "clean", "--data", str(recipe), "--out", str(out), *options])
    assert str(out / PAGE) in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert (report["photos"], report["flagged"]) == (80, 8)
    with (out / TABLE).open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [float(row["doubt"]) for row in rows] == sorted((float(row["doubt"]) for row in rows), reverse=True)
    page = (out / PAGE).read_text()
    assert page.count("data:image/jpeg;base64,") == page.count("data-photo=") == 8
    assert all(row["photo"] in page for row in rows)

    config = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    arguments = {**config, "root": Path(config["root"])}
    names = {photo.name for photo in UTKFaceDataModule(**arguments).photos}
    kept = UTKFaceDataModule(**arguments, leave_out=out / LIST)
    assert names - {photo.name for photo in kept.photos} == {row["photo"] for row in rows}
    assert len(kept.rejected) == 8
    main(["data", "clean", "--data", str(recipe), "--out", str(out), *options, "--plant", "0.05"])
    assert "wrong labels that were planted" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["planted"]["photos"] == 4
    assert not (out / LIST).exists()  # it would leave out photos whose labels are right
    assert not (out / PAGE).exists()
    with pytest.raises(FileNotFoundError, match=r"leave_out: there is no file"):
        UTKFaceDataModule(**arguments, leave_out=tmp_path / "leave-out.txt")


def test_every_photo_is_judged_once(recipe: Path) -> None:
    config = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    photos = labelled_photos(UTKFaceDataModule(**{**config, "root": Path(config["root"]), "batch_size": 7}))
    assert len(photos.names) == len(set(photos.names)) == 80
    assert not math.isnan(float(photos.age.sum()))
    with pytest.raises(ValueError, match="--folds is 1"):
        clean(recipe, Path(), folds=1)
    with pytest.raises(ValueError, match="--share is 2"):
        clean(recipe, Path(), share=2)
    with pytest.raises(ValueError, match="expected 100 or more for 10 folds"):
        clean(recipe, Path(), folds=10)
