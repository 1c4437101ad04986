"""Who trains and who judges: splits by person, and among training people by photo.

A split is a function of names and a seed alone. Names are ranked by a cryptographic hash, so the result is the same on
every machine and version, in whatever order a file system lists them; and a person who joins the set moves few others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class FaceSplit:
    """The rows of a data set by what they are used for; every array is int64 and sorted.

    Attributes:
        identity_names: training people, then validation, then test people; each group sorted by name.
        num_train: how many of them train.
        identity: (N,) row -> position in `identity_names`, -1 where the person is unknown.
        train: photos to train on; unknown people are among them.
        known: for "val" and "test", held-out photos of training people, less their gallery photo. The two take turns:
            what was tuned on the one is not reported on the other.
        unseen: for "val" and "test", photos of those people, less their gallery photo.
        gallery: one photo a person, of every person but those training people who have too few photos to spare one.
    """

    identity_names: list[str]
    num_train: int
    identity: Rows
    train: Rows
    known: dict[str, Rows]
    unseen: dict[str, Rows]
    gallery: Rows


def split_faces(
    photos: Sequence[str],
    people: Sequence[str | None],
    *,
    val_identities: int | float,
    test_identities: int | float,
    held_out_photos: int,
    seed: int,
    assigned: Mapping[str, str] | None = None,
) -> FaceSplit:
    """Split photos so that training, validation and test share no person, and no held-out photo is trained on.

    Args:
        photos: a unique name for each of N photos, such as its path inside the data set.
        people: who is on each; None for an unknown person, whose photo can only train.
        val_identities: people to validate on: a count, or a share of all people between 0 and 1.
        test_identities: likewise for the test.
        held_out_photos: photos to hold out of each training person, the gallery photo being one of them. Who has fewer
            than twice as many photos only trains.
        seed: another seed, another split.
        assigned: "train", "val" or "test" for each person, where the data set itself says so; the two numbers of people
            then have no effect. Who is to be validated or tested on and has a single photo is not used.

    Raises:
        ValueError: when too few people are left to train or to hold out.
    """
    if held_out_photos < 0:
        raise ValueError(f"held_out_photos must be 0 or more, found {held_out_photos}")
    named = sorted((person, row) for row, person in enumerate(people) if person is not None)
    rows_of = {person: [row for _, row in group] for person, group in groupby(named, key=itemgetter(0))}

    # People with a single photo can be looked for in a gallery or stand in it, never both: they train.
    candidates = _shuffled([person for person, rows in rows_of.items() if len(rows) > 1], seed)
    if assigned is not None:
        candidates = [person for use in ("val", "test") for person in candidates if assigned[person] == use]
        val_identities = sum(assigned[person] == "val" for person in candidates)
        test_identities = len(candidates) - val_identities
    num_val = _count(val_identities, len(rows_of), "val_identities")
    num_test = _count(test_identities, len(rows_of), "test_identities")
    if num_val + num_test > len(candidates):
        raise ValueError(
            f"val_identities={val_identities} and test_identities={test_identities} ask for {num_val} + {num_test} "
            f"people with two photos or more; the data set has {len(candidates)} such people: ask for fewer"
        )
    val = sorted(candidates[:num_val])
    test = sorted(candidates[num_val : num_val + num_test])
    rest = rows_of.keys() - set(val) - set(test)
    train = sorted(person for person in rest if assigned is None or assigned[person] == "train")
    if not train:
        raise ValueError(
            f"val_identities={val_identities} and test_identities={test_identities} leave nobody to train on, "
            f"for the data set has {len(rows_of)} people: ask for fewer"
        )

    use: dict[str, list[int]] = {"train": [], "known": [], "val": [], "test": [], "gallery": []}
    use["train"] += [row for row, person in enumerate(people) if person is None]
    names = [*train, *val, *test]
    identity = np.full(len(people), -1, dtype=np.int64)
    for number, person in enumerate(names):
        rows = rows_of[person]
        identity[rows] = number
        ranked = [rows[i] for i in _ranks([photos[row] for row in rows], seed)]
        if number >= len(train):
            use["gallery"].append(ranked[0])
            use["val" if number < len(train) + num_val else "test"] += ranked[1:]
        elif held_out_photos and len(ranked) >= 2 * held_out_photos:
            use["gallery"].append(ranked[0])
            use["known"] += ranked[1:held_out_photos]
            use["train"] += ranked[held_out_photos:]
        else:
            use["train"] += ranked
    use["known test"], use["known val"] = use["known"][::2], use["known"][1::2]
    rows_for = {key: np.array(sorted(rows), dtype=np.int64) for key, rows in use.items()}
    return FaceSplit(
        identity_names=names,
        num_train=len(train),
        identity=identity,
        train=rows_for["train"],
        known={"val": rows_for["known val"], "test": rows_for["known test"]},
        unseen={"val": rows_for["val"], "test": rows_for["test"]},
        gallery=rows_for["gallery"],
    )


def split_photos(photos: Sequence[str], *, val_share: float, test_share: float, seed: int) -> FaceSplit:
    """Split photos of which nobody knows whom they show.

    Args:
        photos: a unique name for each of N photos.
        val_share: of the photos, to validate on.
        test_share: of the photos, to test on.
        seed: another seed, another split.
    """
    drawn = [int.from_bytes(_digest(name, seed)[:6]) / 2**48 for name in photos]
    places = np.array(drawn, np.float64)  # from 0 to below 1
    test = places < test_share
    val = ~test & (places < test_share + val_share)
    nobody = np.empty(0, np.int64)
    return FaceSplit(
        identity_names=[],
        num_train=0,
        identity=np.full(len(photos), -1, np.int64),
        train=np.flatnonzero(~test & ~val),
        known={"val": nobody, "test": nobody},
        unseen={"val": np.flatnonzero(val), "test": np.flatnonzero(test)},
        gallery=nobody,
    )


def _count(amount: int | float, total: int, option: str) -> int:
    """Turn a count or a share of `total` into a count; a share above zero gives one at least."""
    if amount < 0 or (isinstance(amount, float) and amount >= 1):
        raise ValueError(f"{option} must be a count of people or a share from 0 to below 1, found {amount}")
    return amount if isinstance(amount, int) else max(round(amount * total), int(amount > 0))


def _ranks(names: Sequence[str], seed: int) -> list[int]:
    """Positions of `names` in the order of their hashes with the seed."""
    digests = [_digest(name, seed) for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


def _digest(name: str, seed: int) -> bytes:
    """The hash of a name, which may be that of a file and no UTF-8."""
    return sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    return [names[i] for i in _ranks(names, seed)]
