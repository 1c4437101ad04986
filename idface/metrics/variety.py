"""How various generated faces are."""

import torch
from torch import Tensor
from torchmetrics import Metric


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
