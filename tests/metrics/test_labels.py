"""Figures about labels, against plain formulas."""

import math

import pytest
import torch

from idface.metrics.labels import LabelObedience


def test_against_plain_formulas() -> None:
    noise = torch.Generator().manual_seed(0)
    asked, seen = (
        (torch.where(torch.rand(40, generator=noise) < 0.5, -1.0, 1.0), 100 * torch.rand(40, generator=noise))
        for _ in range(2)
    )
    metric = LabelObedience()
    for rows in (slice(0, 15), slice(15, 40)):
        metric.update((asked[0][rows], asked[1][rows]), (seen[0][rows], seen[1][rows]))
    metric.update((torch.tensor([math.nan, 1.0]), torch.tensor([3.0, math.nan])), (torch.ones(2), torch.zeros(2)))
    figures = metric.compute()
    assert float(figures["age_error"]) == pytest.approx(float((asked[1] - seen[1]).abs().mean()))
    least = sum(  # of one answer for each sex
        min(float((asked[1] - answer)[asked[0] == sex].abs().sum()) for answer in range(101)) for sex in (-1, 1)
    )
    assert least / 40 - 0.5 < float(figures["age_error_ignoring"]) <= least / 40
    deviations = [ages - ages.mean() for ages in (asked[1], seen[1])]
    correlation = (deviations[0] * deviations[1]).sum() / (deviations[0].norm() * deviations[1].norm())
    assert float(figures["age_correlation"]) == pytest.approx(float(correlation))
    assert float(figures["sex_accuracy"]) == pytest.approx(float((asked[0] == seen[0]).float().mean()))


def test_nothing_to_say() -> None:
    assert LabelObedience().compute() == {}
