"""What noise, signs and amplitude do to generated faces."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.latent.generators import Generator
from idface.latent.properties import measure_properties, variant
from idface.latent.scoring import Scorer
from idface.networks.dcgan import DCGANGenerator
from idface.recognition.base import Recognizer


class Projection(Recognizer):
    """A recogniser of one matrix, for pictures of 16x16 pixels."""

    name = "projection"
    embedding_dim = 6
    stage_names = ("raw",)

    def __init__(self) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3 * 16 * 16, generator=noise))
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "raw", image.flatten(1) @ self.weight.T


class Shown(nn.Module):
    """A generator whose faces are a matrix times the latent, or what is made of it."""

    def __init__(self, of: str = "latent") -> None:
        super().__init__()
        self.of = of
        self.register_buffer("weight", torch.randn(8, 3 * 16 * 16, generator=torch.Generator().manual_seed(1)) / 20)

    def forward(self, latents: Tensor) -> Tensor:
        shown = {"latent": latents, "direction": F.normalize(latents, dim=1), "signs": latents.sign()}[self.of]
        return (shown @ self.weight).view(-1, 3, 16, 16)


def scorer(network: nn.Module) -> Scorer:
    return Scorer(Generator(network, 8), Projection(), batch_size=8, precision="float32")


def test_what_changes_nothing_is_no_distance_and_more_noise_is_farther() -> None:
    torch.manual_seed(0)
    network = DCGANGenerator(8, 16, 4)
    for parameter in network.parameters():
        parameter.data *= 10  # untrained, all of its faces are nearly the same
    found = measure_properties(scorer(network), 12, amplitudes=(0, 0.1, 1), factors=(0.5, 1))
    still, little, much = found.of("noise")
    assert still.spread.mean == pytest.approx(0, abs=1e-6)
    assert 1e-6 < little.spread.mean < much.spread.mean
    half, same = found.of("amplitude")
    assert same.spread.quantiles == pytest.approx((0,) * 5, abs=1e-6)
    assert half.spread.mean > 1e-6


@pytest.mark.parametrize(("of", "unmoved"), [("direction", "amplitude"), ("signs", "sign")])
def test_a_generator_that_does_not_look_at_something_shows_it(of: str, unmoved: str) -> None:
    found = measure_properties(scorer(Shown(of)), 12, amplitudes=(0.5,), factors=(0.1, 2))
    for line in found.measured:
        assert (line.spread.mean < 1e-5) == (line.property == unmoved or (of, line.property) == ("signs", "amplitude"))
    assert found.strangers.mean > 0.5


def test_a_distance_is_that_of_the_two_faces() -> None:
    own = scorer(Shown())
    found = measure_properties(own, 5, factors=(), amplitudes=(0.3,), threshold=0.1)
    changed = variant(own.generator, found.latents, "noise", 0.3, seed=1)
    pairs = zip(own.exact(found.latents), own.exact(changed), strict=True)
    distances = torch.tensor([float(2 - 2 * F.cosine_similarity(a, b, dim=0)) for a, b in pairs])
    spread = found.of("noise")[0].spread
    assert spread.mean == pytest.approx(float(distances.mean()), abs=1e-5)
    assert spread.std == pytest.approx(float(distances.std()), abs=1e-5)
    assert spread.quantiles[2] == pytest.approx(float(distances.median()), abs=1e-5)
    assert spread.same == int((distances < 0.1).sum()) / 5


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_noise_is_drawn_from_the_prior_and_only_its_amplitude_changes(prior: str) -> None:
    generator = Generator(Shown(), 8, prior)  # type: ignore[arg-type]
    latents = torch.zeros(4000, 8)
    one, half = (variant(generator, latents, "noise", amplitude, seed=3) for amplitude in (1.0, 0.5))
    torch.testing.assert_close(half, one / 2)
    assert float(one.std()) == pytest.approx(generator.std, rel=0.02)
    signs = variant(generator, generator.sample(5, torch.Generator()), "sign", 1, seed=0)
    assert torch.equal(signs.abs(), torch.ones(5, 8))


def test_the_noise_limit_is_where_most_faces_become_somebody_else() -> None:
    amplitudes = (0.1, 0.3, 0.5, 2.0)
    found = measure_properties(scorer(Shown()), 12, amplitudes=amplitudes, factors=())
    assert found.noise_limit() is None
    medians = [line.spread.quantiles[2] for line in found.of("noise")]
    assert medians == sorted(medians)
    between = (medians[1] + medians[2]) / 2
    for threshold, limit in ((between, 0.3), (4.1, 2.0), (0.0, 0.0)):
        own = measure_properties(scorer(Shown()), 12, threshold=threshold, amplitudes=amplitudes, factors=())
        assert own.noise_limit() == limit


def test_the_same_seed_finds_the_same_and_another_does_not() -> None:
    first, again, other = (
        measure_properties(scorer(Shown()), 4, seed=seed, amplitudes=(0.3,), factors=()).measured for seed in (0, 0, 1)
    )
    assert first == again != other


def test_progress_reaches_its_end_and_two_faces_are_too_few() -> None:
    seen: list[tuple[int, int]] = []
    own = scorer(Shown())
    measure_properties(own, 3, amplitudes=(0.1,), factors=(2.0,), progress=lambda *at: seen.append(at))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match="2 faces: expected 3 or more"):
        measure_properties(own, 2)
