"""Losses of a network that describes faces; what is not known (NaN) is skipped."""

import torch.nn.functional as F
from torch import Tensor


def attribute_loss(logits: Tensor, attributes: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over the labels that are known (Liu et al. 2015 train CelebA's attributes so).

    `-log p` of a present and `-log(1 - p)` of an absent attribute, with `p = sigmoid(logit)`.

    Args:
        logits: (B, A).
        attributes: (B, A), 1 present, -1 absent, NaN unknown.

    Returns:
        Scalar, at least 0; 0, with a zero gradient, where nothing is known.
    """
    known = ~attributes.isnan()
    total = F.softplus(-logits[known] * attributes[known]).sum()
    return total / known.sum().clamp(min=1)


def landmark_loss(result: Tensor, landmarks: Tensor) -> Tensor:
    """Mean absolute difference of landmarks' coordinates, of those that are known.

    Args:
        result: (B, P, 2), in any unit.
        landmarks: likewise, NaN unknown.

    Returns:
        Scalar, at least 0, in that unit; 0, with a zero gradient, where nothing is known.
    """
    known = ~landmarks.isnan()
    return (result[known] - landmarks[known]).abs().sum() / known.sum().clamp(min=1)
