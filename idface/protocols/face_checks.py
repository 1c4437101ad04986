"""Faces before a recogniser: are they of their person, of somebody else, or a copy of a photo?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_modules.people import plain_name
from idface.protocols.sources import People, rows_of
from idface.recognition.base import Recognizer, distance

GATE = 0.2
"""A person of whose faces this share is taken for one real person is left out; of real photos three in four are."""

EACH = 12
"""Photos of a person that thresholds are measured on, at most: nobody's many photos decide for all."""


class Thresholds(NamedTuple):
    """Squared distances of unit embeddings, measured on the training photos unless given.

    Attributes:
        identity: a face farther from its person's mean than this is left out: nineteen in twenty photos are nearer to
            the mean of the person's others.
        duplicate: a face nearer to a training photo than this is a copy of it: half of the photos are nearer to
            themselves, mirrored or moved by a fiftieth of the side (whichever is farther).
        leak: a face nearer than this to the mean of somebody else is taken for that person: three in four photos are
            nearer to the mean of the person's others.
        leak_single: the same where a single photo of that person is known: three in four are nearer to another one.
    """

    identity: float
    duplicate: float
    leak: float
    leak_single: float


@dataclass
class References:
    """What faces are compared with.

    Attributes:
        names: real people's, those of training first.
        means: unit vectors (P, D), each the mean of a person's photos.
        counts: int64 (P,), how many photos each mean is of.
        photos: unit vectors (N, D), of the training photos.
        thresholds: see `Thresholds`.
    """

    names: list[str]
    means: Tensor
    counts: Tensor
    photos: Tensor
    thresholds: Thresholds

    @property
    def leak(self) -> Tensor:
        """For each person (P,) how near a face of somebody else may not come."""
        return torch.where(self.counts > 1, self.thresholds.leak, self.thresholds.leak_single)


class Drawn(NamedTuple):
    """A face that was drawn, and what became of it."""

    number: int
    """Among the faces of its person."""
    reason: str
    """Why it is left out; "" if it is kept."""
    own: float
    """Its distance from its person's mean."""
    photo: float
    """... from the nearest training photo."""
    person: str
    """The other real person whose mean is nearest, measured by what is too near, ..."""
    other: float
    """... how far that is, ..."""
    taken: bool
    """... and whether it is too near."""


def references(
    recognizer: Recognizer, training: People, others: Sequence[People], given: Sequence[float | None] = (None,) * 3
) -> References:
    """Embed real people, and measure the thresholds on those of training.

    Args:
        recognizer: what compares faces.
        training: the training photos.
        others: people of evaluation sets; who is called as somebody in training is left out, as that person.
        given: thresholds to take as they are, in the order of `Thresholds`; the third for both of the last.

    Raises:
        ValueError: no person of training has two photos to measure on, and not all thresholds are given.
    """
    photos = recognizer.embed(training.images)
    names, means, counts = list(training.names), [], []
    to_mean, to_photo = [], []
    for _, rows in rows_of(training.person):
        own = photos[rows]
        means.append(F.normalize(own.mean(0), dim=0))
        counts.append(len(rows))
        if len(rows) > 1:
            rest = F.normalize((own.mean(0) * len(rows) - own) / (len(rows) - 1))
            to_mean.append(distance(own, rest)[:EACH])  # each photo to the mean of the others
            to_photo.append(distance(own, own.roll(1, 0))[:EACH])
    known = {plain_name(name) for name in training.names}
    for people in others:
        embedded = recognizer.embed(people.images)
        for number, rows in rows_of(people.person):
            if plain_name(people.names[number]) not in known:
                names.append(people.names[number])
                means.append(F.normalize(embedded[rows].mean(0), dim=0))
                counts.append(len(rows))
    if not to_mean and None in given:
        raise ValueError("nobody in the training data has two photos: give the distances, for none can be measured")
    spread, pairs = (torch.cat(found) if found else torch.zeros(1) for found in (to_mean, to_photo))
    identity, duplicate, leak = given
    thresholds = Thresholds(
        float(spread.quantile(0.95)) if identity is None else identity,
        _to_itself(recognizer, training.images, photos) if duplicate is None else duplicate,
        float(spread.quantile(0.75)) if leak is None else leak,
        float(pairs.quantile(0.75)) if leak is None else leak,
    )
    return References(names, torch.stack(means), torch.tensor(counts), photos, thresholds)


def _to_itself(recognizer: Recognizer, images: Tensor, photos: Tensor) -> float:
    """The distance that half of the photos are nearer to themselves, hardly changed."""
    some = torch.linspace(0, len(images) - 1, min(len(images), 512)).long()
    step = max(1, round(images.shape[-1] / 50))
    moved = torch.cat([images[some][..., :step].flip(-1), images[some][..., :-step]], dim=-1)
    changed = (images[some].flip(-1), moved)
    return max(float(distance(photos[some], recognizer.embed(each)).median()) for each in changed)


def judge_faces(
    embeddings: Tensor, own_mean: Tensor, labels: Sequence[int], seen: Sequence[bool], known: References
) -> list[Drawn]:
    """What becomes of faces of one person.

    Args:
        embeddings: unit vectors (B, D) of the faces.
        own_mean: unit vector (D,) of the person's mean.
        labels: of the real people whom the faces may look like: the person's own, or nobody's for a new person.
        seen: whether a detector saw a face in each.
        known: what they are compared with.
    """
    own = distance(embeddings, own_mean)
    photo = (2 - 2 * embeddings @ known.photos.T).amin(1).clamp(min=0)
    to_people = (2 - 2 * embeddings @ known.means.T).clamp(min=0)
    relative = to_people / known.leak.clamp(min=1e-9)
    relative[:, list(labels)] = torch.inf
    nearness, nearest = relative.min(1)
    drawn = []
    for row in range(len(embeddings)):
        person, taken = int(nearest[row]), bool(nearness[row] < 1)
        reason = ""
        if not seen[row]:
            reason = "no face found"
        elif taken:
            reason = "taken for somebody else"
        elif photo[row] < known.thresholds.duplicate:
            reason = "copy of a training photo"
        elif own[row] > known.thresholds.identity:
            reason = "too far from its person"
        other = float(to_people[row, person])
        drawn.append(Drawn(-1, reason, float(own[row]), float(photo[row]), known.names[person], other, taken))
    return drawn


def gate(drawn: Sequence[Drawn]) -> str:
    """The real person whom at least `GATE` of somebody's faces are taken for; "" if there is none."""
    hits = Counter(each.person for each in drawn if each.taken)
    name, count = next(iter(hits.most_common(1)), ("", 0))
    return name if count and count >= GATE * len(drawn) else ""
