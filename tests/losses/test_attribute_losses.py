"""The losses of a network that describes faces, against independent formulas."""

import numpy as np
import torch

from idface.losses.attributes import attribute_loss, landmark_loss

NAN = float("nan")


def test_attribute_loss_is_the_mean_cross_entropy_of_known_labels() -> None:
    logits = torch.tensor([[0.3, -2.0], [1.5, 0.7]], dtype=torch.float64)
    labels = torch.tensor([[1.0, -1.0], [NAN, 1.0]], dtype=torch.float64)
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(np.log(p[0, 0]) + np.log(1 - p[0, 1]) + np.log(p[1, 1])) / 3
    assert np.isclose(attribute_loss(logits, labels).item(), expected)


def test_attribute_loss_stays_finite_when_sure_and_wrong() -> None:
    assert attribute_loss(torch.tensor([[1e4]]), torch.tensor([[-1.0]])).item() == 1e4


def test_landmark_loss_is_the_mean_absolute_difference_of_known_points() -> None:
    result = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    landmarks = torch.tensor([[[0.5, 0.0], [NAN, NAN]]])
    assert landmark_loss(result, landmarks).item() == (0.5 + 1.0) / 2


def test_nothing_known_is_a_loss_of_zero_with_a_zero_gradient() -> None:
    for loss, shape in ((attribute_loss, (2, 3)), (landmark_loss, (2, 5, 2))):
        result = torch.ones(shape, requires_grad=True)
        value = loss(result, torch.full(shape, NAN))
        value.backward()
        assert value.item() == 0
        assert result.grad is not None
        assert not result.grad.any()
