"""Losses that pull a generated image, or its features, towards a given one."""

import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(result: Tensor, attribute_image: Tensor) -> Tensor:
    """Half the mean squared pixel error (Bao et al., eq. 2, without its factor lambda).

    The paper's squared norm is a sum over pixels; as a sum, 49,152 of them drown the feature losses, so every squared
    norm here is a mean over elements and its weight is an argument of the module. Lambda is applied there too, once.

    Args:
        result: x', (B, C, H, W) in [-1, 1].
        attribute_image: x^a, same shape and range; no gradient flows into it.

    Returns:
        Scalar, at least 0.
    """
    return 0.5 * F.mse_loss(result, attribute_image.detach())


def feature_matching_loss(result_features: Tensor, target_features: Tensor) -> Tensor:
    """Half the mean squared distance of features (Bao et al., eq. 5 with f_D and x^a; eq. 7 with f_C and x^s).

    Args:
        result_features: features of x', (B, F).
        target_features: features of the real image, (B, F). Detached: a target is not pulled towards the result.

    Returns:
        Scalar, at least 0.
    """
    return 0.5 * F.mse_loss(result_features, target_features.detach())
