"""The nearest of a gallery."""

import torch

from idface.metrics.identification import RankOne


def test_who_is_nearest_by_the_angle_whatever_the_length() -> None:
    metric = RankOne()
    metric.update_gallery(torch.tensor([[1.0, 0.0], [0.0, 9.0]]), torch.tensor([7, 8]))
    metric.update(torch.tensor([[5.0, 1.0], [1.0, 5.0]]), torch.tensor([7, 7]))
    metric.update(torch.tensor([[0.1, 0.2], [1.0, 1.0]]), torch.tensor([8, 99]))  # 99 has no photo in the gallery
    figures = metric.compute()
    assert float(figures["top1"]) == torch.tensor(2 / 3)
    assert float(figures["chance"]) == 0.5
    assert float(figures["faces"]) == 3


def test_nobody_to_look_for() -> None:
    metric = RankOne()
    assert metric.compute() == {}
    metric.update(torch.ones(1, 2), torch.tensor([3]))
    assert metric.compute() == {}
    metric.update_gallery(torch.ones(1, 2), torch.tensor([4]))
    assert metric.compute() == {}
