"""Every recipe in experiments/, through the real command line: two steps on a few faces, then a test."""

import csv
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from idface.cli import lightning
from idface.names import class_path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = sorted(EXPERIMENTS.glob("*.yaml"))
OVERLAYS = sorted(set(EXPERIMENTS.rglob("*.yaml")) - set(RECIPES))

# What makes a model small, where it has such an argument.
SMALL_MODEL = {"width": 4, "discriminator_width": 4, "convolutions": 1, "attribute_dim": 4}
SMALL_DATA = {"image_size": 32, "batch_size": 4, "val_identities": 1, "test_identities": 1, "held_out_photos": 2}
SHORT = {
    "max_steps": 2,
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def recipe_of(overlay: Path) -> Path:
    """The recipe that an overlay is for: the one whose name its own name or its folder's begins with, or quickstart."""
    names = (overlay.stem, overlay.parent.name)
    owners = [recipe for recipe in RECIPES if any(name.startswith(recipe.stem) for name in names)]
    return max(owners, key=lambda recipe: len(recipe.stem), default=EXPERIMENTS / "quickstart.yaml")


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def small(configs: list[Path], face_folder: Path, folder: Path) -> Path:
    """A last --config that makes what the others describe small and short."""
    name = next(name for path in reversed(configs) if (name := load(path).get("model", {}).get("class_path")))
    arguments = inspect.signature(pkgutil.resolve_name(class_path(name))).parameters
    data = {**SMALL_DATA, "root": str(face_folder), "cache_dir": str(folder / "cache")}
    config = {
        "model": {"init_args": {key: value for key, value in SMALL_MODEL.items() if key in arguments}},
        "data": {"class_path": "FaceFolderDataModule", "init_args": data},
        "trainer": SHORT,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def metrics(path: Path) -> set[str]:
    """Names of the metrics with a value in a file."""
    with path.open(newline="") as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


def test_recipes_are_found() -> None:
    assert {"quickstart", "ipgan"} <= {path.stem for path in RECIPES}
    assert {"cpu", "one_gpu", "ddp"} <= {path.stem for path in OVERLAYS}


@pytest.mark.parametrize(
    "configs",
    [[path] for path in RECIPES] + [[recipe_of(path), path] for path in OVERLAYS],
    ids=lambda configs: "+".join(path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in configs),
)
def test_fit_and_test(configs: list[Path], face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "IDFACE_RUN_FOLDER", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    arguments = [word for path in (*configs, small(configs, face_folder, tmp_path)) for word in ("--config", str(path))]

    lightning(["fit", *arguments])
    run = tmp_path / "runs" / configs[0].stem / "0"
    assert (run / "config.yaml").is_file()
    assert any(name.startswith("train/loss/") for name in metrics(run / "fit/metrics.csv"))

    lightning(["test", *arguments, "--ckpt_path", "last"])
    assert any(name.startswith("test/identity/") for name in metrics(run / "test/metrics.csv"))
    callbacks = load(configs[0])["trainer"].get("callbacks", [])
    if {"class_path": "RunReport"} in callbacks:
        assert (run / "report.html").stat().st_size > 10_000
