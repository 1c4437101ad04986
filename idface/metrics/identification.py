"""Who is it? The nearest of a gallery of known people."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

RESAMPLED = 1000


class RankOne(Metric):
    """Share of faces whose nearest gallery photo, by the cosine of embeddings, is of the right person.

    `compute` gives, as scalars: `top1`; `chance`, one in the size of the gallery; `faces`, how many were looked for.
    Faces of people without a photo in the gallery are left out.
    """

    full_state_update = False
    embedding: list[Tensor]
    identity: list[Tensor]
    gallery: list[Tensor]
    gallery_identity: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("embedding", "identity", "gallery", "gallery_identity"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embedding: Tensor, identity: Tensor) -> None:
        """Add faces to look for: embeddings (B, D), of any length, and int64 (B,)."""
        self.embedding.append(embedding)
        self.identity.append(identity)

    def update_gallery(self, embedding: Tensor, identity: Tensor) -> None:
        """Add photos of known people: embeddings (B, D), of any length, and int64 (B,)."""
        self.gallery.append(embedding)
        self.gallery_identity.append(identity)

    def compute(self) -> dict[str, Tensor]:
        """The figures listed above, float32; empty where there is nobody to look for or no gallery."""
        if not len(self.embedding) or not len(self.gallery):  # a tensor each once ranks are put together
            return {}
        gallery = dim_zero_cat(self.gallery)
        right = found(
            dim_zero_cat(self.embedding), dim_zero_cat(self.identity), gallery, dim_zero_cat(self.gallery_identity)
        )
        if not len(right):
            return {}
        return {
            "top1": right.float().mean(),
            "chance": torch.tensor(1.0 / len(gallery), device=gallery.device),
            "faces": torch.tensor(float(len(right)), device=gallery.device),
        }


def found(embedding: Tensor, identity: Tensor, gallery: Tensor, gallery_identity: Tensor) -> Tensor:
    """Whether the nearest photo of a gallery, by the cosine of embeddings, is of the right person.

    Args:
        embedding: (N, D), of any length.
        identity: int64 (N,). Who has no photo in the gallery is left out.
        gallery: (G, D), of any length.
        gallery_identity: int64 (G,).

    Returns:
        bool (n,), in the order of those that are left.
    """
    there = torch.isin(identity, gallery_identity)
    nearest = (F.normalize(embedding[there]) @ F.normalize(gallery).T).argmax(1)
    return gallery_identity[nearest] == identity[there]


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1, among `count` independent trials (Wilson 1927)."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def drawn_anew(groups: int, seed: int) -> NDArray[np.int64]:
    """How often each of some groups is drawn when as many are drawn of them, with replacement: (R, groups), R draws."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLED)


def resampled_shares(right: Tensor, times: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """A share, from 0 to 1, in each of R draws of the trials that it is of, for intervals (see `middle`).

    Trials that are not independent, such as those with one person's photos, are to be drawn together. Shares with the
    same draws may be subtracted or averaged, draw by draw.

    Args:
        right: what came out, bool (N,), or (T, N) of T trainings, which are drawn anew as well: of a few trainings
            that shows less than the whole spread.
        times: how often each trial is drawn, (R, N).
        seed: of the draws of trainings.
    """
    every = right.float().reshape(-1, right.shape[-1]).numpy()
    shares = (times @ every.T) / np.maximum(1, times.sum(1, keepdims=True))  # (R, T)
    which = drawn_anew(len(every), seed) / len(every)
    result: NDArray[np.float64] = (which * shares).sum(1)
    return result


def middle(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a figure, from what it is in each draw (Efron 1979, percentiles)."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
