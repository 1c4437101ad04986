"""The nearest of a gallery."""

import pytest
import torch
from torch import Tensor

from idface.metrics.identification import RankOne, drawn_anew, middle, resampled_shares, wilson_interval


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


def interval(right: Tensor, group: Tensor) -> tuple[float, float]:
    return middle(resampled_shares(right, drawn_anew(1 + int(group.max()), 0)[:, group]))


def test_trials_of_a_group_are_drawn_together() -> None:
    right = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7
    alone = interval(right, torch.arange(400))
    assert alone == pytest.approx(wilson_interval(float(right.float().mean()), 400), abs=0.01)
    all_or_none = torch.arange(400) // 10 % 2 == 0  # as forty trials, not four hundred
    assert interval(all_or_none, torch.arange(400) // 10) == pytest.approx(wilson_interval(0.5, 40), abs=0.03)


def test_shares_of_the_same_draws_may_be_compared() -> None:
    right, times = torch.rand(400) < 0.7, drawn_anew(400, 0)
    both = (resampled_shares(right, times) + resampled_shares(~right, times)) / 2
    assert middle(both) == pytest.approx((0.5, 0.5))  # one makes up for the other


def test_trainings_are_drawn_anew() -> None:
    trial, times = torch.arange(100), drawn_anew(100, 0)
    two = torch.stack([trial < 50, trial >= 0])  # one training finds half of them, the other all
    low, high = middle(resampled_shares(two, times))
    assert low < 0.5
    assert high == 1
    one, same = (resampled_shares(right, times) for right in (two[0], two[:1].expand(3, -1)))
    assert same == pytest.approx(one)
