"""Which photos make which batch.

Batch n of a run is a function of (seed, n, rank, world size); chance comes from hashing
counters, not from generators that are advanced, so it matters neither who draws nor in which order: a run that goes on
from a checkpoint, or loads with more workers, sees what it would have seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from data_modules.splits import Rows

# What a hash is for: two purposes never share their random numbers.
_ORDER, _PARTNER, _OTHER_PERSON, SAMPLE_AUGMENTATION, BATCH_AUGMENTATION = range(5)


class Draw(NamedTuple):
    """The rows of one batch, and what seeds its augmentation."""

    epoch: int
    rows: Rows
    partners: Rows | None = None


def hash_counters(*counters: int | Rows) -> NDArray[np.uint64]:
    """Hash integers, or arrays of them that broadcast, to uniform uint64: SplitMix64's finaliser, chained.

    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.)
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            value = np.asarray(counter % 2**64 if isinstance(counter, int) else counter).astype(np.uint64)
            state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


class SamePersonPartners:
    """Draws, for photos in training, another training photo of the same person.

    Args:
        rows: the training rows.
        identity: (N,) person of every row of the data set, -1 unknown.
    """

    def __init__(self, rows: Rows, identity: Rows) -> None:
        person = np.where(identity[rows] < 0, -1 - np.arange(len(rows)), identity[rows])  # each unknown: a person alone
        order = np.argsort(person, kind="stable")
        self._by_person = rows[order]
        _, first, group, count = np.unique(person[order], return_index=True, return_inverse=True, return_counts=True)
        self._place, self._first, self._count = np.zeros((3, len(identity)), np.int64)  # by row
        self._place[self._by_person] = np.arange(len(rows))
        self._first[self._by_person] = first[group]
        self._count[self._by_person] = count[group]

    def draw(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """A partner for each of `rows`, uniform over the person's other photos; the row itself if there is none."""
        first, count = self._first[rows], self._count[rows]
        step = 1 + _modulo(hash_counters(seed, _PARTNER, epoch, rows), np.maximum(count - 1, 1))
        return self._by_person[first + (self._place[rows] - first + step) % count]


def draw_other_people(rows: Rows, identity: Rows, pool: Rows, amount: int, seed: int) -> tuple[Rows, Rows]:
    """Pair photos with photos of other people, for evaluation.

    A photo's partners lie evenly apart, from a random start, in the pool sorted by person: they show as many people as
    can be.

    Args:
        rows: (n,) the photos to pair.
        identity: (N,) person of every row of the data set.
        pool: rows that partners come from.
        amount: partners a photo, all different; fewer where the pool has fewer photos of other people.
        seed: of the draw.

    Returns:
        rows and partners, each (m,), m <= n * amount; the pairs of one photo stand together.
    """
    pool = pool[np.argsort(identity[pool], kind="stable")]
    begin = np.searchsorted(identity[pool], identity[rows], side="left")  # the person's own photos in the pool ...
    end = np.searchsorted(identity[pool], identity[rows], side="right")  # ... end here, where those of others start
    others = len(pool) - (end - begin)
    drawn = np.minimum(amount, others)

    rows, begin, end, others = (np.repeat(array, drawn) for array in (rows, begin, end, others))
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    start = _modulo(hash_counters(seed, _OTHER_PERSON, rows), others)
    step = others // np.repeat(drawn, drawn)
    return rows, pool[(end + (start + nth * step) % others) % max(len(pool), 1)]


def _modulo(hashes: NDArray[np.uint64], bound: Rows) -> Rows:
    return (hashes % bound.astype(np.uint64)).astype(np.int64)


class TrainingBatches(Sampler[Draw]):
    """An endless run of shuffled batches, cut into epochs.

    Each epoch visits every photo at most once over all ranks; the photos that do not fill a last batch for every rank
    are left out of it (others in each epoch). The batches of W ranks at one position are together the batch that a
    single process of W times the batch size would see. Iterating yields one epoch's number of batches from `position`.

    Args:
        rows: the training rows.
        batch_size: photos a batch and rank.
        seed: of the order.
        rank: this process, of `world_size`.
        world_size: processes that share the epoch.
        partners: what draws partners; None for none.

    Raises:
        ValueError: when the photos do not fill one batch.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        partners: SamePersonPartners | None = None,
    ) -> None:
        if len(rows) < batch_size * world_size:
            raise ValueError(
                f"{len(rows)} training photos do not fill one batch of batch_size={batch_size} in {world_size} "
                f"process(es): lower batch_size to {len(rows) // world_size} or less, or add photos"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.partners = partners
        self.position = 0
        self._shuffled: tuple[int, Rows] = (-1, rows)  # the epoch at hand and its order

    def __len__(self) -> int:
        return len(self.rows) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        for position in range(self.position, self.position + len(self)):
            yield self.draw(position)

    def draw(self, position: int) -> Draw:
        """The batch at a position, counted from the start of the run."""
        epoch, batch = divmod(position, len(self))
        start = (batch * self.world_size + self.rank) * self.batch_size
        rows = self._order(epoch)[start : start + self.batch_size]
        return Draw(epoch, rows, None if self.partners is None else self.partners.draw(rows, self.seed, epoch))

    def _order(self, epoch: int) -> Rows:
        if self._shuffled[0] != epoch:
            self._shuffled = (
                epoch,
                self.rows[np.argsort(hash_counters(self.seed, _ORDER, epoch, self.rows), kind="stable")],
            )
        return self._shuffled[1]


class EvaluationBatches(Sampler[Draw]):
    """Batches in a fixed order, each photo or pair exactly once over all ranks.

    Every rank has the same number of batches, for ranks that ran different numbers would wait for each other for ever.
    To that end batches differ in size by one at most, instead of a small last one.

    Args:
        rows: (n,) the photos.
        partners: (n,) their partners, or None.
        batch_size: photos a batch and rank, at most.
        rank: this process, of `world_size`.
        world_size: processes that share the photos.

    Raises:
        ValueError: when there are photos, but fewer than processes.
    """

    def __init__(self, rows: Rows, partners: Rows | None, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if 0 < len(rows) < world_size:
            raise ValueError(f"{len(rows)} photo(s) to evaluate cannot be shared by {world_size} processes: use fewer")
        parts = -(-len(rows) // (batch_size * world_size)) * world_size
        chunks = np.array_split(np.arange(len(rows)), parts) if parts else []
        self._draws = [
            Draw(0, rows[chunk], None if partners is None else partners[chunk]) for chunk in chunks[rank::world_size]
        ]

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._draws)
