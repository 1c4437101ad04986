"""Losses over identity labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1
"""Label of an image whose person is not known."""


def identity_loss(logits: Tensor, identity: Tensor) -> Tensor:
    """Softmax cross-entropy over people (Bao et al., eq. 1 and 6, which are one loss when I and C share weights).

    Args:
        logits: (B, num_identities).
        identity: int64 (B,), -1 for an unlabelled image, which is skipped (section 3.3).

    Returns:
        Scalar mean over the labelled images; 0, with a zero gradient, for a batch without any.
    """
    total = F.cross_entropy(logits, identity, ignore_index=UNKNOWN, reduction="sum")
    return total / (identity != UNKNOWN).sum().clamp(min=1)


def cosface_loss(cosines: Tensor, identity: Tensor, margin: float = 0.35, scale: float = 30.0) -> Tensor:
    """Large-margin cosine loss (Wang et al. 2018, *CosFace*, eq. 4): cross-entropy of `s (cos - m)` for the own person.

    Args:
        cosines: of each embedding and each person's weights, (B, num_identities), in [-1, 1].
        identity: int64 (B,), -1 for an unlabelled image, which is skipped.
        margin: m, by how much the own cosine must be larger.
        scale: s.

    Returns:
        Scalar mean over the labelled images; 0, with a zero gradient, for a batch without any.
    """
    own = torch.zeros_like(cosines).scatter_(1, identity.clamp(min=0)[:, None], margin)
    return identity_loss(scale * (cosines - own), identity)
