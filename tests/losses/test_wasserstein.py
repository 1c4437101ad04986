"""The critic's losses and its penalty, against independent computations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idface.losses.wasserstein import critic_generator_loss, critic_loss, gradient_penalty
from idface.networks.cvae_gan import Discriminator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_critic_loss_is_equation_8_with_half_a_weight_for_each_kind_of_fake() -> None:
    real, encoded, drawn = normal(5), normal(5, seed=1), normal(5, seed=2)
    adversarial = np.mean(real.tolist()) - 0.5 * np.mean(encoded.tolist()) - 0.5 * np.mean(drawn.tolist())
    assert np.isclose(critic_loss(real, [encoded, drawn]).item(), -adversarial)
    assert np.isclose(critic_loss(real, [drawn]).item(), np.mean(drawn.tolist()) - np.mean(real.tolist()))


def test_the_generator_wants_high_values_of_both_kinds() -> None:
    encoded, drawn = normal(5), normal(5, seed=1)
    expected = -(sum(encoded.tolist()) + sum(drawn.tolist())) / 10
    assert np.isclose(critic_generator_loss([encoded, drawn]).item(), expected)


def test_as_printed_each_kind_has_a_full_weight_and_a_constant_runs_away() -> None:
    real, encoded, drawn = normal(5), normal(5, seed=1), normal(5, seed=2)
    printed = critic_loss(real, [encoded, drawn], literal=True)
    adversarial = np.mean(real.tolist()) - np.mean(encoded.tolist()) - np.mean(drawn.tolist())
    assert np.isclose(printed.item(), -adversarial)
    expected = -(np.mean(encoded.tolist()) + np.mean(drawn.tolist()))
    assert np.isclose(critic_generator_loss([encoded, drawn], literal=True).item(), expected)
    lower = critic_loss(real - 100, [encoded - 100, drawn - 100], literal=True)
    assert np.isclose(lower.item(), printed.item() - 100)  # ... which the settled weights do not reward


@pytest.mark.parametrize("kinds", [1, 2])
def test_a_constant_added_to_the_critic_changes_nothing(kinds: int) -> None:
    real, fakes = normal(6), [normal(6, seed=kind + 1) for kind in range(kinds)]
    before = critic_loss(real, fakes)
    assert torch.allclose(critic_loss(real + 100, [fake + 100 for fake in fakes]), before)


def test_a_bias_of_the_critic_would_get_no_gradient() -> None:
    torch.manual_seed(0)
    critic = Discriminator(3, 32, width=4)
    assert critic.source.bias is None
    bias = torch.zeros((), requires_grad=True)
    values = (critic(torch.randn(9, 3, 32, 32))[0] + bias).chunk(3)
    critic_loss(values[0], values[1:]).backward()
    assert abs(float(bias.grad)) < 1e-6  # type: ignore[arg-type]
    assert float(critic.source.weight.grad.abs().max()) > 1e-6  # type: ignore[union-attr]


def test_penalty_of_a_linear_critic_is_that_of_its_weight() -> None:
    weight = normal(3 * 4 * 4).float()
    real, fake = normal(7, 3, 4, 4).float(), normal(7, 3, 4, 4, seed=1).float()
    penalty = gradient_penalty(lambda x: x.flatten(1) @ weight, real, fake)
    assert penalty.item() == pytest.approx((math.sqrt(float(weight.square().sum())) - 1) ** 2, rel=1e-5)


def test_penalty_is_taken_between_real_and_fake() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().flatten(1).sum(1)

    real, fake = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2)
    torch.manual_seed(0)
    penalty = gradient_penalty(critic, real, fake)
    share = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], share[:, None, None, None].expand_as(real))  # one share a sample
    assert 0 <= float(share.min()) < 0.1 < 0.9 < float(share.max()) <= 1
    assert penalty.item() == pytest.approx(float((2 * share * 2 - 1).square().mean()), rel=1e-5)  # |2 x|, 4 pixels


def test_penalty_reaches_the_critic_and_neither_image() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, 1))
    real, fake = torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(4, 3, 2, 2, requires_grad=True)
    gradient_penalty(lambda x: critic(x).squeeze(1), real, fake).backward()
    assert real.grad is None
    assert fake.grad is None
    assert float(critic[1].weight.grad.abs().sum()) > 0  # type: ignore[union-attr, operator]


def test_penalty_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    critic = Discriminator(3, 32, width=4)
    dtypes: set[torch.dtype] = set()
    for layer in (*critic.layers, critic.source):
        layer.register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    real, fake = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    plain = gradient_penalty(lambda x: critic(x)[0], real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = gradient_penalty(lambda x: critic(x)[0], real.bfloat16().float(), fake.bfloat16())
    assert dtypes == {torch.float32}
    assert under_autocast.dtype == torch.float32
    assert under_autocast.item() == pytest.approx(plain.item(), rel=0.02)
