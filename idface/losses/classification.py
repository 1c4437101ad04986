"""Losses over identity labels."""

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
