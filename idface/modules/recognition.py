"""Trains recognisers: for identity losses, and to see what synthetic faces do for them."""

from collections.abc import Mapping
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from data_modules.batch import EVALUATION_SETS, FaceBatch
from idface.losses.classification import UNKNOWN, cosface_loss, identity_loss
from idface.metrics.identification import RankOne
from idface.modules.base import FaceModule
from idface.networks.light_cnn import FaceNetwork, Layers
from idface.recognition.light_cnn import grey_picture


class LightCNNTraining(FaceModule):
    """Trains LightCNN-9 or -29 to tell people apart; `idface export` makes weights for the recogniser `LightCNN` of it.

    Args:
        num_identities: people in the training set; the command line takes it from the data.
        layers: 9 or 29.
        loss: "softmax" (cross-entropy), or "cosface" (the same with a margin between cosines, Wang et al. 2018).
        margin, scale: of "cosface".
        dropout: share of the embedding that the classifier does not see in a step.
        optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        ValueError: fewer than two people, another number of layers, or a margin or scale that is not positive.
    """

    def __init__(
        self,
        num_identities: int,
        layers: Layers = 9,
        loss: Literal["softmax", "cosface"] = "softmax",
        margin: float = 0.35,
        scale: float = 30.0,
        dropout: float = 0.5,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.995,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(None, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        if num_identities < 2:
            raise ValueError(f"num_identities is {num_identities}; telling people apart takes at least 2")
        if margin <= 0 or scale <= 0:
            raise ValueError(f"margin is {margin} and scale {scale}; expected both above 0, such as 0.35 and 30")
        self.num_identities = num_identities
        self.loss = loss
        self.margin = margin
        self.scale = scale
        self.network = FaceNetwork(layers, num_identities, dropout, cosine=loss == "cosface")
        self.known = MulticlassAccuracy(num_identities, average="micro")
        self.unseen = RankOne()

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """The one network."""
        return {"network": self.network}

    @property
    def averaged(self) -> tuple[str, ...]:
        """The one network."""
        return ("network",)

    def step(self, batch: FaceBatch) -> None:
        """One batch; photos of nobody who is known are passed over."""
        identity = batch["identity"]
        _, logits = self.network(grey_picture(batch["image"]))
        if self.loss == "cosface":
            loss = cosface_loss(logits, identity, self.margin, self.scale)
        else:
            loss = identity_loss(logits, identity)
        self.phase("network", self.as_joint_mean(loss, (identity != UNKNOWN).sum()))
        self.record({"identity": loss})

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, 256) and logits (B, N) of faces (B, 3, S, S) in [-1, 1], by the averaged weights."""
        embedding, logits = self.trained("network")(grey_picture(image))
        return embedding, self.scale * logits if self.loss == "cosface" else logits

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Classify held-out photos of known people; look for unseen ones in the gallery."""
        embedding, logits = self(batch["image"])
        match EVALUATION_SETS[dataloader_idx]:
            case "known":
                self.known.update(logits, batch["identity"])
            case "unseen":
                self.unseen.update(embedding, batch["identity"])
            case _:
                self.unseen.update_gallery(embedding, batch["identity"])

    def test_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, with the test people as the unseen."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """No faces are made.

        Raises:
            ValueError: always; says where the weights are used.
        """
        raise ValueError(
            "LightCNNTraining makes no faces, so there is nothing to predict: `lightning test` measures it, and what "
            "`idface export` writes of it is a recogniser, lightcnn9:FILE"
        )

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        self.known.reset()
        self.unseen.reset()

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/identity/known/top1` and `<stage>/identity/unseen/...`."""
        figures = {}
        if self.known.update_called:
            figures["known/top1"] = self.known.compute()
        if self.unseen.update_called:
            figures |= {f"unseen/{name}": value for name, value in self.unseen.compute().items()}
        self.log_dict({f"{stage}/identity/{name}": value for name, value in figures.items()}, rank_zero_only=True)
