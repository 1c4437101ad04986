import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from idface.cli import lightning
from idface.loggers import CSVLogger, WandbLogger, log_images
from tests.test_cli import TOY


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in to W&B, and no setting of the machine's user counts."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it reads settings once a process
    with mock.patch.dict(os.environ):
        yield
    wandb.teardown()


@pytest.mark.usefixtures("nobody")
def test_wandb_is_offline_unless_the_user_is_logged_in_or_says_otherwise() -> None:
    program = f"""
import os
from idface.loggers import _mode
modes = [_mode()]
for mode in ("disabled", "online"):
    os.environ["WANDB_MODE"] = mode
    modes.append(_mode())
del os.environ["WANDB_MODE"]
os.environ["WANDB_API_KEY"] = "{"0" * 40}"
modes.append(_mode())
print(*modes)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["offline", "disabled", "offline", "online"], result.stderr


@pytest.mark.usefixtures("nobody")
def test_a_run_is_one_wandb_run_with_config_metrics_and_pictures() -> None:
    Path("toy.yaml").write_text(TOY)
    both = "--trainer.logger=[{class_path: CSVLogger}, {class_path: WandbLogger}]"
    lightning(["fit", "--config", "toy.yaml", both])
    lightning(["test", "--config", "toy.yaml", both, "--ckpt_path=last"])
    wandb.teardown()  # its service may still be writing when a run says that it has ended
    files = sorted(Path("runs/toy/0/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # the run's id; folders have the second of their start

    fit, test = (file.read_bytes() for file in files)
    for word in ("trainer/global_step", "train/loss/square", "val/square", "learning_rate", "toy/0", "idface"):
        assert word.encode() in fit
    assert b"test/square" in test
    pictures = list(files[0].parent.glob("files/media/images/val/grid_*.png"))
    assert len(pictures) == 2  # one of the sanity check, one of the validation
    with open("runs/toy/0/fit/metrics.csv", newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps == ["0", "1", "2", "3", "4"]
    config = yaml.safe_load(Path("runs/toy/0/config.yaml").read_text())
    assert config["trainer"]["logger"][1]["init_args"]["project"] == "idface"
    assert "WANDB_MODE" not in os.environ


def test_loggers_keep_the_folder_that_they_were_given(tmp_path: Path) -> None:
    csv_logger, wandb_logger = CSVLogger(save_dir="a"), WandbLogger(save_dir="a", name="mine")
    for logger in (csv_logger, wandb_logger):
        logger.place(tmp_path / "toy/3")
        assert logger.save_dir == "a"
    csv_logger, wandb_logger = CSVLogger(), WandbLogger()
    csv_logger.place(tmp_path / "toy/3/fit")
    wandb_logger.place(tmp_path / "toy/3")
    assert Path(csv_logger.log_dir) == tmp_path / "toy/3/fit"
    assert wandb_logger.save_dir == str(tmp_path / "toy/3")
    assert wandb_logger._name == "toy/3"


class FakeTrainer:
    fast_dev_run = False
    global_step = 12
    loggers = ()

    def __init__(self, folder: Path) -> None:
        self.default_root_dir = str(folder)


def test_pictures_are_written_with_the_recipe_that_made_them(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    trainer = FakeTrainer(tmp_path / "toy/0")
    path = log_images(trainer, "val/unseen", picture, {"class_path": "X"})  # type: ignore[arg-type]
    assert path == tmp_path / "toy/0/samples/val/unseen-0000012.png"
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
        recipe = json.loads(image.info["Recipe"])
    assert recipe == {"class_path": "X", "run": str(tmp_path / "toy/0"), "step": 12}
    trainer.fast_dev_run = True
    assert log_images(trainer, "val/other", picture) is None  # type: ignore[arg-type]
    assert not (tmp_path / "toy/0/samples/val/other-0000012.png").exists()
