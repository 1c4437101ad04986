"""Trains the estimator of age and sex that judges the label-conditioned GAN (Sanche, whose paper had none)."""

from collections.abc import Mapping
from typing import cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from data_modules.batch import EVALUATION_SETS, FaceBatch, labels_of
from idface.losses.attributes import age_loss, attribute_loss
from idface.metrics.labels import LabelObedience
from idface.modules.base import FaceModule
from idface.networks.age_sex import AgeSexNetwork, expected_age


class AgeSexTraining(FaceModule):
    """Learns age and sex from labels; `idface export` makes weights for `AgeSexEstimator` of it.

    Args:
        input_size: side in pixels at which faces are looked at, whatever their own size; a power of two.
        width: channels of the first stage.
        dropout: share of the features that the head does not see in a step.
        sex_weight: weight of the sex's loss beside the age's.
        optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        ValueError: `sex_weight` is negative, or the network refuses its arguments.
    """

    def __init__(
        self,
        input_size: int = 64,
        width: int = 32,
        dropout: float = 0.5,
        sex_weight: float = 3.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.995,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(None, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        if sex_weight < 0:
            raise ValueError(f"sex_weight is {sex_weight}; expected 0 or more")
        self.sex_weight = sex_weight
        self.network = AgeSexNetwork(input_size, width, dropout)
        self.metrics = nn.ModuleDict({split: LabelObedience() for split in EVALUATION_SETS[:2]})

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """The one network."""
        return {"network": self.network}

    @property
    def averaged(self) -> tuple[str, ...]:
        """The one network."""
        return ("network",)

    def step(self, batch: FaceBatch) -> None:
        """One batch; what is not known of a photo is passed over."""
        sex, age = labels_of(batch)
        male, years = self.network(batch["image"])
        losses = {"age": age_loss(years, age), "sex": attribute_loss(male[:, None], sex[:, None])}
        objective = self.as_joint_mean(losses["age"], (~age.isnan()).sum())
        objective = objective + self.sex_weight * self.as_joint_mean(losses["sex"], (~sex.isnan()).sum())
        self.phase("network", objective)
        self.record(losses)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Sex (B,), -1 or 1, and age (B,) in years of faces (B, 3, S, S) in [-1, 1], by the averaged weights."""
        male, years = self.trained("network")(image)
        return torch.where(male > 0, 1.0, -1.0), expected_age(years)

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Estimate what photos of known and unseen people are labelled with."""
        split = EVALUATION_SETS[dataloader_idx]
        if split != "gallery":
            self._metrics()[split].update(labels_of(batch), self(batch["image"]))

    test_step = validation_step

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """No faces are made.

        Raises:
            ValueError: always; says where the weights are used.
        """
        raise ValueError(
            "AgeSexTraining makes no faces, so there is nothing to predict: `lightning test` measures it, and what "
            "`idface export` writes of it judges faces, as --model.estimator.weights or --estimator"
        )

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        for metric in self._metrics().values():
            metric.reset()

    def _metrics(self) -> dict[str, LabelObedience]:
        return {split: cast(LabelObedience, metric) for split, metric in self.metrics.items()}

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/labels/<split>/<figure>`."""
        for split, metric in self._metrics().items():
            if metric.update_called:
                figures = {f"{stage}/labels/{split}/{name}": value for name, value in metric.compute().items()}
                self.log_dict(figures, rank_zero_only=True)
