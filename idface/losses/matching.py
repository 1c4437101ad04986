"""Losses that pull a generated image, or its features, towards a given one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
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


def mean_absolute_difference(results: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """How far results are from targets, `sum_i |target_i - result_i|_1 / N_i` (*Conditional face synthesis*, eq. 3).

    With one pair of images it is eq. 4, with one of a recogniser's features a term of eq. 7; their L1 norms are means
    over elements as well.

    Args:
        results: features of generated images, layer by layer, or the images: (B, ...) each.
        targets: those of the real images; detached.

    Returns:
        Scalar, at least 0: the means over elements, summed over layers.
    """
    means = [F.l1_loss(own, target.detach()) for own, target in zip(results, targets, strict=True)]
    return torch.stack(means).sum()


def identity_preserving_loss(result_features: Sequence[Tensor], real_features: Sequence[Tensor]) -> Tensor:
    """How far generated faces are from being somebody, in a recogniser's last layers (Vendrow & Singhal, section 2).

    The paper adds "an identity preserving loss using the last two layers of the FaceNet model" to a GAN that is given
    no face to preserve. Settled: the generated faces of a batch are assigned to its real ones, one to one, so that the
    distances of the last layer are least in sum, and each is drawn to its own. One to one, for a few real faces are
    nearest to most others: all faces would be drawn to those.

    Args:
        result_features: features of the generated faces, (B, ...) each; the last decides who is assigned to whom.
        real_features: features of the real faces in the same layers; detached.

    Returns:
        Scalar, at least 0: the squared distance in each layer as a share of the real features' variance over the batch,
        averaged over layers.

    Raises:
        ValueError: no layer, or other layers or another number of faces on one side.
    """
    shapes = [[feature.shape for feature in features] for features in (result_features, real_features)]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise ValueError(f"the features of both sides must be alike and at least one; got {shapes[0]} and {shapes[1]}")
    real = [feature.detach().flatten(1) for feature in real_features]
    result = [feature.flatten(1) for feature in result_features]
    distances = torch.cdist(result[-1].detach().float(), real[-1].float()).square()
    _, assigned = linear_sum_assignment(distances.cpu().numpy())  # rows come in order
    order = torch.from_numpy(assigned).to(distances.device)
    errors = [
        F.mse_loss(own.float(), other.float()[order]) / other.float().var(dim=0, correction=0).mean().clamp(min=1e-12)
        for own, other in zip(result, real, strict=True)
    ]
    return torch.stack(errors).mean()
