"""A network that labels faces, for vector arithmetic in a generator's latent space (Li & Luo 2017, sections 2.2, 3.4).

The paper picks faces with and without an attribute by hand; here a network does, trained on attribute labels.
"""

from collections.abc import Mapping
from typing import cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from data_modules.batch import EVALUATION_SETS, FaceBatch
from idface.losses.attributes import attribute_loss, landmark_loss
from idface.metrics.attributes import AttributeAccuracy
from idface.modules.base import FaceModule
from idface.networks.attributes import AttributeNetwork
from idface.recognition.alignment import FACE_TEMPLATE

MIRRORED = (1, 0, 2, 4, 3)
"""Which landmark each one is in the mirror image."""


def mirror(image: Tensor, landmarks: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Faces in the mirror.

    Args:
        image: (B, 3, S, S).
        landmarks: (B, 5, 2) in units of the side, or None.

    Returns:
        Both; a left eye is a right eye then. None of CelebA's attributes tells left from right.
    """
    if landmarks is not None:
        x, y = landmarks[:, MIRRORED].unbind(-1)
        landmarks = torch.stack([1 - x, y], -1)
    return image.flip(-1), landmarks


class AttributeClassifier(FaceModule):
    """Learns attributes and landmarks of aligned faces from labels.

    Args:
        attributes: names of the labels, in the order of the data's `attributes`; kept with the weights.
        input_size: side in pixels at which faces are looked at, whatever their own size; a power of two.
        width: channels of the first stage.
        dropout: share of the features that the attributes' head does not see in a step.
        landmark_weight: weight of the landmarks' loss, an L1 in units of the side; 0 where the data has no landmarks.
        mirror: whether half of the batches are seen in the mirror, landmarks too. A transform of the data module would
            leave the landmarks as they are.
        reported: attributes whose figures are logged one by one, beside the means.
        optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        ValueError: `reported` names no attribute of the list, or the network refuses its arguments.
    """

    def __init__(
        self,
        attributes: list[str],
        input_size: int = 64,
        width: int = 32,
        dropout: float = 0.5,
        landmark_weight: float = 30.0,
        mirror: bool = True,
        reported: list[str] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.995,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(None, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        if unknown := set(reported or ()) - set(attributes):
            raise ValueError(f"reported names {min(unknown)}, which is none of the attributes {', '.join(attributes)}")
        self.attributes = attributes
        self.landmark_weight = landmark_weight
        self.mirror = mirror
        self.network = AttributeNetwork(attributes, torch.from_numpy(FACE_TEMPLATE), input_size, width, dropout)
        self.metrics = nn.ModuleDict(
            {split: AttributeAccuracy(attributes, reported or []) for split in EVALUATION_SETS[:2]}
        )

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """The one network."""
        return {"network": self.network}

    @property
    def averaged(self) -> tuple[str, ...]:
        """The one network."""
        return ("network",)

    def setup(self, stage: str) -> None:
        """As the base class; and see that the data's labels are those of the model.

        Raises:
            ValueError: they are others, or in another order: every label would be taken for another one.
        """
        super().setup(stage)
        names = getattr(getattr(self.trainer, "datamodule", None), "attribute_names", None)
        if names is not None and list(names) != self.attributes:
            raise ValueError(
                f"model.attributes are {', '.join(self.attributes)}; the data's are {', '.join(names) or 'none'}. "
                "Expected the same names in the same order"
            )

    def labels(self, batch: FaceBatch) -> tuple[Tensor, Tensor | None]:
        """A batch's attributes (B, A), -1, 1 or NaN, and landmarks (B, 5, 2) in units of the side, if they are wanted.

        Raises:
            ValueError: the batch lacks them, or has another number of attributes.
        """
        if "attributes" not in batch or batch["attributes"].shape[1] != len(self.attributes):
            found = f"{batch['attributes'].shape[1]}" if "attributes" in batch else "no"
            raise ValueError(
                f"batches carry {found} attributes, expected {len(self.attributes)}: "
                "give a set with such labels, such as CelebA, or as model.attributes the names of those that it has"
            )
        if self.landmark_weight == 0:
            return batch["attributes"], None
        if "landmarks" not in batch:
            raise ValueError(
                "batches carry no landmarks: give a set that `idface prepare` has written (PreparedDataModule), or do "
                "without them by --model.landmark_weight=0"
            )
        return batch["attributes"], (batch["landmarks"] + 0.5) / batch["image"].shape[-1]

    def step(self, batch: FaceBatch) -> None:
        """One batch, half of them in the mirror."""
        attributes, landmarks = self.labels(batch)
        image = batch["image"]
        if self.mirror and torch.rand(()) < 0.5:
            image, landmarks = mirror(image, landmarks)
        logits, result = self.network(image)
        losses = {"attributes": attribute_loss(logits, attributes)}
        objective = self.as_joint_mean(losses["attributes"], (~attributes.isnan()).sum())
        if landmarks is not None:
            losses["landmarks"] = landmark_loss(result, landmarks)
            objective = objective + self.landmark_weight * self.as_joint_mean(
                losses["landmarks"], (~landmarks.isnan()).sum()
            )
        self.phase("network", objective)
        self.record(losses)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and landmarks (B, 5, 2) of faces (B, 3, S, S) in [-1, 1], by the averaged weights."""
        result: tuple[Tensor, Tensor] = self.trained("network")(image)
        return result

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Label the photos of known and unseen people."""
        split = EVALUATION_SETS[dataloader_idx]
        if split != "gallery":
            logits, result = self(batch["image"])
            attributes, landmarks = self.labels(batch)
            self._accuracies()[split].update(logits, attributes, result, landmarks)

    def test_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, with the test people as the unseen."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """No faces are made.

        Raises:
            ValueError: always; says where the labels are used.
        """
        raise ValueError(
            "AttributeClassifier makes no faces, so there is nothing to predict: `lightning test` measures it, "
            "`idface edit --classifier` uses it"
        )

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        for metric in self._accuracies().values():
            metric.reset()

    def _accuracies(self) -> dict[str, AttributeAccuracy]:
        return {split: cast(AttributeAccuracy, metric) for split, metric in self.metrics.items()}

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/attributes/<split>/<figure>`."""
        for split, metric in self._accuracies().items():
            if metric.update_called:
                figures = {f"{stage}/attributes/{split}/{name}": value for name, value in metric.compute().items()}
                self.log_dict(figures, rank_zero_only=True)
