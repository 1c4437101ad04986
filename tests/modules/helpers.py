"""Small models and trainers for the tests of modules."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.batch import FaceBatch
from data_modules.orl import ORLDataModule
from idface.modules.ipgan import OpenSetIPGAN

PEOPLE = 4


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser whose update is the gradient itself."""
    return torch.optim.SGD(parameters, lr=1.0)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.5, 0.999))


def small_ipgan(**arguments: Any) -> OpenSetIPGAN:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_identities": PEOPLE,
        "image_size": 16,
        "width": 4,
        "discriminator_width": 4,
        "convolutions": 1,
        "attribute_dim": 3,
        "optimizer": sgd,
        "ema_decay": 0.0,
    }
    return OpenSetIPGAN(**(defaults | arguments))


def small_data(**arguments: Any) -> ORLDataModule:
    defaults: dict[str, Any] = {"image_size": 16, "batch_size": 8, "attributes_per_query": 1}
    return ORLDataModule(**(defaults | arguments))


class Batches(Dataset[FaceBatch]):
    """Batches of noise, made in advance."""

    def __init__(self, count: int = 4, size: int = 6, labelled: bool = True, image_size: int = 16) -> None:
        noise = torch.Generator().manual_seed(1)
        shape = (count, size, 3, image_size, image_size)
        self.image = torch.rand(shape, generator=noise) * 2 - 1
        self.partner = torch.rand(shape, generator=noise) * 2 - 1
        self.identity = torch.arange(size).expand(count, -1) % PEOPLE if labelled else torch.full((count, size), -1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, row: int) -> FaceBatch:
        index = torch.arange(self.image.shape[1]) + row * self.image.shape[1]
        return {
            "image": self.image[row],
            "partner": self.partner[row],
            "identity": self.identity[row],
            "index": index,
            "partner_index": index.roll(1),
        }


def loader(**arguments: Any) -> DataLoader[FaceBatch]:
    return DataLoader(Batches(**arguments), batch_size=None)


def trainer(steps: int, folder: Path | None = None, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | arguments))


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
