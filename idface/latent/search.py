"""The search for people's faces in a generator's latent space: several at once, within a budget, to be resumed."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from idface.files import save_tensors, whole_file
from idface.latent.scoring import Scorer, distance_from_mean
from idface.latent.strategies import Ask, Proposals, Scores, SearchStrategy, Task

JOURNAL = ".journal"
"""The folder of a search's scores, beside its results; no person's folder is called that."""

MILESTONES = 16
"""Last improvements that are scored again in full precision at the end."""

_SAVE_EVERY = 20.0  # seconds


class Step(NamedTuple):
    """A point of a search's history."""

    evaluations: int
    distance: float
    """The best so far."""


class Milestone(NamedTuple):
    """A face that was the best one for a while."""

    evaluations: int
    distance: float
    latent: Tensor
    """(L,) float32."""


@dataclass
class Found:
    """The best face found for a person."""

    latent: Tensor = field(default_factory=lambda: torch.empty(0))
    """(L,) float32."""
    distance: float = float("inf")
    """Mean squared distance from the person's photos, in full precision once the search has ended."""
    evaluations: int = 0
    seconds: float = 0.0
    """That the search took, with those of earlier calls that were stopped; of one for several people, a share."""
    history: list[Step] = field(default_factory=list)
    """The best distance after every round, as scored (perhaps in bfloat16): it never rises."""
    milestones: list[Milestone] = field(default_factory=list)
    """Every face that was the best one, in the order in which they were found."""

    def take(self, ask: Ask, distances: Tensor) -> None:
        """Count a round and keep its best candidate if it is better."""
        self.evaluations += ask.cost
        row = int(distances.argmin())
        if (distance := float(distances[row])) < self.distance:
            self.distance, self.latent = distance, ask.latents[row].clone()
            self.milestones.append(Milestone(self.evaluations, distance, self.latent))
        self.history.append(Step(self.evaluations, self.distance))


def mean_embedding(embeddings: Tensor) -> Tensor:
    """A person's photos' unit embeddings (P, D) as the vector (D,) that `search` takes.

    The mean of squared distances from several unit vectors is `2 - 2 e.m` with m their mean: it is not scaled to length
    one again.
    """
    return embeddings.mean(0)


def search(
    scorer: Scorer,
    people: Tensor,
    strategy: SearchStrategy,
    budget: int,
    seed: int = 0,
    starts: Tensor | None = None,
    journal: Path | None = None,
    progress: Callable[[int, float], None] = lambda evaluations, distance: None,
) -> list[Found]:
    """Search for several people's faces at once.

    Each person has a strategy of their own with random numbers from `seed`, whoever else is searched for; candidates of
    all are scored together. The best distance never rises, and no more than `budget` evaluations are used for anybody.
    In the end the last MILESTONES improvements are measured once more in float32, which is what is reported; the best
    of them by that is the result.

    A score that is not a number counts as infinitely far.

    Args:
        scorer: generator and recogniser.
        people: a `mean_embedding` each, (T, D).
        strategy: how candidates are proposed.
        budget: evaluations for each person.
        seed: of all that is drawn.
        starts: (T, K, L) latents of the nearest faces in a bank, nearest first; None without one.
        journal: a folder in which every score is kept, so that a search that was stopped goes on from there: call it
            with the same arguments. None to keep nothing.
        progress: called after each round with the evaluations of all people so far and the mean best distance.

    Returns:
        What was found for each person.

    Raises:
        ValueError: the budget is below 1, or the journal is of another search or damaged.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}; a search needs at least one evaluation")
    people = people.float().cpu()
    walks = []
    for row in range(len(people)):
        own_starts = None if starts is None else starts[row].float().cpu()
        task = Task(scorer.generator, budget, torch.Generator().manual_seed(seed), own_starts)
        walks.append(_Walk(strategy.propose(task), budget))
    started = time.monotonic()
    kept = None
    if journal is not None:
        kept = _Journal(journal, _identify(scorer, people, strategy, budget, seed, starts))
    try:
        while asks := {row: walk.ask for row, walk in enumerate(walks) if walk.ask is not None}:
            scores = kept.replay(asks) if kept else None
            if scores is None:
                scores = _score(scorer, people, asks)
                if kept:
                    kept.add(scores)
            for row, each in scores.items():
                walks[row].answer(each)
            found = [walk.found for walk in walks]
            progress(sum(each.evaluations for each in found), sum(each.distance for each in found) / len(found))
    finally:  # also when somebody presses Ctrl-C
        if kept:
            kept.save()
    for person, walk in zip(people, walks, strict=True):
        _settle(scorer, person, walk.found)
    seconds = time.monotonic() - started + (kept.seconds_before if kept else 0.0)
    for walk in walks:
        walk.found.seconds = seconds / len(walks)
    return [walk.found for walk in walks]


class _Walk:
    """One person's strategy at work, held to its budget."""

    def __init__(self, proposals: Proposals, budget: int) -> None:
        self.found = Found()
        self.proposals = proposals
        self.budget = budget
        self.ask: Ask | None = None
        self._hold(next(proposals, None))

    def answer(self, scores: Scores) -> None:
        """Take the scores of `ask` and ask for the next candidates; None when the search has ended."""
        assert self.ask is not None
        self.found.take(self.ask, scores.distances)
        if self.cut_short:
            self.ask = None
            return
        try:
            self._hold(self.proposals.send(scores))
        except StopIteration:
            self.ask = None

    def _hold(self, ask: Ask | None) -> None:
        """Cut what is asked for down to what the budget still allows."""
        left = self.budget - self.found.evaluations
        self.cut_short = ask is not None and ask.cost > left
        if ask is not None and self.cut_short:
            ask = ask._replace(latents=ask.latents[: left * len(ask.latents) // ask.cost])
        self.ask = ask if ask is not None and len(ask.latents) else None


def _score(scorer: Scorer, people: Tensor, asks: Mapping[int, Ask]) -> dict[int, Scores]:
    """Score the candidates of all people together."""
    scores: dict[int, Scores] = {}
    for wants_gradients in (False, True):
        rows = [row for row, ask in asks.items() if ask.gradients == wants_gradients]
        if not rows:
            continue
        counts = [len(asks[row].latents) for row in rows]
        latents = torch.cat([asks[row].latents for row in rows])
        persons = people[rows].repeat_interleave(torch.tensor(counts), dim=0)
        gradients: Sequence[Tensor | None] = [None] * len(rows)
        if wants_gradients:
            distances, slopes = scorer.gradients(latents, persons)
            gradients = slopes.nan_to_num(0, 0, 0).cpu().split(counts)
        else:
            distances = scorer.distances(latents, persons)
        parts = distances.nan_to_num(nan=float("inf")).cpu().split(counts)
        scores |= {row: Scores(part, slope) for row, part, slope in zip(rows, parts, gradients, strict=True)}
    return scores


def _settle(scorer: Scorer, person: Tensor, found: Found) -> None:
    """Score the last milestones in full precision and keep the best of them."""
    last = found.milestones[-MILESTONES:]
    if not last:
        raise ValueError(
            "not one score was a number: the generator's faces, or the recogniser's embeddings of them, are not finite"
        )
    latents = torch.stack([milestone.latent for milestone in last])
    distances = distance_from_mean(scorer.exact(latents), person.to(scorer.device)).cpu()
    row = int(distances.argmin())
    found.latent, found.distance = latents[row], float(distances[row])


def _identify(
    scorer: Scorer, people: Tensor, strategy: SearchStrategy, budget: int, seed: int, starts: Tensor | None
) -> dict[str, Any]:
    """What a search is of, for its journal."""
    tensors = [people] if starts is None else [people, starts.float().cpu()]
    digest = hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors))
    return {
        "strategy": repr(strategy),
        "budget": budget,
        "seed": seed,
        "people and starts": digest.hexdigest()[:12],
        "generator": scorer.generator.fingerprint(),
        "recognizer": scorer.recognizer.fingerprint(),
        "precision": scorer.precision,
    }


class _Journal:
    """Every score of a search, in files that are only ever added: a strategy walks through them again.

    Args:
        folder: where they are; made if missing.
        search: what the search is of.

    Raises:
        ValueError: the folder has the journal of another search.
    """

    def __init__(self, folder: Path, search: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.turns: list[dict[int, Scores]] = []
        header = folder / "search.json"
        if header.exists():
            self._check(json.loads(header.read_text("utf-8")), search)
        else:
            with whole_file(header) as unfinished:
                unfinished.write_text(json.dumps(search, indent=2) + "\n", "utf-8")
        self.files = sorted(folder.glob("scores-*.safetensors"))
        self.old = [turn for file in self.files for turn in _read_turns(file)]
        self.seconds_before = sum(_seconds_of(file) for file in self.files)
        self.saved = time.monotonic()

    def _check(self, kept: Mapping[str, Any], search: Mapping[str, Any]) -> None:
        for key, value in search.items():
            if kept.get(key) != value:
                raise ValueError(
                    f"'{self.folder}' holds the scores of another search: its {key} is {kept.get(key)}, here it is "
                    f"{value}. Call it as it was to go on, or remove that folder to start anew"
                )

    def replay(self, asks: Mapping[int, Ask]) -> dict[int, Scores] | None:
        """The scores of the next turn, if they are kept."""
        if not self.old:
            return None
        turn = self.old.pop(0)
        if {row: len(ask.latents) for row, ask in asks.items()} != {r: len(s.distances) for r, s in turn.items()}:
            raise ValueError(
                f"the scores in '{self.folder}' do not fit this search, so they are damaged or of another version of "
                "idface: remove that folder to start anew"
            )
        return turn

    def add(self, scores: dict[int, Scores]) -> None:
        """Take the scores of a new turn; they are written from time to time."""
        self.turns.append(scores)
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what was not written yet."""
        if self.turns:
            tensors = {
                f"{number}.{row}.{name}": value.contiguous()
                for number, turn in enumerate(self.turns)
                for row, scores in turn.items()
                for name, value in scores._asdict().items()
                if value is not None
            }
            file = self.folder / f"scores-{len(self.files):06d}.safetensors"
            metadata = {"seconds": str(time.monotonic() - self.saved)}
            save_tensors(tensors, file, metadata)
            self.files.append(file)
            self.turns = []
        self.saved = time.monotonic()


def _read_turns(file: Path) -> list[dict[int, Scores]]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{file}' is damaged ({error}): remove its folder to start the search anew") from error
    turns: dict[int, dict[int, Scores]] = {}
    for number, row, name in sorted(key.split(".") for key in tensors):
        if name == "distances":
            scores = Scores(tensors[f"{number}.{row}.{name}"], tensors.get(f"{number}.{row}.gradients"))
            turns.setdefault(int(number), {})[int(row)] = scores
    return [turns[number] for number in sorted(turns)]


def _seconds_of(file: Path) -> float:
    with safe_open(file, "pt") as opened:
        return float((opened.metadata() or {}).get("seconds", 0))
