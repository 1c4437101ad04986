"""The nearest of a gallery."""

import pytest
import torch

from idface.metrics.identification import RankOne, resampled_interval, wilson_interval


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


def test_groups_are_drawn_anew() -> None:
    right = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7
    alone = resampled_interval([(right, torch.arange(400))], 0)
    assert alone == pytest.approx(wilson_interval(float(right.float().mean()), 400), abs=0.01)  # nobody shares a group
    all_or_none = torch.arange(400) // 10 % 2 == 0  # as forty trials, not four hundred
    assert resampled_interval([(all_or_none, torch.arange(400) // 10)], 0) == pytest.approx(
        wilson_interval(0.5, 40), abs=0.03
    )
    twice = [(right, torch.arange(400)), (~right, torch.arange(400))]
    assert resampled_interval(twice, 0) == pytest.approx((0.5, 0.5))  # drawn together, one makes up for the other
    gaps = resampled_interval([(right, 3 * torch.arange(400))], 0)  # numbers that nobody has do not count
    assert gaps == alone
