"""Losses between a discriminator and a generator."""

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross-entropy of a discriminator (Bao et al., eq. 4; Goodfellow et al., 2014).

    `-log D(x) - log(1 - D(x'))` with `D = sigmoid(logits)`, written with softplus: a sure discriminator's
    `log(0)` never arises.

    Args:
        real_logits: logits of real images, (B,) or (B, 1).
        fake_logits: logits of generated images, same shape.

    Returns:
        Scalar: batch mean of the real term plus batch mean of the fake term.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What a generator wants of a discriminator: `-log D(G(z))`, the loss that does not saturate (Goodfellow et al.,
    2014, section 3), with `D = sigmoid(logits)`.

    Li & Luo (section 2.1) print the other one, `log(1 - D(G(z)))`, whose gradient vanishes while D is sure.

    Args:
        fake_logits: logits of generated images, (B,) or (B, 1).

    Returns:
        Scalar batch mean, at least 0.
    """
    return F.softplus(-fake_logits).mean()


def matching_aware_loss(real_logits: Tensor, fake_logits: Tensor, wrong_logits: Tensor, is_wrong: Tensor) -> Tensor:
    """Cross-entropy of a discriminator that also sees real images with wrong labels (Reed et al. 2016, Algorithm 1).

    `-log D(x, y) - (log(1 - D(x', y)) + log(1 - D(x, y'))) / 2`: it must look at the label, for both kinds of image.

    Args:
        real_logits: (B,), of real images with their labels.
        fake_logits: (B,), of generated images with theirs.
        wrong_logits: (B,), of the real images with labels of others.
        is_wrong: bool (B,), whether these are wrong for them: the mean is over those alone.

    Returns:
        Scalar: a batch mean each; where no label is wrong, half of the fake term and no other.
    """
    weight = is_wrong.float()
    wrong = (F.softplus(wrong_logits) * weight).sum() / weight.sum().clamp(min=1)
    return F.softplus(-real_logits).mean() + (F.softplus(fake_logits).mean() + wrong) / 2
