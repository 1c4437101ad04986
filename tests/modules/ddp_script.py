"""Trains in one or two processes and leaves what came out: `python -m tests.modules.ddp_script CASE PROCESSES FOLDER`.

Cases: `joint`, one reconstruction step without batch norm and without noise, where two processes with half a batch each
must do what one does with the whole; `real`, several steps of the model as it is, on real data; `search`, a few steps
of the searcher, its evaluation, and the prediction of the untrained one; `vaegan`, a few steps of the conditional
VAE-GAN and its evaluation; `labels`, steps of the label-conditioned GAN in which its gate closes.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from idface.latent.strategies import LiLuo
from idface.modules.cond_vaegan import CondVAEGAN
from idface.modules.greedy_search import GreedySearchModule
from idface.modules.ipgan import OpenSetIPGAN
from idface.recognition.dlib_resnet import DlibResNet
from tests.modules.helpers import Batches, adam, sgd, small_data, small_ipgan, trainer
from tests.modules.test_label_dcgan import Labelled
from tests.modules.test_label_dcgan import small as small_labels

LABEL_STEPS = 40


class Halves(LightningDataModule):
    """A batch of eight, or this process's part of it."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        batch = Batches(count=1, size=8)[0]
        batch["identity"][[0, 1, 6]] = -1  # the halves differ in how many labelled photos they have
        part = {name: value.chunk(self.trainer.world_size)[self.trainer.global_rank] for name, value in batch.items()}
        return DataLoader([part], batch_size=None)


class LabelledHalves(LightningDataModule):
    """Batches of labelled pictures, or this process's part of each."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        batches = [cast(dict[str, Tensor], batch) for batch in Labelled(LABEL_STEPS)]
        parts = [{name: value.chunk(processes)[rank] for name, value in batch.items()} for batch in batches]
        return DataLoader(parts, batch_size=None)  # type: ignore[arg-type]


class Leave(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(metrics))


def without_batch_norm_and_noise() -> OpenSetIPGAN:
    model = small_ipgan(optimizer=sgd, kl_weight=0.0)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        model.attribute_encoder.posterior.weight[3:] = 0
        model.attribute_encoder.posterior.bias[3:] = -100  # a log variance so small that r does not matter
    return model


def small_search() -> GreedySearchModule:
    torch.manual_seed(0)
    sizes = {"latent_dim": 6, "image_size": 16, "width": 4, "discriminator_width": 4}
    return GreedySearchModule(
        **sizes, judge=DlibResNet(), optimizer=adam, ema_decay=0.9, strategy=LiLuo(), budget=64, people=3
    )


def small_vaegan() -> CondVAEGAN:
    torch.manual_seed(0)
    sizes = {"latent_dim": 6, "image_size": 32, "width": 4, "encoder_width": 4, "discriminator_width": 4}
    return CondVAEGAN(32, **sizes, judge=DlibResNet(), optimizer=adam, ema_decay=0.9)


def main(case: str, processes: int, folder: Path) -> None:
    data: LightningDataModule
    model: LightningModule
    if case == "joint":
        model, data, steps = without_batch_norm_and_noise(), Halves(), 1
    elif case == "labels":
        model = small_labels(optimizer=partial(torch.optim.Adam, lr=2e-2), ema_decay=0.9)
        data, steps = LabelledHalves(), LABEL_STEPS
    elif case == "search":
        model, data, steps = small_search(), small_data(partner=False), 2
    elif case == "vaegan":
        model, data, steps = small_vaegan(), small_data(image_size=32, partner=False), 3
    else:
        model = small_ipgan(num_identities=32, optimizer=adam, ema_decay=0.9, judge=DlibResNet())
        data, steps = small_data(), 4
    run = trainer(
        steps,
        folder,
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",  # a spawned process would import everything again
        limit_val_batches=0 if case in ("joint", "labels") else 1.0,
        val_check_interval=None if case in ("joint", "labels") else steps,
        callbacks=[Leave(folder)],
    )
    if case == "search":
        run.predict(model, data, return_predictions=False)
    run.fit(model, data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
