import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idface.metrics.recombination import RecombinationIdentity


@pytest.fixture
def vectors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    names = ("result", "source", "attributes")
    return {name: F.normalize(torch.randn(12, 8), dim=1) for name in names} | {
        "identity": torch.arange(12) % 4,
        "gallery": F.normalize(torch.randn(4, 8), dim=1),
    }


def fill(metric: RecombinationIdentity, vectors: dict[str, Tensor], parts: int) -> dict[str, float]:
    metric.update_gallery(vectors["gallery"], torch.arange(4))
    for rows in torch.arange(12).chunk(parts):
        metric.update(*(vectors[name][rows] for name in ("result", "source", "attributes", "identity")))
    return {name: value.item() for name, value in metric.compute().items()}


def test_figures_equal_a_loop_over_pairs_in_any_batching(vectors: dict[str, Tensor]) -> None:
    figures = fill(RecombinationIdentity(), vectors, parts=3)
    nearer, top1, top1_real, same, different = [], [], [], [], []
    for result, source, attributes, identity in zip(
        vectors["result"], vectors["source"], vectors["attributes"], vectors["identity"].tolist(), strict=True
    ):
        nearer.append((result - source).norm() < (result - attributes).norm())
        distances = [(result - face).norm().item() for face in vectors["gallery"]]
        top1.append(distances.index(min(distances)) == identity)
        distances = [(source - face).norm().item() for face in vectors["gallery"]]
        top1_real.append(distances.index(min(distances)) == identity)
        same.append(F.cosine_similarity(source, vectors["gallery"][identity], dim=0).item())
        different.append(F.cosine_similarity(source, attributes, dim=0).item())
    mean = lambda values: sum(map(float, values)) / 12  # noqa: E731
    expected = {"nearer_to_source": nearer, "top1": top1, "top1_real": top1_real, "real_same": same}
    expected["real_different"] = different
    for name, values in expected.items():
        assert figures[name] == pytest.approx(mean(values), abs=1e-6), name
    assert figures["chance"] == 0.25
    assert (figures["results"], figures["gallery"]) == (12, 4)
    assert figures == pytest.approx(fill(RecombinationIdentity(), vectors, parts=1))


def test_a_copy_of_the_source_is_perfect_and_a_copy_of_the_attribute_photo_is_nothing(
    vectors: dict[str, Tensor],
) -> None:
    vectors["source"] = vectors["gallery"][vectors["identity"]]
    perfect = fill(RecombinationIdentity(), vectors | {"result": vectors["source"]}, parts=2)
    assert perfect["nearer_to_source"] == perfect["top1"] == 1
    assert perfect["similarity_to_source"] == pytest.approx(1)
    assert fill(RecombinationIdentity(), vectors | {"result": vectors["attributes"]}, parts=2)["nearer_to_source"] == 0


def test_a_person_without_a_gallery_photo_is_left_out_and_named(vectors: dict[str, Tensor]) -> None:
    whole, cut = RecombinationIdentity(), RecombinationIdentity()
    keep = vectors["identity"] < 3
    names = ("result", "source", "attributes", "identity")
    for metric in (whole, cut):
        metric.update_gallery(vectors["gallery"][:3], torch.arange(3))
    whole.update(*(vectors[name] for name in names))
    cut.update(*(vectors[name][keep] for name in names))
    with pytest.warns(UserWarning, match=r"people \[3\] are left out"):
        figures = whole.compute()
    assert figures == cut.compute()
    assert figures["results"] == 9
