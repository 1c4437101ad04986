"""Mean squared distance of pairs, against the pairs."""

import pytest
import torch
import torch.nn.functional as F

from idface.metrics.variety import JudgedFaces, MeanPairDistance, perceptual_distance


def test_it_is_the_mean_over_all_pairs_of_all_batches() -> None:
    embeddings = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 1)
    metric = MeanPairDistance(8)
    for part in embeddings.split(7):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), torch.pdist(embeddings).square().mean(), rtol=1e-5, atol=1e-6)


def test_ranks_are_put_together() -> None:
    embeddings = F.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)))
    first, second = MeanPairDistance(8), MeanPairDistance(8)
    first.update(embeddings[:5])
    second.update(embeddings[5:])
    first.total, first.count = first.total + second.total, first.count + second.count  # what its reductions do
    torch.testing.assert_close(first.compute(), torch.pdist(embeddings).square().mean(), rtol=1e-5, atol=1e-6)
    assert {name: reduce.__name__ for name, reduce in first._reductions.items()} == {
        "total": "dim_zero_sum",
        "count": "dim_zero_sum",
    }


def test_one_face_has_no_pair() -> None:
    metric = MeanPairDistance(8)
    metric.update(torch.eye(8)[:1])
    assert metric.compute().isnan()


def test_faces_that_are_the_real_ones_are_at_no_distance() -> None:
    embeddings = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    judged = JudgedFaces(8)
    assert judged.compute() == {}
    for part in embeddings.split(20):
        judged.update(part, real=True)
        judged.update(part, real=False)
    figures = judged.compute()
    assert float(figures["frechet_distance"]) == pytest.approx(0, abs=1e-4)
    assert float(figures["variety_real"]) == float(figures["variety_generated"])
    judged.reset()
    judged.update(embeddings, real=True)
    judged.update(embeddings[:1].expand(60, -1), real=False)
    figures = judged.compute()
    mean, cov = embeddings.double().mean(0), embeddings.double().T.cov()
    expected = (mean - embeddings[0]).square().sum() + cov.trace()  # of a point
    assert float(figures["frechet_distance"]) == pytest.approx(float(expected), rel=1e-3)
    assert float(figures["variety_generated"]) == pytest.approx(0, abs=1e-5)


def test_perceptual_distance_is_lpips_with_equal_weights() -> None:
    noise = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(2, c, 3, 3, generator=noise) for c in (4, 5)] for _ in range(2))
    expected = torch.zeros(2)
    for a, b in zip(first, second, strict=True):
        for row in range(2):
            for y in range(3):
                for x in range(3):
                    u, v = a[row, :, y, x], b[row, :, y, x]
                    expected[row] += (u / u.norm() - v / v.norm()).square().sum() / 9
    torch.testing.assert_close(perceptual_distance(first, second), expected)
    assert float(perceptual_distance(first, [3 * a for a in first]).max()) < 1e-6  # contrast does not matter
