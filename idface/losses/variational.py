"""The Kullback-Leibler term of a variational encoder and the matching way to draw from it."""

import torch
from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over dimensions (Bao et al., eq. 3).

    Eq. 3, `(mu^T mu + sum(exp(eps) - eps - 1)) / 2`, is exact when eps is the log variance.

    Args:
        mean: mu, (B, J).
        log_variance: eps, (B, J).

    Returns:
        Scalar: batch mean of the sums over J, in nats, at least 0.
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()


def sample_posterior(mean: Tensor, log_variance: Tensor, literal: bool = False) -> Tensor:
    """Draw `mu + r * exp(eps / 2)` with r ~ N(0, I), the draw that eq. 3 belongs to.

    Args:
        mean: mu, (B, J).
        log_variance: eps, (B, J).
        literal: draw `mu + r * exp(eps)` as Bao et al. print it. The standard deviation is then exp(eps) while eq. 3
            takes it for exp(eps / 2), so the two no longer speak of the same distribution.

    Returns:
        (B, J), differentiable in both arguments (Kingma & Welling, 2013).
    """
    deviation = log_variance.exp() if literal else (0.5 * log_variance).exp()
    return mean + torch.randn_like(mean) * deviation
