"""The strategies and the search that holds them to their budget."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from idface.latent.generators import Generator
from idface.latent.scoring import Scorer, distance_from_mean
from idface.latent.search import Found, mean_embedding, search
from idface.latent.strategies import (
    CMAES,
    GRADIENT_COST,
    STRATEGIES,
    Annealed,
    Ask,
    GradientDescent,
    Hybrid,
    LiLuo,
    Proposals,
    Scores,
    SearchStrategy,
    Task,
)
from idface.networks.dcgan import DCGANGenerator
from idface.recognition.base import Recognizer
from tests.latent.test_bank import Projection


def generator() -> Generator:
    torch.manual_seed(3)
    network = DCGANGenerator(8, 8, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    return Generator(network, 8)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(generator(), Projection(), batch_size=32, precision="float32")


@pytest.fixture(scope="module")
def people(scorer: Scorer) -> Tensor:
    """Faces that the generator can make: two photos each of three people."""
    noise = torch.Generator().manual_seed(5)
    latents = scorer.generator.sample(6, noise)
    return torch.stack([mean_embedding(pair) for pair in scorer.exact(latents).split(2)])


def waste(strategy: SearchStrategy, budget: int) -> int:
    """What is too little for another step; only descent makes no use of it."""
    return GRADIENT_COST * min(16, max(1, budget // 180)) if isinstance(strategy, GradientDescent) else 1


EVERY = [pytest.param(strategy(), id=name) for name, strategy in STRATEGIES.items()]


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("budget", [1, 2, 100, 643])
def test_the_best_distance_never_rises_and_the_budget_is_respected(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy, budget: int
) -> None:
    for found in search(scorer, people, strategy, budget):
        distances = [step.distance for step in found.history]
        assert all(later <= earlier for earlier, later in pairwise(distances))
        counts = [step.evaluations for step in found.history]
        assert counts == sorted(set(counts))
        assert 0 < found.evaluations == counts[-1] <= budget
        assert found.evaluations > budget - waste(strategy, budget)  # and is made use of
        assert [milestone.distance for milestone in found.milestones] == sorted(set(distances), reverse=True)


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_starts_from_a_bank_are_scored_within_any_budget(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy, budget: int
) -> None:
    starts = scorer.generator.sample(15, torch.Generator().manual_seed(9)).view(3, 5, 8)
    for found in search(scorer, people, strategy, budget, starts=starts):
        assert 0 < found.evaluations <= budget


@pytest.mark.parametrize("strategy", EVERY)
def test_a_score_that_is_not_a_number_is_passed_over(people: Tensor, strategy: SearchStrategy) -> None:
    class Gaps(Scorer):
        def distances(self, latents: Tensor, person: Tensor) -> Tensor:
            return super().distances(latents, person).index_fill(0, torch.tensor([0]), float("nan"))

        def gradients(self, latents: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
            distances, gradients = super().gradients(latents, person)
            return distances.index_fill(0, torch.tensor([0]), float("nan")), gradients * float("nan")

    for found in search(Gaps(generator(), Projection(), precision="float32"), people[:1], strategy, 400):
        assert found.evaluations > 400 - waste(strategy, 400)
        assert found.distance < 4
        assert all(step.distance == step.distance for step in found.history)


@pytest.mark.parametrize("strategy", EVERY)
def test_what_is_reported_is_the_distance_of_the_latent(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy
) -> None:
    for person, found in zip(people, search(scorer, people, strategy, 300), strict=True):
        photos = distance_from_mean(scorer.exact(found.latent[None])[0], person)
        assert found.distance == pytest.approx(float(photos), abs=1e-6)
        assert found.distance <= found.history[-1].distance + 1e-6


@pytest.mark.parametrize("strategy", EVERY)
def test_a_seed_gives_the_same_and_another_seed_another(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy
) -> None:
    first, again, other = (search(scorer, people, strategy, 300, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.latent, b.latent) and a.history == b.history for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.latent, b.latent) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("strategy", EVERY)
def test_people_together_are_found_as_one_by_one(scorer: Scorer, people: Tensor, strategy: SearchStrategy) -> None:
    together = search(scorer, people, strategy, 300)
    for person, found in zip(people, together, strict=True):
        (alone,) = search(scorer, person[None], strategy, 300)
        assert torch.allclose(alone.latent, found.latent, atol=1e-3)  # rounding, by other sizes of batches, adds up
        assert alone.distance == pytest.approx(found.distance, abs=1e-4)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("strategy", EVERY)
def test_a_stopped_search_goes_on_as_if_it_had_not_been(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy, tmp_path: Path
) -> None:
    whole = search(scorer, people, strategy, 400)

    calls = 0

    def stop(evaluations: int, distance: float) -> None:
        nonlocal calls
        calls += 1
        if calls == len(whole[0].history) // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        search(scorer, people, strategy, 400, journal=tmp_path / "journal", progress=stop)

    scored = 0

    class Counting(Scorer):
        def distances(self, latents: Tensor, person: Tensor) -> Tensor:
            nonlocal scored
            scored += len(latents)
            return super().distances(latents, person)

        def gradients(self, latents: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal scored
            scored += len(latents) * GRADIENT_COST
            return super().gradients(latents, person)

    counting = Counting(scorer.generator, scorer.recognizer, batch_size=32, precision="float32")
    resumed = search(counting, people, strategy, 400, journal=tmp_path / "journal")
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a.latent, b.latent)
        assert a.history == b.history
    assert scored < 0.75 * sum(found.evaluations for found in whole)  # the first half was not scored again
    assert all(found.seconds > 0 for found in resumed)


def test_a_journal_of_another_search_is_refused(scorer: Scorer, people: Tensor, tmp_path: Path) -> None:
    search(scorer, people, Annealed(), 100, journal=tmp_path)
    with pytest.raises(ValueError, match="another search: its budget is 100, here it is 200"):
        search(scorer, people, Annealed(), 200, journal=tmp_path)
    with pytest.raises(ValueError, match="its strategy is Annealed"):
        search(scorer, people, LiLuo(), 100, journal=tmp_path)
    with pytest.raises(ValueError, match="its people and starts"):
        search(scorer, people[:2], Annealed(), 100, journal=tmp_path)


def test_a_damaged_journal_is_named(scorer: Scorer, people: Tensor, tmp_path: Path) -> None:
    search(scorer, people, Annealed(), 100, journal=tmp_path)
    (file,) = tmp_path.glob("scores-*")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"scores-000000\.safetensors' is damaged"):
        search(scorer, people, Annealed(), 100, journal=tmp_path)


def test_an_unfinished_journal_has_no_half_files(scorer: Scorer, people: Tensor, tmp_path: Path) -> None:
    search(scorer, people, Annealed(), 100, journal=tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "search.json").read_text())["budget"] == 100


def test_a_budget_below_one_is_refused(scorer: Scorer, people: Tensor) -> None:
    with pytest.raises(ValueError, match="budget is 0; a search needs at least one evaluation"):
        search(scorer, people, LiLuo(), 0)


# ------------------------------------------------------------------------------------------- what each strategy does


class Plain:
    """A task whose distance is a formula, walked through by hand."""

    def __init__(self, strategy: SearchStrategy, budget: int, starts: Tensor | None = None, seed: int = 0) -> None:
        self.target = torch.linspace(-0.6, 0.6, 8)
        task = Task(generator(), budget, torch.Generator().manual_seed(seed), starts)
        self.walk: Proposals = strategy.propose(task)
        self.asks: list[Ask] = []
        self.scores: list[Scores] = []
        ask, used = next(self.walk), 0
        while used < budget:
            scores = self.score(ask)
            self.asks.append(ask)
            self.scores.append(scores)
            used += ask.cost
            try:
                ask = self.walk.send(scores)
            except StopIteration:
                break

    def score(self, ask: Ask) -> Scores:
        difference = ask.latents - self.target
        return Scores(difference.square().sum(1), 2 * difference if ask.gradients else None)

    def best(self) -> float:
        return min(float(scores.distances.min()) for scores in self.scores)


def test_li_luo_follows_the_settled_algorithm() -> None:
    walk = Plain(LiLuo(round_size=200, patience=2), 12_000)
    best, best_distance, beta, stage, idle = torch.zeros(8), float("inf"), 0.5, "random", 0
    alphas = iter([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] + [1.0] * 100)
    alpha = next(alphas)
    for ask, scores in zip(walk.asks, walk.scores, strict=True):
        assert ask.latents.shape == (200, 8)
        if stage == "random":
            low, high = -torch.ones(8), torch.ones(8)
        elif stage == "coarse":
            low, high = alpha * best - 1, alpha * best + 1
        else:
            low, high = best - beta, best + beta
        assert (ask.latents >= low - 1e-6).all()
        assert (ask.latents <= high + 1e-6).all()
        assert (ask.latents.amax(0) - ask.latents.amin(0) > 0.9 * (high - low)).all()  # the whole box
        improved = float(scores.distances.min()) < best_distance
        if improved:
            best_distance = float(scores.distances.min())
            best = ask.latents[scores.distances.argmin()]
        if stage == "random":
            stage = "coarse"
        elif stage == "coarse":
            idle = idle + 1 if alpha == 1 and not improved else 0
            alpha = next(alphas)
            stage = "fine" if idle >= 2 else "coarse"
        elif not improved:
            beta *= 0.8
    assert stage == "fine"
    assert beta < 0.5
    assert best_distance < 0.05


def test_li_luo_is_content_at_its_threshold() -> None:
    walk = Plain(LiLuo(round_size=50, threshold=2.0), 50_000)
    assert walk.best() <= 2.0
    assert len(walk.asks) < 100  # it ended by itself
    assert all(float(scores.distances.min()) > 2.0 for scores in walk.scores[:-1])


def test_the_literal_fine_box_differs() -> None:
    settled, literal = (Plain(LiLuo(round_size=200, patience=2, literal_box=each), 12_000) for each in (False, True))
    assert settled.best() < literal.best() / 5  # around -I_opt + beta nothing is found
    first = next(
        i
        for i, (a, b) in enumerate(zip(settled.asks, literal.asks, strict=True))
        if not torch.equal(a.latents, b.latents)
    )
    kept = torch.cat([ask.latents for ask in literal.asks[:first]])
    distances = torch.cat([scores.distances for scores in literal.scores[:first]])
    best, drawn = kept[distances.argmin()], literal.asks[first].latents
    ends = torch.stack([-best + 0.5, best + 0.5])
    assert (drawn >= ends.amin(0) - 1e-6).all()
    assert (drawn <= ends.amax(0) + 1e-6).all()


def test_annealed_climbs_from_the_bank_with_falling_steps() -> None:
    starts = torch.full((4, 8), 0.3)
    walk = Plain(Annealed(round_size=50), 2001, starts)
    assert torch.equal(walk.asks[0].latents, starts[:1])  # the nearest
    deviations = []
    best, distance = starts[0], float(walk.scores[0].distances)
    for ask, scores in zip(walk.asks[1:], walk.scores[1:], strict=True):
        inside = (ask.latents.abs() < 1).all(1)
        deviations.append(float((ask.latents[inside] - best).std() / 3**-0.5))
        assert (ask.latents.abs() <= 1).all()
        if float(scores.distances.min()) < distance:
            distance, best = float(scores.distances.min()), ask.latents[scores.distances.argmin()]
    half = len(deviations) // 2
    assert 0.4 < sum(deviations[:half]) / half < 0.55
    assert 0.25 < sum(deviations[half:]) / half < 0.32


def test_annealed_without_a_bank_draws_its_start() -> None:
    walk = Plain(Annealed(draws=0.5), 1000)
    assert len(walk.asks[0].latents) == 500
    assert float(walk.scores[1].distances.min()) < float(walk.scores[0].distances.mean())


def test_gradient_descent_is_adam_with_a_falling_rate() -> None:
    starts = torch.tensor([[0.5] * 8, [-0.2] * 8])
    walk = Plain(GradientDescent(starts=2), 2 * GRADIENT_COST * 40, starts)
    latents = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.1 * 3**-0.5, betas=(0.9, 0.99), eps=1e-12)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for ask in walk.asks:
        assert torch.allclose(ask.latents, latents, atol=1e-4)
        optimizer.zero_grad()
        (latents - walk.target).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert len(walk.asks) == 40


def test_latents_stay_where_the_prior_is() -> None:
    starts = torch.full((1, 8), 0.99)
    for strategy in (GradientDescent(rate=1.0), CMAES(), Annealed(), Hybrid(rate=1.0)):
        walk = Plain(strategy, 1000, starts)
        assert all((ask.latents.abs() <= 1).all() for ask in walk.asks)


def test_hybrid_drops_the_worse_half_twice_and_then_evolves() -> None:
    starts = torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    walk = Plain(Hybrid(starts=8), 3000, starts)
    counts = [len(ask.latents) for ask in walk.asks if ask.gradients]
    assert sorted(set(counts), reverse=True) == [8, 4, 2]
    assert counts == sorted(counts, reverse=True)
    costs = [GRADIENT_COST * sum(count for count in counts if count == kept) for kept in (8, 4, 2)]
    assert max(costs) - min(costs) <= GRADIENT_COST * 8  # equal shares
    last, first = ([i for i, n in enumerate(counts) if n == kept] for kept in (8, 4))
    nearest = walk.scores[last[-1]].distances.argsort()[:4]
    moved = (walk.asks[first[0]].latents - walk.asks[last[-1]].latents[nearest]).abs().max()
    assert moved < 0.2  # the nearest ones, a step on
    assert not any(ask.gradients for ask in walk.asks[len(counts) :])
    assert walk.best() < 1e-3


def test_cma_es_with_a_whole_covariance_turns_its_axes() -> None:
    class Ellipsoid(Plain):
        def score(self, ask: Ask) -> Scores:
            turned = (ask.latents - self.target) @ torch.linalg.qr(torch.ones(8, 8).tril())[0]
            return Scores((turned * torch.logspace(0, 2, 8)).square().sum(1))

    start = torch.zeros(1, 8)
    whole, separable = (Ellipsoid(CMAES(separable=each), 6000, start).best() for each in (False, True))
    assert whole < separable / 10


def test_strategies_by_name_are_all_there_are() -> None:
    assert set(STRATEGIES) == {"li_luo", "annealed", "gradient", "cma_es", "hybrid"}


# ------------------------------------------------------------------------------------------------------------ scoring


def test_one_product_scores_several_photos(scorer: Scorer) -> None:
    noise = torch.Generator().manual_seed(0)
    latents, photos = scorer.generator.sample(70, noise), scorer.exact(scorer.generator.sample(5, noise))
    embeddings = scorer.recognizer(scorer.generator(latents))
    wanted = (embeddings[:, None] - photos).square().sum(2).mean(1)
    assert torch.allclose(scorer.distances(latents, mean_embedding(photos)), wanted, atol=1e-5)


def test_gradients_are_those_of_the_distances(scorer: Scorer, people: Tensor) -> None:
    latents = scorer.generator.sample(40, torch.Generator().manual_seed(1))
    distances, gradients = scorer.gradients(latents, people[0])
    assert torch.allclose(distances, scorer.distances(latents, people[0]), atol=1e-5)
    leaf = latents.clone().requires_grad_()
    embeddings: Tensor = scorer.recognizer(scorer.generator(leaf))
    (wanted,) = torch.autograd.grad((2 - 2 * embeddings @ people[0]).sum(), leaf)
    assert torch.allclose(gradients, wanted, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in scorer.generator.parameters())


def test_bfloat16_scores_are_near_and_the_report_exact(people: Tensor) -> None:
    reduced = Scorer(generator(), Projection(), batch_size=32, precision="bfloat16")
    exact = Scorer(generator(), Projection(), batch_size=32, precision="float32")
    latents = exact.generator.sample(50, torch.Generator().manual_seed(1))
    assert torch.equal(reduced.exact(latents), exact.exact(latents))
    difference = reduced.distances(latents, people[0]) - exact.distances(latents, people[0])
    assert 0 < difference.abs().max() < 0.1


def test_a_score_that_is_not_finite_is_an_error(people: Tensor) -> None:
    class Broken(Projection):
        def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
            yield "raw", image.flatten(1)[:, :16] * float("nan")

    with pytest.raises(ValueError, match="not finite"):
        search(Scorer(generator(), Broken(), precision="float32"), people, LiLuo(), 50)


def test_generators_and_recognisers_of_any_kind_fit_together(people: Tensor) -> None:
    class Rings(torch.nn.Module):  # a grey generator that knows nothing of this project
        def forward(self, latents: Tensor) -> Tensor:
            line = torch.linspace(-1, 1, 8)
            return torch.sin(latents[:, :1, None, None] * 3 * (line[:, None] ** 2 + line**2))

    class Sums(Recognizer):
        name, embedding_dim, stage_names = "sums", 8, ("raw",)

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.freeze()

        def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
            yield "raw", image.mean((1, 2)) * self.scale

    scorer = Scorer(Generator(Rings(), 4, prior="normal"), Sums(), precision="float32")
    target = scorer.exact(torch.tensor([[1.3, 0, 0, 0]]))
    found: list[Found] = search(scorer, target, Hybrid(), 500)
    assert found[0].distance < 1e-3
    assert found[0].latent.norm() <= 2 + 1e-5  # no longer than latents of N(0, I) are
