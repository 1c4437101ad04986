"""A model and data of a few numbers, named by the configurations that the tests of the command line write."""

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from idface.loggers import log_images


class Encoder(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()


class DeepEncoder(Encoder):
    def __init__(self, depth: int = 8, dropout: float = 0.0) -> None:
        super().__init__()


class EncoderOfFile(Encoder):
    def __init__(self, depth: int = 1, file: str | None = None) -> None:
        super().__init__()


class ToyModel(LightningModule):
    recipe = None

    def __init__(
        self,
        num_identities: int,
        image_size: int = 8,
        width: int = 4,
        learning_rate: float = 0.1,
        encoder: Encoder | None = None,
        widths: list[int] | None = None,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width is {width}; expected at least 1")
        self.arguments = {"num_identities": num_identities, "image_size": image_size, "width": width}
        self.learning_rate = learning_rate
        self.linear = nn.Linear(3, num_identities)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.linear(batch).square().mean()
        self.log("train/loss/square", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/square", self.linear(batch).square().mean())

    def on_validation_end(self) -> None:
        log_images(self.trainer, "val/grid", np.full((4, 6, 3), 7, np.uint8))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/square", self.linear(batch).square().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.linear(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class UnconditionalModel(ToyModel):
    """Neither counts people nor knows the size of images."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(num_identities=3, width=width)


class ToyData(LightningDataModule):
    num_identities = 5

    def __init__(self, image_size: int = 16, length: int = 4) -> None:
        super().__init__()
        self.length = length

    def train_dataloader(self) -> DataLoader[Tensor]:
        numbers = torch.randn(2 * self.length, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(numbers, batch_size=2)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class PlainData(ToyData):
    """Data of another shape: without an image size."""

    def __init__(self, length: int = 4) -> None:
        super().__init__(length=length)
