"""The descent on pixels, with a recogniser of two small layers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.latent.inversion import Inverted, default_guide_layer, invert_pixels
from idface.latent.scoring import distance_from_mean
from idface.losses.inversion import guide_loss, total_variation_loss
from idface.recognition.base import Recognizer


class Small(Recognizer):
    """Two convolutions and a matrix."""

    name = "small"
    embedding_dim = 6
    stage_names = ("first", "second", "pooled", "raw")

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)
            self.head = nn.Linear(8, 6, bias=False)
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = F.relu(self.one(image))
        yield "first", x
        x = self.two(x)
        yield "second", x
        x = x.mean((2, 3))
        yield "pooled", x
        yield "raw", self.head(x)


RECOGNIZER = Small()


def faces(count: int, seed: int = 0) -> Tensor:
    """Smooth pictures (N, 3, 16, 16) in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (16, 16), mode="bilinear")


TARGETS = RECOGNIZER(faces(3))


def invert(targets: Tensor = TARGETS, **options: Any) -> Inverted:
    return invert_pixels(RECOGNIZER, targets, **({"size": 16, "steps": 40, "tv_weight": 0.1} | options))


def test_the_loss_falls_and_the_picture_has_the_targets_embedding() -> None:
    found = invert(steps=200)
    loss = found.history["loss"]
    assert loss.shape == (201, 3)
    assert (loss[-1] < 0.7 * loss[0]).all()
    assert (found.history["distance"][-1] < 0.1 * found.history["distance"][0]).all()
    torch.testing.assert_close(distance_from_mean(RECOGNIZER(found.images), TARGETS), found.history["distance"][-1])


def test_pictures_are_in_range_and_kept_on_the_way() -> None:
    found = invert(steps=8)
    assert found.images.shape == (3, 3, 16, 16)
    assert found.images.abs().max() <= 1
    assert found.stage_steps == [0, 2, 4, 6, 8]
    assert torch.equal(found.stages[-1], found.images)
    assert not torch.equal(found.stages[0], found.images)
    assert invert(steps=2).stage_steps == [0, 1, 2]


def test_more_weight_on_variation_makes_smoother_pictures() -> None:
    rough, smooth, smoother = (total_variation_loss(invert(tv_weight=w).images).mean() for w in (0, 0.1, 15))
    assert smoother < smooth < rough


def test_a_guide_pulls_the_features_and_so_the_picture() -> None:
    guide = faces(1, seed=9)
    aim = RECOGNIZER.features(guide, ["first"])["first"]

    def away(found: Inverted) -> Tensor:
        return guide_loss(RECOGNIZER.features(found.images, ["first"])["first"], aim)

    alone, guided = invert(), invert(guide=guide, guide_layer="first", guide_weight=20)
    assert (away(guided) < 0.5 * away(alone)).all()
    torch.testing.assert_close(guided.history["guide"][-1], away(guided))
    assert "guide" not in alone.history
    assert default_guide_layer(RECOGNIZER) == "first"
    assert torch.equal(invert(guide=guide, guide_weight=20).images, guided.images)


def test_a_target_ends_alone_as_it_does_among_others() -> None:
    together = invert()
    for i in range(3):
        alone = invert(TARGETS[i : i + 1])
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=0, atol=1e-3)


def test_a_seed_decides_everything() -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(invert().images, invert().images)
    assert not torch.allclose(invert(seed=1).images, invert().images, atol=0.01)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_mean_of_photos_is_a_target_too() -> None:
    mean = TARGETS.mean(0, keepdim=True)
    found = invert(mean, steps=200)
    expected = (RECOGNIZER(found.images)[0] - TARGETS).square().sum(1).mean()
    assert found.history["distance"][-1].item() == pytest.approx(float(expected), abs=1e-5)


def test_progress_tells_every_step() -> None:
    seen: list[int] = []
    invert(steps=3, progress=seen.append)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": faces(1), "guide_layer": "secnd"}, r"no feature layer 'secnd'\. Did you mean 'second'\?.*first, "),
        ({"guide_layer": "first"}, "a guide layer, first, is of no use without a guide"),
        ({"targets": torch.ones(1, 5)}, r"targets are \(1, 5\), expected embeddings of small, \(T, 6\)"),
        ({"steps": 0}, "in 0 steps: expected"),
        ({"size": 1}, "pictures of 1 pixels"),
        ({"tv_weight": -1.0}, "weights are -1.0 and 2.0"),
        ({"guide_weight": float("nan")}, "weights are 0.1 and nan"),
        ({"learning_rate": 0.0}, "learning rate falls from 0.0"),
        ({"final_learning_rate": 1.0}, "to 1.0: expected"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(**options)


def test_single_pixels_and_printed_sums_stay_reachable() -> None:
    targets = F.normalize(torch.randn(1, 6, generator=torch.Generator().manual_seed(4)))
    settled, literal, single = (
        invert_pixels(Small(), targets, 16, 20, tv_weight=1.0, **options)
        for options in ({}, {"literal_sums": True}, {"pyramid": False})
    )
    ratio = literal.history["variation"][0] / settled.history["variation"][0]
    assert float(ratio) == pytest.approx((3 * 16 * 15) ** 0.5, rel=0.01)
    assert not torch.allclose(settled.images, single.images, atol=1e-3)
    coarse = [F.avg_pool2d(found.images - found.stages[0], 8).abs().mean() for found in (settled, single)]
    assert coarse[0] > coarse[1]  # light and dark parts move faster with them
