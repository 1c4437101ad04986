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

GATE = 0.5
"""A person of whose faces this share is taken for one real person is left out."""


class Thresholds(NamedTuple):
    """Squared distances of unit embeddings, measured on the photos at hand unless given.

    Attributes:
        identity: a face farther from its person's mean than this is left out: nineteen in twenty photos are nearer to
            the mean of the person's others.
        duplicate: a face nearer to a training photo than this is a copy of it: half of the photos are nearer to their
            own mirror image.
        leak: a face nearer than this to the mean of somebody else is taken for that person: half of the photos are
            nearer to the mean of the person's others.
    """

    identity: float
    duplicate: float
    leak: float


@dataclass
class References:
    """What faces are compared with.

    Attributes:
        names: real people's, those of training first.
        means: unit vectors (P, D), each the mean of a person's photos.
        photos: unit vectors (N, D), of the training photos.
        thresholds: see `Thresholds`.
    """

    names: list[str]
    means: Tensor
    photos: Tensor
    thresholds: Thresholds


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
    """The other real person whose mean is nearest, ..."""
    other: float
    """... and how far that is."""


def references(
    recognizer: Recognizer, training: People, others: Sequence[People], given: Sequence[float | None] = (None,) * 3
) -> References:
    """Embed real people, and measure the thresholds on them.

    Args:
        recognizer: what compares faces.
        training: the training photos.
        others: people of evaluation sets; who is called as somebody in training is left out, as that person.
        given: thresholds to take as they are, in the order of `Thresholds`.
    """
    photos = F.normalize(recognizer.embed(training.images).float())
    names, means, apart = list(training.names), [], []
    own = {plain_name(name) for name in training.names}
    everybody = [(training, photos)]
    for people in others:
        everybody.append((people, F.normalize(recognizer.embed(people.images).float())))
    for people, embedded in everybody:
        for number, rows in rows_of(people.person):
            if people is not training:
                if plain_name(people.names[number]) in own:
                    continue
                names.append(people.names[number])
            mean = embedded[rows].mean(0)
            means.append(F.normalize(mean, dim=0))
            if len(rows) > 1:  # each photo to the mean of the others
                rest = F.normalize((mean * len(rows) - embedded[rows]) / (len(rows) - 1))
                apart.append(distance(embedded[rows], rest))
    some = torch.linspace(0, len(photos) - 1, min(len(photos), 512)).long()
    mirrored = F.normalize(recognizer.embed(training.images[some].flip(-1)).float())
    spread = torch.cat(apart) if apart else torch.zeros(1)
    measured = (
        float(spread.quantile(0.95)),
        float(distance(photos[some], mirrored).median()),
        float(spread.median()),
    )
    chosen = (own if own is not None else found for own, found in zip(given, measured, strict=True))
    return References(names, torch.stack(means), photos, Thresholds(*chosen))


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
    to_people[:, list(labels)] = torch.inf
    other, nearest = to_people.min(1)
    limits = known.thresholds
    drawn = []
    for row in range(len(embeddings)):
        reason = ""
        if not seen[row]:
            reason = "no face found"
        elif other[row] < limits.leak:
            reason = "taken for somebody else"
        elif photo[row] < limits.duplicate:
            reason = "copy of a training photo"
        elif own[row] > limits.identity:
            reason = "too far from its person"
        drawn.append(
            Drawn(-1, reason, float(own[row]), float(photo[row]), known.names[int(nearest[row])], float(other[row]))
        )
    return drawn


def gate(drawn: Sequence[Drawn], leak: float) -> str:
    """The real person whom at least `GATE` of somebody's faces are taken for; "" if there is none."""
    taken = Counter(each.person for each in drawn if each.other < leak)
    name, count = next(iter(taken.most_common(1)), ("", 0))
    return name if count and count >= GATE * len(drawn) else ""
