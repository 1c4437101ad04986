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
