"""Each loss against an independent computation of its equation."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from idface.losses.adversarial import discriminator_loss, generator_loss, matching_aware_loss
from idface.losses.classification import cosface_loss, identity_loss
from idface.losses.matching import (
    feature_matching_loss,
    identity_preserving_loss,
    mean_absolute_difference,
    reconstruction_loss,
)
from idface.losses.variational import kl_divergence, sample_posterior


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_discriminator_loss_is_equation_4() -> None:
    real, fake = normal(7), normal(7, seed=1)
    d_real, d_fake = 1 / (1 + np.exp(-real.numpy())), 1 / (1 + np.exp(-fake.numpy()))
    expected = -np.log(d_real).mean() - np.log(1 - d_fake).mean()
    assert np.isclose(discriminator_loss(real, fake).item(), expected)


def test_matching_aware_loss_counts_wrong_labels_as_half_of_what_is_not_real() -> None:
    real, fake, wrong = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0]), torch.tensor([1.5, -3.0])

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    of_real = -sum(math.log(sigmoid(value)) for value in real.tolist()) / 2
    of_fake = -sum(math.log(1 - sigmoid(value)) for value in fake.tolist()) / 2
    of_wrong = -math.log(1 - sigmoid(1.5))  # the other label is not wrong
    loss = matching_aware_loss(real, fake, wrong, torch.tensor([True, False]))
    assert math.isclose(loss.item(), of_real + (of_fake + of_wrong) / 2, rel_tol=1e-5)
    none = matching_aware_loss(real, fake, wrong, torch.tensor([False, False]))
    assert math.isclose(none.item(), of_real + of_fake / 2, rel_tol=1e-5)


def test_discriminator_loss_stays_finite_when_sure_and_wrong() -> None:
    fake = torch.tensor([1e4], requires_grad=True)
    loss = discriminator_loss(torch.tensor([-1e4]), fake)
    loss.backward()
    assert loss.item() == 2e4
    assert fake.grad is not None
    assert fake.grad.item() == 1


def test_reconstruction_loss_is_equation_2_as_a_mean() -> None:
    x, target = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    expected = (
        0.5 * sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), target.flatten().tolist(), strict=True)) / 96
    )
    assert np.isclose(reconstruction_loss(x, target).item(), expected)


def test_feature_matching_is_equations_5_and_7_and_leaves_the_target_alone() -> None:
    x, target = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    loss = feature_matching_loss(x, target)
    assert np.isclose(loss.item(), 0.5 * np.square((x - target).detach().numpy()).mean())
    loss.backward()
    assert target.grad is None
    assert x.grad is not None
    assert torch.allclose(x.grad, (x - target).detach() / 15)


def test_kl_is_equation_3_exact_for_a_log_variance() -> None:
    mean, log_variance = normal(6, 4), normal(6, 4, seed=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = torch_kl(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1).mean()
    assert torch.allclose(kl_divergence(mean, log_variance), expected)
    assert kl_divergence(torch.zeros(2, 4), torch.zeros(2, 4)).item() == 0


def test_posterior_samples_have_the_variance_that_equation_3_speaks_of_unless_literal() -> None:
    mean, log_variance = torch.full((200_000, 1), 2.0), torch.full((200_000, 1), 1.2)
    torch.manual_seed(0)
    settled, literal = sample_posterior(mean, log_variance), sample_posterior(mean, log_variance, literal=True)
    assert np.isclose(settled.mean().item(), 2.0, atol=0.02)
    assert np.isclose(settled.var().item(), np.exp(1.2), rtol=0.02)
    assert np.isclose(literal.var().item(), np.exp(2.4), rtol=0.02)


def test_posterior_samples_carry_the_gradient() -> None:
    mean, log_variance = torch.zeros(5, 1, requires_grad=True), torch.zeros(5, 1, requires_grad=True)
    torch.manual_seed(0)
    draw = sample_posterior(mean, log_variance)
    draw.sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert torch.equal(mean.grad, torch.ones(5, 1))
    assert torch.allclose(log_variance.grad, draw.detach() / 2)  # d exp(eps / 2) / d eps at 0, times r


def test_identity_loss_is_cross_entropy_over_the_labelled_images() -> None:
    logits, identity = normal(4, 3), torch.tensor([2, -1, 0, -1])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert np.isclose(identity_loss(logits, identity).item(), -(np.log(p[0, 2]) + np.log(p[2, 0])) / 2)


def test_identity_loss_of_unlabelled_images_alone_is_zero_with_a_zero_gradient() -> None:
    logits = normal(2, 3).requires_grad_()
    loss = identity_loss(logits, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_generators_loss_is_minus_log_d() -> None:
    logits = normal(7)
    assert np.isclose(generator_loss(logits).item(), -logits.sigmoid().log().mean().item())
    assert generator_loss(torch.tensor([-1e4])).item() == 1e4  # where log(0) would be infinite


def test_generated_faces_are_assigned_one_to_one_where_they_cost_least() -> None:
    real = [normal(5, 3, seed=1) * 2, normal(5, 4, seed=2)]
    made = [normal(5, 3, seed=3).requires_grad_(), normal(5, 4, seed=4).requires_grad_()]
    costs = [[float((a - b).square().sum()) for b in real[1]] for a in made[1]]
    order = list(min(permutations(range(5)), key=lambda rows: sum(costs[i][j] for i, j in enumerate(rows))))
    expected = np.mean(
        [
            np.square(a.detach().numpy() - b.numpy()[order]).mean() / b.numpy().var(0).mean()
            for a, b in zip(made, real, strict=True)
        ]
    )
    loss = identity_preserving_loss(made, real)
    assert np.isclose(loss.item(), expected)
    loss.backward()
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in made)
    shuffled = identity_preserving_loss(made, [feature[[3, 1, 4, 0, 2]] for feature in real])
    assert torch.allclose(shuffled, loss)  # who stands where in the batch does not matter
    assert identity_preserving_loss([real[0]], [real[0].flip(0)]).item() == 0


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="alike and at least one"):
        identity_preserving_loss([normal(5, 3)], [normal(4, 3)])
    with pytest.raises(ValueError, match="at least one"):
        identity_preserving_loss([], [])


def test_mean_absolute_difference_is_equations_3_and_4_and_leaves_the_target_alone() -> None:
    results = [normal(2, 3, 4, 4).requires_grad_(), normal(2, 5, seed=1)]
    targets = [normal(2, 3, 4, 4, seed=2).requires_grad_(), normal(2, 5, seed=3)]
    loss = mean_absolute_difference(results, targets)
    expected = sum(
        float(np.abs(a.detach().numpy() - b.detach().numpy()).sum()) / a.numel()
        for a, b in zip(results, targets, strict=True)
    )
    assert np.isclose(loss.item(), expected)
    loss.backward()
    assert targets[0].grad is None
    assert results[0].grad is not None
    assert torch.allclose(results[0].grad, (results[0] - targets[0]).detach().sign() / 96)


def test_cosface_is_its_equation_4() -> None:
    cosines = torch.tanh(normal(4, 3))
    identity = torch.tensor([2, 0, -1, 1])
    terms = []
    for row, person in zip(cosines.tolist(), identity.tolist(), strict=True):
        if person >= 0:
            own = math.exp(20 * (row[person] - 0.3))
            others = sum(math.exp(20 * value) for j, value in enumerate(row) if j != person)
            terms.append(-math.log(own / (own + others)))
    loss = cosface_loss(cosines, identity, margin=0.3, scale=20)
    assert np.isclose(loss.item(), sum(terms) / 3)
    without = cosface_loss(cosines, identity, margin=1e-9, scale=1)
    assert torch.allclose(without, identity_loss(cosines, identity))
