"""Strategies of a search for a person's face in a latent space, each a few lines of proposals."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Generator as Coroutine
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from idface.latent.generators import Generator

GRADIENT_COST = 3
"""Evaluations that a candidate with its gradient counts as: one to score it and two for the way back."""


@dataclass(frozen=True)
class Task:
    """What a strategy is given: one person to find."""

    generator: Generator
    budget: int
    """Evaluations that it may use: a candidate counts one, a candidate with its gradient GRADIENT_COST."""
    noise: torch.Generator
    """Where its random numbers come from."""
    starts: Tensor | None = None
    """Latents (K, L) of the bank's nearest faces, nearest first; None without a bank."""

    def sample(self, count: int) -> Tensor:
        """Draw latents (count, L) from the prior."""
        return self.generator.sample(count, self.noise)

    def normal(self, count: int, deviation: float) -> Tensor:
        """Draw Gaussian noise (count, L), in units of the prior's standard deviation."""
        shape = (count, self.generator.latent_dim)
        return torch.randn(shape, generator=self.noise) * (deviation * self.generator.std)


class Ask(NamedTuple):
    """Candidates to be scored."""

    latents: Tensor
    """(N, L) float32."""
    gradients: bool = False
    """Whether the gradients of their distances are wanted as well."""

    @property
    def cost(self) -> int:
        """Evaluations."""
        return len(self.latents) * (GRADIENT_COST if self.gradients else 1)


class Scores(NamedTuple):
    """What an `Ask` is answered with."""

    distances: Tensor
    """(N,) float32."""
    gradients: Tensor | None = None
    """(N, L) float32, where they were asked for."""


Proposals = Coroutine[Ask, Scores, None]


class SearchStrategy(ABC):
    """How candidates are proposed. The search keeps the best one ever seen, and ends what is out of budget."""

    @abstractmethod
    def propose(self, task: Task) -> Proposals:
        """Yield candidates; each `yield` gives their scores.

        A function of the task and the scores alone: a search that is resumed walks through it again.
        """

    @property
    def uses_bank(self) -> bool:
        """Whether it makes use of `Task.starts`."""
        return True

    @property
    def uses_gradients(self) -> bool:
        """Whether most of its candidates are scored with their gradients."""
        return False


class _Best:
    """The best candidate so far, to go on from."""

    def __init__(self) -> None:
        self.distance = float("inf")
        self.latent = torch.empty(0)

    def take(self, latents: Tensor, distances: Tensor) -> bool:
        """Keep the best of some candidates if it is better; whether it was."""
        row = int(distances.argmin())
        if float(distances[row]) >= self.distance and len(self.latent):
            return False
        self.distance, self.latent = float(distances[row]), latents[row]
        return True


@dataclass(frozen=True)
class LiLuo(SearchStrategy):
    """Algorithm 1 of Li & Luo: random, then coarse, then fine search.

    As printed it cannot run. Settled: alpha goes from 0 by 0.1 to 1; the coarse search ends once it is there and
    `patience` rounds brought nothing; beta starts at 0.5 and shrinks after each round that brought nothing; the best
    latent always competes; fine candidates lie in `I_opt ± beta`.

    Args:
        round_size: candidates a round, N. The paper has 1000; None takes that from 40,000 evaluations upwards, and a
            fortieth of the budget, at least 25, below.
        patience: rounds without gain that end the coarse search.
        beta: half the side of the first fine box, in units of the cube's or, for a normal prior, of the deviation.
        shrink: factor of beta after a fine round without gain.
        threshold: T, the distance at which the search is content; None for as near as the budget allows. The paper has
            0.4, which it does not reach.
        literal_box: draw fine candidates between `-I_opt + beta` and `I_opt + beta`, as printed.
    """

    round_size: int | None = None
    patience: int = 3
    beta: float = 0.5
    shrink: float = 0.8
    threshold: float | None = None
    literal_box: bool = False

    @property
    def uses_bank(self) -> bool:
        """It draws its own start."""
        return False

    def propose(self, task: Task) -> Proposals:
        """See `SearchStrategy.propose`."""
        count = self.round_size or min(1000, max(25, task.budget // 40))
        content = -1.0 if self.threshold is None else self.threshold
        best = _Best()
        latents = task.sample(count)
        best.take(latents, (yield Ask(latents)).distances)

        tenths, idle = 0, 0  # of alpha
        while best.distance > content and (tenths < 10 or idle < self.patience):
            latents = task.sample(count) + tenths / 10 * best.latent
            better = best.take(latents, (yield Ask(latents)).distances)
            idle = 0 if better or tenths < 10 else idle + 1
            tenths = min(10, tenths + 1)

        beta = self.beta
        while best.distance > content:
            noise = task.sample(count)
            # literally: uniform between the two ends, whichever of them is larger
            latents = beta + best.latent * noise if self.literal_box else best.latent + beta * noise
            if not best.take(latents, (yield Ask(latents)).distances):
                beta *= self.shrink


@dataclass(frozen=True)
class Annealed(SearchStrategy):
    """Vendrow & Singhal: from the bank's nearest face by elitist hill climbing with Gaussian steps (section 5.2).

    Args:
        deviations: of the steps, in units of the prior's; each has an equal share of the budget.
        round_size: candidates between two moves.
        draws: share of the budget that looks for a start among random latents where there is no bank.
    """

    deviations: tuple[float, ...] = (0.5, 0.3)
    round_size: int = 64
    draws: float = 0.2

    def propose(self, task: Task) -> Proposals:
        """See `SearchStrategy.propose`."""
        best, used = _Best(), 0
        latents = _starts(task, 1, self.draws)
        best.take(latents, (yield Ask(latents)).distances)
        used += len(latents)
        share = (task.budget - used) / len(self.deviations)
        for number, deviation in enumerate(self.deviations, start=1):
            end = task.budget - share * (len(self.deviations) - number)
            while used < end:
                count = min(self.round_size, int(np.ceil(end)) - used)
                latents = task.generator.contain(best.latent + task.normal(count, deviation))
                best.take(latents, (yield Ask(latents)).distances)
                used += count


@dataclass(frozen=True)
class GradientDescent(SearchStrategy):
    """Descent on latents through generator and recogniser, with Adam, from several starts at once.

    Where the budget is too small for a step, the starts are scored.

    Args:
        starts: latents that descend together; None for one in 180 evaluations, between 1 and 16.
        rate: Adam's learning rate at the start, in units of the prior's deviation; it falls to 0 along a cosine.
        draws: share of the budget that looks for starts where there is no bank.
    """

    starts: int | None = None
    rate: float = 0.1
    draws: float = 0.2

    def propose(self, task: Task) -> Proposals:
        """See `SearchStrategy.propose`."""
        count = self.starts or min(16, max(1, task.budget // 180))
        best = _Best()
        latents, used = yield from _nearest_starts(task, count, self.draws, best)
        yield from _descend(task, latents, task.budget - used, self.rate, best)
        if not len(best.latent):
            yield Ask(latents)

    @property
    def uses_gradients(self) -> bool:
        """It does nothing else."""
        return True


@dataclass(frozen=True)
class CMAES(SearchStrategy):
    """Evolution strategy with an adapted covariance (Hansen & Ostermeier, 2001), by the package `cmaes`.

    Args:
        deviation: of the first generation around the start, in units of the prior's.
        population: candidates a generation.
        separable: adapt a variance for each element only (Ros & Hansen, 2008): learns as many times faster as there are
            elements, and cannot turn its axes.
        draws: share of the budget that looks for a start where there is no bank.
    """

    deviation: float = 0.5
    population: int = 32
    separable: bool = True
    draws: float = 0.2

    def propose(self, task: Task) -> Proposals:
        """See `SearchStrategy.propose`."""
        latents, best = _starts(task, 1, self.draws), _Best()
        best.take(latents, (yield Ask(latents)).distances)
        yield from _evolve(task, best, self.deviation, self.population, self.separable)


@dataclass(frozen=True)
class Hybrid(SearchStrategy):
    """The bank's nearest faces, then the best of the others: gradient descent that drops its losers, then evolution.

    Several of the bank's faces descend together. Twice on the way the worse half is given up, and what they would have
    cost goes to the others. What is left of the budget polishes the best one with CMA-ES, which needs no slope and so
    gets out of where descent has come to rest.

    Args:
        starts: latents that descend at first; None for one in 250 evaluations, between 1 and 16.
        rate: Adam's learning rate at the start, in units of the prior's deviation; it falls to 0 along a cosine.
        descent: share of the budget for descent.
        deviation: of the first generation of the polish, in units of the prior's.
        draws: share of the budget that looks for starts where there is no bank.
    """

    starts: int | None = None
    rate: float = 0.1
    descent: float = 0.9
    deviation: float = 0.05
    draws: float = 0.2

    def propose(self, task: Task) -> Proposals:
        """See `SearchStrategy.propose`."""
        count = self.starts or min(16, max(1, task.budget // 250))
        best = _Best()
        latents, used = yield from _nearest_starts(task, count, self.draws, best)
        budget = int((task.budget - used) * self.descent)
        yield from _descend(task, latents, budget, self.rate, best, halvings=2)
        if not len(best.latent):  # the budget is too small to descend
            best.take(latents, (yield Ask(latents)).distances)
        yield from _evolve(task, best, self.deviation, 32, separable=True)

    @property
    def uses_gradients(self) -> bool:
        """Until the polish."""
        return True


STRATEGIES: dict[str, Callable[[], SearchStrategy]] = {
    "li_luo": LiLuo,
    "annealed": Annealed,
    "gradient": GradientDescent,
    "cma_es": CMAES,
    "hybrid": Hybrid,
}
"""The strategies by their names on the command line."""


def _starts(task: Task, count: int, draws: float) -> Tensor:
    """Where to start: the bank's `count` nearest, or a share of the budget in random latents."""
    if task.starts is not None:
        return task.starts[:count]
    return task.sample(max(count, int(task.budget * draws)))


def _nearest_starts(task: Task, count: int, draws: float, best: _Best) -> Coroutine[Ask, Scores, tuple[Tensor, int]]:
    """The `count` nearest of `_starts`, and the evaluations that finding them took: none where a bank knows them."""
    latents = _starts(task, count, draws)
    if task.starts is not None:
        return latents, 0
    distances = (yield Ask(latents)).distances
    best.take(latents, distances)
    return latents[distances.argsort()[:count]], len(latents)


def _descend(task: Task, latents: Tensor, budget: int, rate: float, best: _Best, halvings: int = 0) -> Proposals:
    """Adam (Kingma & Ba, 2014) on latents (N, L), each with moments of its own; keeps the best in `best`.

    With `halvings`, descent is cut into as many equal shares of the budget and one more; after each but the last, the
    worse half of the latents is dropped. The rate falls along a cosine over all steps.
    """
    first, second = torch.zeros_like(latents), torch.zeros_like(latents)
    counts = [max(1, len(latents) >> done) for done in range(halvings + 1)]
    steps = [budget // ((halvings + 1) * GRADIENT_COST * count) for count in counts]
    step, distances = 0, torch.zeros(len(latents))
    for count, stage in zip(counts, steps, strict=True):
        if step:  # the losers go
            kept = distances.argsort()[:count]
            latents, first, second = latents[kept], first[kept], second[kept]
        for _ in range(stage):
            distances, gradients = yield Ask(latents, gradients=True)
            assert gradients is not None
            best.take(latents, distances)
            step += 1
            first = 0.9 * first + 0.1 * gradients
            second = 0.99 * second + 0.01 * gradients.square()
            move = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
            falling = 0.5 * (1 + np.cos(np.pi * (step - 1) / sum(steps)))
            latents = task.generator.contain(latents - rate * falling * task.generator.std * move)


def _evolve(task: Task, best: _Best, deviation: float, population: int, separable: bool) -> Proposals:
    """CMA-ES around the best latent, until the budget ends."""
    from cmaes import CMA, SepCMA

    seed = int(torch.randint(2**31, (), generator=task.noise))
    mean = best.latent.double().numpy()
    method = SepCMA if separable else CMA
    evolution = method(mean=mean, sigma=deviation * task.generator.std, population_size=population, seed=seed)
    while True:
        asked = np.stack([evolution.ask() for _ in range(population)])
        latents = task.generator.contain(torch.from_numpy(asked).float())
        distances = (yield Ask(latents)).distances
        # told of where it asked for: a candidate outside the prior is as good as the nearest one inside
        evolution.tell(list(zip(asked, distances.double().tolist(), strict=True)))
