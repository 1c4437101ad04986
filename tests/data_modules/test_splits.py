"""Splits are a function of names and a seed, and of nothing else."""

import random
from typing import Any

import numpy as np
import pytest

from data_modules.splits import FaceSplit, split_faces

PEOPLE = [f"p{n:02}" for n in range(20)]


def split(people: list[str | None], photos: list[str] | None = None, **options: Any) -> FaceSplit:
    photos = photos or [f"{person}/{row}" for row, person in enumerate(people)]
    defaults = {"val_identities": 3, "test_identities": 4, "held_out_photos": 2, "seed": 0}
    return split_faces(photos, people, **{**defaults, **options})


def test_golden() -> None:
    """On any machine, with any version: `printf 0:p03 | sha256sum` comes first among the people, so p03 validates."""
    result = split([person for person in PEOPLE[:6] for _ in range(4)], val_identities=1, test_identities=1)
    assert result.identity_names == ["p00", "p01", "p04", "p05", "p03", "p02"]
    assert result.train.tolist() == [0, 2, 4, 5, 16, 17, 20, 23]
    assert result.known["test"].tolist() == [1, 18]
    assert result.known["val"].tolist() == [6, 21]
    assert {stage: rows.tolist() for stage, rows in result.unseen.items()} == {"val": [12, 13, 15], "test": [9, 10, 11]}
    assert result.gallery.tolist() == [3, 7, 8, 14, 19, 22]


def test_every_photo_has_one_use() -> None:
    result = split([person for n, person in enumerate(PEOPLE) for _ in range(1 + n % 6)] + [None] * 5)
    uses = [result.train, *result.known.values(), result.unseen["val"], result.unseen["test"], result.gallery]
    assert sorted(np.concatenate(uses).tolist()) == list(range(len(result.identity)))
    assert set(range(len(result.identity) - 5, len(result.identity))) <= set(result.train.tolist())


def test_the_order_of_the_list_does_not_matter() -> None:
    people = [person for person in PEOPLE for _ in range(5)]
    photos = [f"{person}/{row % 5}" for row, person in enumerate(people)]
    shuffled = random.Random(0).sample(range(len(people)), len(people))
    left = split(people, photos)
    right = split([people[row] for row in shuffled], [photos[row] for row in shuffled])
    assert left.identity_names == right.identity_names
    for uses in zip(*[(each.train, each.gallery, *each.known.values()) for each in (left, right)], strict=True):
        named = [{photos[row] for row in uses[0]}, {photos[shuffled[row]] for row in uses[1]}]
        assert named[0] == named[1]


def test_a_newcomer_moves_few() -> None:
    people = [person for person in PEOPLE for _ in range(4)]
    photos = [f"{person}/{row % 4}" for row, person in enumerate(people)]
    before = split(people, photos)
    after = split([*people, *["new"] * 4], [*photos, *(f"new/{n}" for n in range(4))])
    kept_out = set(before.identity_names[before.num_train :]) & set(after.identity_names[after.num_train :])
    assert len(kept_out) >= 6  # of the 3 + 4


def test_shares() -> None:
    people = [person for person in PEOPLE for _ in range(4)]
    result = split(people, val_identities=0.15, test_identities=0.01)
    assert result.num_train == 16
    assert [len(result.unseen[stage]) for stage in ("val", "test")] == [9, 3]
    assert split(people, val_identities=0, test_identities=0.0).num_train == 20


@pytest.mark.parametrize("held_out", [0, 1, 2, 3])
def test_who_has_too_few_photos_only_trains(held_out: int) -> None:
    counts = {person: n % 8 + 1 for n, person in enumerate(PEOPLE)}
    people = [person for person, count in counts.items() for _ in range(count)]
    result = split(people, held_out_photos=held_out, val_identities=0, test_identities=0)
    for number, person in enumerate(result.identity_names):
        spared = held_out if held_out and counts[person] >= 2 * held_out else 0
        assert np.sum(result.identity[result.train] == number) == counts[person] - spared
        assert np.sum(result.identity[np.concatenate(list(result.known.values()))] == number) == max(spared - 1, 0)
        assert np.sum(result.identity[result.gallery] == number) == min(spared, 1)


def test_people_with_one_photo_are_not_kept_out() -> None:
    result = split(PEOPLE + PEOPLE[:7])
    assert set(result.identity_names[result.num_train :]) == set(PEOPLE[:7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_identities": 15, "test_identities": 6}, "ask for 15 . 6 people .* has 20 such people"),
        ({"val_identities": 10, "test_identities": 10}, "leave nobody to train on"),
        ({"val_identities": 1.0}, "val_identities must be a count of people or a share from 0 to below 1, found 1.0"),
        ({"test_identities": -1}, "test_identities must be"),
        ({"held_out_photos": -1}, "held_out_photos must be 0 or more"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split([person for person in PEOPLE for _ in range(4)], **options)
