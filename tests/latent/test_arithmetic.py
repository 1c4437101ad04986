"""Vector arithmetic on generators whose attribute directions are known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idface.latent.arithmetic import (
    FaceMeter,
    brightness,
    find_directions,
    load_directions,
    measure_edit,
    random_moves,
    yaw_degrees,
)
from idface.latent.generators import Generator
from idface.networks.attributes import AttributeNetwork
from idface.recognition.alignment import FACE_TEMPLATE
from idface.recognition.base import Recognizer

LATENT = 24
SIZE = 8


class Linear(nn.Module):
    """Pictures that are `light @ z` bright in red, and in green `side @ z` on the left, the opposite on the right."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        light, side = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("light", light / light.norm())
        self.register_buffer("side", side / side.norm())

    def forward(self, latent: Tensor) -> Tensor:
        image = latent.new_zeros(len(latent), 3, SIZE, SIZE)
        image[:, 0] = 0.4 * (latent @ self.light)[:, None, None]
        image[:, 1, :, : SIZE // 2] = 0.4 * (latent @ self.side)[:, None, None]
        image[:, 1, :, SIZE // 2 :] = -0.4 * (latent @ self.side)[:, None, None]
        return image


class Network(AttributeNetwork):
    """Sees redness as "Red", sides as "Sided", and nothing that differs as "Constant"."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(["Red", "Sided", "Constant"], torch.from_numpy(FACE_TEMPLATE), SIZE, 4)
        self.bias = bias

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        red = 10 * image[:, 0].mean((1, 2)) + self.bias
        sided = 10 * (image[:, 1, :, : SIZE // 2] - image[:, 1, :, SIZE // 2 :]).mean((1, 2))
        return torch.stack([red, sided, torch.full_like(red, -3.0)], 1), self.mean_face.expand(len(image), -1, -1)


class Halves(Recognizer):
    """The embedding is what the two colours of each half are."""

    name = "halves"
    embedding_dim = 5
    stage_names = ("raw",)

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.freeze()

    def stages(self, image: Tensor):  # type: ignore[no-untyped-def]
        half = SIZE // 2
        parts = [image[:, c, :, s].mean((1, 2)) for c in (0, 1) for s in (slice(0, half), slice(half, None))]
        yield "raw", torch.stack([*parts, torch.ones_like(parts[0])], 1) * self.one


@pytest.fixture
def generator() -> Generator:
    return Generator(Linear(), LATENT)


@pytest.fixture
def meter() -> FaceMeter:
    return FaceMeter(Network())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_known_directions_are_recovered(generator: Generator, meter: FaceMeter) -> None:
    found = find_directions(generator, meter, 4000)
    assert cosine(found.vector(meter.index("red")), generator.network.light) > 0.95
    assert cosine(found.vector(meter.index("Sided")), generator.network.side) > 0.95
    assert cosine(found.vector(meter.index("brightness")), generator.network.light) > 0.9
    assert found.about[0].length > 5 * found.about[0].chance_length


def test_means_are_those_of_the_labelled_latents(generator: Generator, meter: FaceMeter) -> None:
    found = find_directions(generator, meter, 500, seed=3)
    latents = generator.sample(500, torch.Generator().manual_seed(3)).numpy().astype(np.float64)
    probability = 1 / (1 + np.exp(-10 * np.clip(0.4 * latents @ generator.network.light.numpy(), -1, 1)))
    sides = (probability >= 0.8), (probability <= 0.2)
    expected = latents[sides[0]].mean(0) - latents[sides[1]].mean(0)
    np.testing.assert_allclose(found.vectors[0].numpy(), expected, atol=1e-5)
    about = found.about[0]
    assert (about.present.count, about.absent.count) == (sides[0].sum(), sides[1].sum())
    assert about.present.chosen == about.absent.chosen == "sure"
    assert about.present.score == pytest.approx(probability[sides[0]].mean(), abs=1e-4)


def test_a_rare_attribute_is_taken_from_the_best_scores(generator: Generator) -> None:
    meter = FaceMeter(Network(bias=-12.0))
    found = find_directions(generator, meter, 2000, fraction=0.03)
    about = found.about[0]
    assert (about.present.count, about.present.chosen) == (60, "extreme")
    assert (about.absent.count, about.absent.chosen) == (2000, "sure")
    scores = meter.scores(generator(generator.sample(2000, torch.Generator().manual_seed(0))))[:, 0]
    assert about.present.score == pytest.approx(float(scores.topk(60).values.sigmoid().mean()), rel=1e-3)
    assert cosine(found.vector(0), generator.network.light) > 0.9


def test_nothing_to_tell_apart_is_an_error(generator: Generator, meter: FaceMeter) -> None:
    found = find_directions(generator, meter, 200)
    with pytest.raises(ValueError, match="attribute constant: all 200 generated faces score -3"):
        found.vector(meter.index("constant"))
    with pytest.raises(ValueError, match="attribute yaw: all 200"):
        found.vector(meter.index("yaw"))


def test_a_direction_no_longer_than_chance_is_warned_of(
    generator: Generator, meter: FaceMeter, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_directions(generator, meter, 1000)
    weak = replace(found, about=(replace(found.about[0], length=found.about[0].chance_length), *found.about[1:]))
    weak.vector(0)
    assert "holds a good deal of noise" in caplog.text


def test_an_edit_changes_what_it_aims_at_and_random_ones_do_not(generator: Generator, meter: FaceMeter) -> None:
    found = find_directions(generator, meter, 2000)
    latents = generator.sample(6, torch.Generator().manual_seed(9)) * 0.5
    move = found.vector(0)
    measured = measure_edit(generator, meter, Halves(), latents, move, random_count=40)
    change = (measured.after - measured.before).mean(0)
    expected = 4 * float(move @ generator.network.light)
    assert change[0].item() == pytest.approx(expected, rel=0.05)
    assert abs(change[1]) < 0.3 * change[0]
    random = (measured.random_after - measured.before).mean(1)
    assert abs(random[:, 0].mean()) < 0.2 * expected
    assert random[:, 0].std() == pytest.approx(4 * float(move.norm()) / LATENT**0.5, rel=0.35)
    embedding = Halves()
    apart = (embedding(generator(latents + move)) - embedding(generator(latents))).square().sum(1)
    torch.testing.assert_close(measured.distance, apart)
    assert measured.random_distance.shape == (40, 6)


def test_random_moves_are_as_long_as_the_edit_and_reproducible() -> None:
    move = torch.randn(LATENT) * 3
    moves = random_moves(move, 16, seed=1)
    torch.testing.assert_close(moves.norm(dim=1), move.norm().expand(16))
    assert torch.equal(moves, random_moves(move, 16, seed=1))
    assert not torch.equal(moves, random_moves(move, 16, seed=2))


def test_saved_directions_come_back_and_others_are_refused(
    generator: Generator, meter: FaceMeter, tmp_path: Path
) -> None:
    found = find_directions(generator, meter, 100, seed=5)
    path = tmp_path / "made" / "directions.safetensors"
    found.save(path)
    loaded = load_directions(path, generator, meter)
    assert torch.equal(loaded.vectors, found.vectors)
    assert replace(loaded, vectors=found.vectors) == found

    with pytest.raises(ValueError, match=r"is of generator .* expected"):
        load_directions(path, Generator(Linear(seed=1), LATENT), meter)
    other = Network()
    nn.init.ones_(other.attribute_head.bias)
    with pytest.raises(ValueError, match=r"is of classifier .* expected"):
        load_directions(path, generator, FaceMeter(other))
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read as directions"):
        load_directions(path, generator, meter)


def test_bad_input_is_refused(generator: Generator, meter: FaceMeter) -> None:
    with pytest.raises(ValueError, match=r"'bright'. Did you mean 'brightness'"):
        meter.index("bright")
    with pytest.raises(ValueError, match="--count is 20, expected at least 50"):
        find_directions(generator, meter, 20)
    with pytest.raises(ValueError, match="fraction is 0"):
        find_directions(generator, meter, 20, fraction=0.0)
    with pytest.raises(ValueError, match="random_count is 1"):
        measure_edit(generator, meter, Halves(), torch.zeros(1, LATENT), torch.zeros(LATENT), 1)
    with pytest.raises(ValueError, match=r"expected \(N, 24\)"):
        measure_edit(generator, meter, Halves(), torch.zeros(LATENT), torch.zeros(LATENT))


def test_yaw_follows_the_nose() -> None:
    face = torch.from_numpy(FACE_TEMPLATE).double()
    face[2, 0] = face[:2, 0].mean()
    assert yaw_degrees(face).item() == pytest.approx(0, abs=1e-9)
    turned = []
    for degrees in (-40, 25):  # the model itself: orthographic, the nose half an eye distance before the eyes
        angle = math.radians(degrees)
        head = torch.tensor([[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.6, 0.5], [-0.4, 1.0, 0.1], [0.4, 1.0, 0.1]])
        x = head[:, 0] * math.cos(angle) + head[:, 2] * math.sin(angle)
        turned.append(torch.stack([x, head[:, 1]], 1))
        assert yaw_degrees(turned[-1]).item() == pytest.approx(degrees, abs=1e-3)
    assert turned[0][2, 0] < 0  # negative: the nose points to the left of the picture
    tilt = math.radians(30)
    rotation = torch.tensor([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    torch.testing.assert_close(yaw_degrees(turned[0] @ rotation.T), yaw_degrees(turned[0]))


def test_brightness_is_the_luma_of_the_middle() -> None:
    image = torch.full((1, 3, 10, 10), -1.0)
    image[:, 1, 2:8, 2:8] = 1.0
    assert brightness(image).item() == pytest.approx(0.587)
    image[:, :, 0] = 1.0  # the background does not count
    assert brightness(image).item() == pytest.approx(0.587)
