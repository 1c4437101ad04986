"""Losses of a network that describes faces; what is not known (NaN) is skipped."""

import torch
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


def age_loss(logits: Tensor, age: Tensor, deviation: float = 2.0) -> Tensor:
    """Ages as distributions: DLDL-v2 (Gao et al. 2018, eq. 5 and 6), the mean over the ages that are known.

    The cross-entropy to a normal distribution around the age (the KL divergence but for a constant), and the absolute
    error of the expected age, in years; equal weights.

    Args:
        logits: (B, Y) of the years 0 to Y - 1.
        age: (B,) years, NaN unknown; beyond the last year it counts as that.
        deviation: standard deviation of the normal distribution, in years.

    Returns:
        Scalar, at least 0; 0, with a zero gradient, where nothing is known.
    """
    known = ~age.isnan()
    logits, age = logits[known], age[known].clamp(0, logits.shape[1] - 1)
    years = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
    target = (-0.5 * ((years - age[:, None]) / deviation).square()).softmax(1)
    likeness = -(target * logits.log_softmax(1)).sum(1)
    error = (logits.softmax(1) @ years - age).abs()
    return (likeness + error).sum() / known.sum().clamp(min=1)
