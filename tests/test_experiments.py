"""Every recipe in experiments/, through the real command line: two steps on a few faces, then a test."""

import csv
import inspect
import os
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from PIL import Image

from data_modules.photos import Photo
from idface.checkpoints import load_model
from idface.cli import lightning
from idface.modules.label_dcgan import LabelConditionedDCGAN
from idface.names import class_path
from tests.data_modules.test_prepared import KnownFaces, prepare

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = sorted(EXPERIMENTS.glob("*.yaml"))
OVERLAYS = sorted(set(EXPERIMENTS.rglob("*.yaml")) - set(RECIPES))

# What makes a model small, where it has such an argument.
SMALL_MODEL = {"width": 4, "discriminator_width": 4, "convolutions": 1, "attribute_dim": 4, "budget": 30, "people": 2}
SMALL_MODEL |= {"encoder_width": 4, "identity_dim": 4, "hidden": 16}
SMALL_GENERATOR = {"width": 4, "hidden": 16, "image_size": 32}
SMALL_DATA = {
    "align": False,
    "image_size": 32,
    "batch_size": 4,
    "val_identities": 1,
    "test_identities": 1,
    "held_out_photos": 2,
    "sampler": None,
}
SHORT = {
    "max_steps": 2,
    "val_check_interval": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "devices": 1,
    "enable_model_summary": False,
}


def recipe_of(overlay: Path) -> Path:
    """The recipe that an overlay is for: the one whose name its own name or its folder's begins with, or quickstart."""
    names = (overlay.stem, overlay.parent.name)
    owners = [recipe for recipe in RECIPES if any(name.startswith(recipe.stem) for name in names)]
    return max(owners, key=lambda recipe: len(recipe.stem), default=EXPERIMENTS / "quickstart.yaml")


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def name_of_model(configs: list[Path]) -> str:
    return next(name for path in reversed(configs) if (name := load(path).get("model", {}).get("class_path")))


FIGURES = {"AttributeClassifier": "attributes/", "GreedySearchModule": "faces/", "CondVAEGAN": "faces/"}
FIGURES |= {"LabelConditionedDCGAN": "labels/", "AgeSexTraining": "labels/"}
"""What a model's evaluation is about, if not whose face it makes."""


def figures_of(configs: list[Path]) -> str:
    """What the names of the evaluation's figures begin with, after the stage."""
    return FIGURES.get(name_of_model(configs), "identity/")


def makes_faces(configs: list[Path]) -> bool:
    """Whether the model makes faces; the others label or recognise them."""
    return name_of_model(configs) not in ("AttributeClassifier", "LightCNNTraining", "AgeSexTraining")


def needs_labels(configs: list[Path]) -> bool:
    """Whether the model learns from attributes, or from sex and age."""
    return name_of_model(configs) in ("AttributeClassifier", "LabelConditionedDCGAN", "AgeSexTraining")


def last_given(configs: list[Path], argument: str) -> Any:
    """What the last configuration that speaks of a model's argument says."""
    models = [load(path).get("model", {}).get("init_args", {}) for path in configs]
    return next((model[argument] for model in reversed(models) if argument in model), None)


def has_judge(configs: list[Path]) -> bool:
    """Whether the last configuration that speaks of a judge gives one."""
    return last_given(configs, "judge") is not None


class LabelledFaces(KnownFaces):
    """Faces with CelebA's attributes, sexes and ages, at random."""

    attribute_names = load(EXPERIMENTS / "attributes.yaml")["model"]["init_args"]["attributes"]

    def labels(self, photos: Sequence[Photo]) -> dict[str, torch.Tensor]:
        noise = torch.Generator().manual_seed(0)
        present = torch.rand(len(photos), len(self.attribute_names), generator=noise) < 0.5
        sex, age = torch.where(present[:, 0], 1.0, -1.0), 15 + 80 * torch.rand(len(photos), generator=noise)
        return {"attributes": torch.where(present, 1.0, -1.0), "sex": sex, "age": age}


@pytest.fixture(scope="session")
def labelled_folder(face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The faces as `idface prepare` writes them, with labels. Do not write to it."""
    return prepare(LabelledFaces, face_folder, tmp_path_factory.mktemp("labelled") / "faces")


def small(configs: list[Path], face_folder: Path, labelled_folder: Path, folder: Path) -> Path:
    """A last --config that makes what the others describe small and short."""
    arguments = inspect.signature(pkgutil.resolve_name(class_path(name_of_model(configs)))).parameters
    kind, data = "FaceFolderDataModule", {**SMALL_DATA, "root": str(face_folder), "cache_dir": str(folder / "cache")}
    if needs_labels(configs):
        kind, data = "PreparedDataModule", {**SMALL_DATA, "root": str(labelled_folder)}
        del data["align"]
    if name_of_model(configs) == "LabelConditionedDCGAN":  # the recipe's sampler, in two bins, or none
        data["sampler"] = None if "no_balancing" in configs[-1].stem else {"init_args": {"bins": 1}}
    config = {
        "model": {"init_args": {key: value for key, value in SMALL_MODEL.items() if key in arguments}},
        "data": {"class_path": kind, "init_args": data},
        "trainer": SHORT,
    }
    if "learns" in arguments and last_given(configs, "learns") == "encoder":  # against a generator that was trained
        torch.save({"state_dict": LabelConditionedDCGAN(**SMALL_GENERATOR).state_dict()}, folder / "gan.ckpt")
        config["model"]["init_args"] |= {"start": str(folder / "gan.ckpt")}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def metrics(path: Path) -> set[str]:
    """Names of the metrics with a value in a file."""
    with path.open(newline="") as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder of its own; the environment and the process group of `ddp` do not outlast a test."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, {"WANDB_MODE": "disabled"}):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_recipes_are_found() -> None:
    assert {"quickstart", "ipgan"} <= {path.stem for path in RECIPES}
    assert {"cpu", "one_gpu", "ddp"} <= {path.stem for path in OVERLAYS}


@pytest.mark.parametrize(
    "configs",
    [[path] for path in RECIPES] + [[recipe_of(path), path] for path in OVERLAYS],
    ids=lambda configs: "+".join(path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in configs),
)
def test_fit_and_test(configs: list[Path], face_folder: Path, labelled_folder: Path, tmp_path: Path) -> None:
    last = small(configs, face_folder, labelled_folder, tmp_path)
    arguments = [word for path in (*configs, last) for word in ("--config", str(path))]

    lightning(["fit", *arguments])
    run = tmp_path / "runs" / configs[0].stem / "0"
    assert (run / "config.yaml").is_file()
    assert any(name.startswith("train/loss/") for name in metrics(run / "fit/metrics.csv"))

    sampler = load(run / "config.yaml")["data"]["init_args"]["sampler"]
    if any(path.stem.startswith("label_") for path in configs):
        assert (sampler or {}).get("class_path", "").endswith("SexAgeBalanced") == (
            configs[-1].stem != "label_dcgan_no_balancing"
        )

    model = load_model(str(run / "checkpoints/last.ckpt"))  # its recipe suffices to use it
    assert type(model).__name__ == name_of_model(configs).rsplit(".", 1)[-1]

    lightning(["test", *arguments, "--ckpt_path", "last"])
    if makes_faces(configs) and not has_judge(configs):
        return
    assert any(name.startswith("val/") for name in metrics(run / "fit/metrics.csv"))
    assert any(name.startswith(f"test/{figures_of(configs)}") for name in metrics(run / "test/metrics.csv"))
    callbacks = load(configs[0])["trainer"].get("callbacks", [])
    if {"class_path": "RunReport"} in callbacks:
        assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_validate_and_predict(
    recipe: Path, face_folder: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = small([recipe], face_folder, labelled_folder, tmp_path)
    arguments = ["--config", str(recipe), "--config", str(last)]
    lightning(["fit", *arguments, "--trainer.limit_val_batches=0"])
    lightning(["validate", *arguments, "--ckpt_path", "last"])
    run = tmp_path / "runs" / recipe.stem / "0"
    assert any(name.startswith(f"val/{figures_of([recipe])}") for name in metrics(run / "validate/metrics.csv"))
    if not makes_faces([recipe]):
        with pytest.raises(SystemExit):
            lightning(["predict", *arguments, "--ckpt_path", "last"])
        assert "makes no faces" in capsys.readouterr().err
        return

    lightning(["predict", *arguments, "--ckpt_path", "last"])
    faces = sorted(run.glob("samples/predict/*/*.png"))
    assert faces
    with Image.open(faces[0]) as face:
        assert face.size == (SMALL_DATA["image_size"],) * 2
        assert "Recipe" in face.info  # marked as synthetic
