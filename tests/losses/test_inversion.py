"""The losses of the descent on pixels, against their formulas in NumPy."""

import numpy as np
import torch
from torch import Tensor

from idface.losses.inversion import EPSILON, embedding_loss, guide_loss, total_variation_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_embedding_loss_is_one_minus_the_cosine_of_each_picture() -> None:
    made, targets = normal(4, 5), normal(4, 5, seed=1)
    expected = [1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(made.numpy(), targets.numpy(), strict=True)]
    np.testing.assert_allclose(embedding_loss(made, targets), expected)


def test_the_embedding_loss_knows_no_length_and_leaves_the_target_alone() -> None:
    made, targets = normal(2, 5).requires_grad_(), normal(2, 5, seed=1).requires_grad_()
    loss = embedding_loss(made, targets)
    torch.testing.assert_close(embedding_loss(7 * made, 0.2 * targets), loss)
    loss.sum().backward()
    assert targets.grad is None
    assert made.grad is not None
    assert torch.allclose((made.grad * made).sum(1), torch.zeros(2, dtype=torch.float64))  # no way out in its length


def test_total_variation_is_the_papers_equation_with_means() -> None:
    pictures = normal(2, 3, 5, 4)
    expected = []
    for p in pictures.numpy():
        right = [(p[c, y, x + 1] - p[c, y, x]) ** 2 for c in range(3) for y in range(5) for x in range(3)]
        down = [(p[c, y + 1, x] - p[c, y, x]) ** 2 for c in range(3) for y in range(4) for x in range(4)]
        expected.append(np.sqrt(np.mean(right) + np.mean(down) + EPSILON))
    np.testing.assert_allclose(total_variation_loss(pictures), expected)


def test_a_flat_picture_has_no_variation_and_a_finite_gradient() -> None:
    flat = torch.full((1, 3, 4, 4), 0.3, requires_grad=True)
    loss = total_variation_loss(flat)
    loss.sum().backward()
    assert loss.item() <= 1e-3
    assert flat.grad is not None
    assert not flat.grad.any()


def test_the_guide_loss_is_a_mean_square_and_pulls_the_picture_alone() -> None:
    features, guide = normal(3, 4, 2, 2).requires_grad_(), normal(1, 4, 2, 2, seed=1).requires_grad_()
    loss = guide_loss(features, guide)
    expected = np.square((features - guide).detach().numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(loss.detach(), expected)
    loss.sum().backward()
    assert guide.grad is None
    assert features.grad is not None
    assert torch.allclose(features.grad, 2 * (features - guide).detach() / 16)


def test_printed_sums_stay_reachable() -> None:
    picture, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    p = picture.double().numpy()
    printed = [np.sqrt(np.square(np.diff(x, axis=1)).sum() + np.square(np.diff(x, axis=2)).sum()) for x in p]
    literal = total_variation_loss(picture, literal=True)
    np.testing.assert_allclose(literal.numpy(), printed, rtol=1e-5)
    assert (literal > 10 * total_variation_loss(picture)).all()
    np.testing.assert_allclose(
        guide_loss(picture, other, literal=True).numpy(),
        np.square(p - other.double().numpy()).sum((1, 2, 3)),
        rtol=1e-5,
    )
