"""Wasserstein losses of a critic (Arjovsky et al., 2017) with a gradient penalty (Gulrajani et al., 2017)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def critic_loss(real: Tensor, fakes: Sequence[Tensor], literal: bool = False) -> Tensor:
    """What a critic minimises of eq. 2 and 8: the mean value of generated images less that of real ones.

    The paper sets one real term against two generated ones of full weight; the critic's bias then runs away. Settled:
    the generated terms share a weight of one, so that adding a constant to the critic's output changes nothing.

    Args:
        real: values of real images, (B,).
        fakes: values of each kind of generated images, (B,) each.
        literal: as printed, each generated term of full weight.

    Returns:
        Scalar.
    """
    return -critic_generator_loss(fakes, literal) - real.mean()


def critic_generator_loss(fakes: Sequence[Tensor], literal: bool = False) -> Tensor:
    """What the generator minimises of eq. 2 and 8. E[D(x)] and the penalty are no part of it: it cannot change them.

    Args:
        fakes: the critic's values of each kind of generated images, (B,) each.
        literal: as printed, the kinds summed; else their mean.

    Returns:
        Scalar.
    """
    means = torch.stack([fake.mean() for fake in fakes])
    return -(means.sum() if literal else means.mean())


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """`E[(|grad D(x^)| - 1)^2]` at points x^ drawn evenly between real and generated images (eq. 2), in float32.

    Args:
        critic: images to values (B,); differentiable twice.
        real: (B, C, H, W).
        fake: likewise; detached, as the real ones are.

    Returns:
        Scalar, at least 0, differentiable in the critic's parameters.
    """
    with torch.autocast(real.device.type, enabled=False):
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(real.detach().float(), fake.detach().float(), share).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
