"""Mean squared distance of pairs, against the pairs."""

import torch
import torch.nn.functional as F

from idface.metrics.variety import MeanPairDistance


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
