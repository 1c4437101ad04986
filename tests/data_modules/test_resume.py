"""A run that goes on from any checkpoint sees the data, to the bit, that it would have seen without stopping."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations
import kornia.augmentation
import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from data_modules.batch import FaceBatch
from data_modules.folder import FaceFolderDataModule
from data_modules.photos import Photo
from data_modules.samplers import IdentityBalanced, SexAgeBalanced, TrainingSampler


class Recorder(pl.LightningModule):
    """Steps one optimiser, and writes down the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(3, 16, 16))
        self.seen: list[tuple[list[int], list[int], float, float]] = []

    def training_step(self, batch: FaceBatch, batch_idx: int) -> None:
        pictures = batch["image"].double().sum().item(), batch["partner"].double().sum().item()
        self.seen.append((batch["index"].tolist(), batch["partner_index"].tolist(), *pictures))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(((self.weight - batch["image"]) ** 2).mean())
        optimizer.step()

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        torch.rand(3)  # a validation that uses random numbers changes nothing

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SaveEverywhere(pl.Callback):
    """Saves a checkpoint in every hook where somebody could."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: pl.Trainer, hook: str) -> None:
        trainer.save_checkpoint(self.folder / f"{hook}_{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save(trainer, "epoch")


class LabelledFaces(FaceFolderDataModule):
    """Of a person's four photos, two show a woman and two an old person."""

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        rows = torch.arange(len(photos))
        return {"sex": (rows % 2) * 2.0 - 1, "age": (rows // 2 % 2) * 50.0 + 20}


def fit(
    root: Path,
    options: dict[str, Any],
    workers: int,
    sampler: TrainingSampler | None = None,
    batch_size: int = 3,
    **fit_options: Any,
) -> tuple[list[Any], Tensor]:
    data = LabelledFaces(
        root,
        align=False,
        image_size=16,
        batch_size=batch_size,
        num_workers=workers,
        val_identities=1,
        test_identities=1,
        sampler=sampler,
        sample_transforms=[albumentations.HorizontalFlip(p=0.5), albumentations.RandomBrightnessContrast(p=1)],
        batch_transforms=[kornia.augmentation.RandomAffine(degrees=10, p=0.7)],
    )
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, data, **fit_options)
    return model.seen, model.weight.detach()


def test_another_batch_size_goes_on_at_about_the_same_point(
    face_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = FaceFolderDataModule(face_folder, align=False, batch_size=2, val_identities=1, test_identities=1)
    loader = data.train_dataloader()
    assert len(loader) == 4
    for _ in range(2):
        list(loader)
    next(iter(loader))
    other = FaceFolderDataModule(
        face_folder, align=False, batch_size=1, val_identities=1, test_identities=1
    ).train_dataloader()
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == {"position": 18, "batches_per_epoch": 8}  # two epochs and a quarter
    assert "saved with 4 batches an epoch, now there are 8" in caplog.text


def test_overfit_batches_is_refused(face_folder: Path) -> None:
    with pytest.raises(ValueError, match="overfit_batches=2 has no effect"):
        fit(face_folder, {"max_steps": 1, "overfit_batches": 2}, workers=0)


@pytest.mark.parametrize(
    ("options", "workers", "sampler"),
    [
        ({"max_epochs": 3}, 0, None),
        ({"max_steps": 6}, 0, None),
        ({"max_steps": 6, "limit_val_batches": 0}, 0, None),
        ({"max_steps": 5, "limit_train_batches": 1}, 0, None),
        ({"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None}, 0, None),
        ({"max_steps": 5}, 2, None),
        ({"max_steps": 5}, 0, IdentityBalanced(2)),
        ({"max_steps": 5}, 2, IdentityBalanced(2)),
        ({"max_steps": 5}, 0, SexAgeBalanced(bins=2)),
        ({"max_steps": 5}, 2, SexAgeBalanced(bins=2)),
    ],
)
def test_every_checkpoint_goes_on_as_if_never_stopped(
    face_folder: Path, tmp_path: Path, options: dict[str, Any], workers: int, sampler: TrainingSampler | None
) -> None:
    batches = {"sampler": sampler, "batch_size": 4 if sampler else 3}
    whole, weight = fit(face_folder, {**options, "callbacks": [SaveEverywhere(tmp_path)]}, workers, **batches)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(whole) >= 5
    assert len({tuple(index) for index, *_ in whole}) == len(whole), "epochs must differ, or this test shows nothing"
    assert len(checkpoints) >= len(whole)
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.split("_")[1])
        rest, resumed_weight = fit(face_folder, options, workers, **batches, ckpt_path=checkpoint, weights_only=True)
        assert rest == whole[done:], checkpoint.name
        if rest:
            assert torch.equal(resumed_weight, weight), checkpoint.name
