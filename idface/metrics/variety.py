"""How various generated faces are, and how like real ones all of them together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance


class MeanPairDistance(Metric):
    """Mean squared distance of the pairs of unit embeddings, over all of them and all ranks.

    Of N unit vectors with mean m it is `2 N / (N - 1) (1 - |m|^2)`, so none has to be kept.

    Args:
        embedding_dim: length D of an embedding.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(embedding_dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, embeddings: Tensor) -> None:
        """Take unit embeddings (N, D)."""
        self.total += embeddings.double().sum(0)
        self.count += len(embeddings)

    def compute(self) -> Tensor:
        """Scalar float32 between 0 and 4; NaN for fewer than two embeddings."""
        spread = 1 - (self.total / self.count).square().sum()
        return (2 * self.count / (self.count - 1) * spread).float()


class AsTheyAre(nn.Module):
    """Embeddings where torchmetrics expects a network from images to features.

    Args:
        embedding_dim: length D of an embedding.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.num_features = embedding_dim

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D) to the same."""
        return embeddings


class JudgedFaces(nn.Module):
    """Generated faces beside real ones, by their embeddings, over all ranks.

    Args:
        embedding_dim: length D of the judge's embeddings.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.frechet = FrechetInceptionDistance(AsTheyAre(embedding_dim))
        self.variety_real = MeanPairDistance(embedding_dim)
        self.variety_generated = MeanPairDistance(embedding_dim)

    def update(self, embeddings: Tensor, real: bool) -> None:
        """Take unit embeddings (B, D)."""
        self.frechet.update(embeddings, real=real)
        (self.variety_real if real else self.variety_generated).update(embeddings)

    def compute(self) -> dict[str, Tensor]:
        """`variety_real`, `variety_generated`: mean squared distance of two faces; `frechet_distance`.

        Empty where there are not two faces of either kind, on all ranks together.
        """
        figures = {"variety_real": self.variety_real.compute(), "variety_generated": self.variety_generated.compute()}
        if not all(bool(torch.isfinite(value)) for value in figures.values()):
            return {}
        return figures | {"frechet_distance": self.frechet.compute()}

    def reset(self) -> None:
        """Forget all faces."""
        for metric in (self.frechet, self.variety_real, self.variety_generated):
            metric.reset()


def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """How unlike pictures look to a network, layer by layer: LPIPS (Zhang et al. 2018, eq. 1) with equal weights.

    Args:
        first: feature maps of B pictures, (B, C, H, W) each.
        second: of B others.

    Returns:
        (B,) at least 0: squared distance of the channels' unit vectors, the mean over places, summed over layers.
    """
    layers = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(layers).sum(0)
