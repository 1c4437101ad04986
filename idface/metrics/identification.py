"""Who is it? The nearest of a gallery of known people."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
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


def resampled_interval(parts: Sequence[tuple[Tensor, Tensor]], seed: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1, whose trials come in groups, by drawing the groups anew.

    One person's faces, say, are found or lost together: as trials of their own they would be too sure of themselves.

    Args:
        parts: what came out, bool (N,), and of which group, int64 (N,) from 0. Of several parts, drawn together, the
            mean of their shares is meant.
        seed: of the draws.
    """
    groups = 1 + max(int(group.max()) for _, group in parts)
    counts = [
        (torch.bincount(group, right.float(), groups).numpy(), torch.bincount(group, minlength=groups).numpy())
        for right, group in parts
    ]
    present = np.any([asked > 0 for _, asked in counts], axis=0)
    counts = [(right[present], asked[present]) for right, asked in counts]
    drawn = np.random.default_rng(seed).integers(present.sum(), size=(RESAMPLED, present.sum()))
    shares = [right[drawn].sum(1) / np.maximum(1, asked[drawn].sum(1)) for right, asked in counts]
    low, high = np.quantile(np.mean(shares, axis=0), (0.025, 0.975))
    return float(low), float(high)
