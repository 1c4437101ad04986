"""Which photos make which batch.

Batch n of a run is a function of (seed, n, rank, world size); chance comes from hashing
counters, not from generators that are advanced, so it matters neither who draws nor in which order: a run that goes on
from a checkpoint, or loads with more workers, sees what it would have seen.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from data_modules.splits import Rows

log = logging.getLogger(__name__)

# What a hash is for: two purposes never share their random numbers.
_ORDER, _PARTNER, _OTHER_PERSON, SAMPLE_AUGMENTATION, BATCH_AUGMENTATION, _LAP, _PEOPLE, _MIXED = range(8)

EpochOrder = Callable[[int], Rows]
"""The training rows of an epoch, by its number; as many in every epoch. Batches are cut from them one after another."""


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


class TrainingPhotos(NamedTuple):
    """What a sampler makes an epoch of.

    Attributes:
        rows: the training rows.
        identity: (N,) person of every row of the data set, -1 unknown.
        labels: (N, ...) what else is known of every row, by its key in a batch.
        source: the data module's name, for messages.
    """

    rows: Rows
    identity: Rows
    labels: Mapping[str, Tensor]
    source: str


class TrainingSampler(ABC):
    """Says which photos make an epoch, and in which order: a batch is a slice of it."""

    @abstractmethod
    def order(self, photos: TrainingPhotos, batch_size: int, world_size: int, seed: int) -> EpochOrder:
        """The order of every epoch.

        The slices of all ranks at one position stand together. So the order can see to what is in each of them.

        Args:
            photos: what there is to train on.
            batch_size: photos a batch and rank.
            world_size: processes that share an epoch.
            seed: of the order.

        Raises:
            ValueError: batches cannot be made as the sampler promises.
        """


class Shuffled(TrainingSampler):
    """Every training photo once an epoch, in any order. The photos of a last batch that is not full are left out."""

    def order(self, photos: TrainingPhotos, batch_size: int, world_size: int, seed: int) -> EpochOrder:
        """All rows, by their hashes."""
        rows = photos.rows
        return lambda epoch: rows[np.argsort(hash_counters(seed, _ORDER, epoch, rows), kind="stable")]


class IdentityBalanced(TrainingSampler):
    """Batches of B / K people with K different photos each.

    An epoch visits every person once; those who do not fill a last batch for every rank are left out of it (others in
    each epoch). A person's photos take turns from epoch to epoch until all have come up, and then do so in another
    order. Left out altogether are people with fewer than K training photos, and unknown ones.

    Args:
        photos_per_person: K; the batch size must be a multiple of it.
    """

    def __init__(self, photos_per_person: int = 4) -> None:
        if photos_per_person < 1:
            raise ValueError(f"photos_per_person is {photos_per_person}, expected 1 or more")
        self.photos_per_person = photos_per_person

    def order(self, photos: TrainingPhotos, batch_size: int, world_size: int, seed: int) -> EpochOrder:
        """People by their hashes, the photos of each together."""
        each = self.photos_per_person
        if batch_size % each:
            raise ValueError(
                f"IdentityBalanced: batch_size={batch_size} is no multiple of photos_per_person={each}, as it must be "
                "for a batch to hold as many photos of every person"
            )
        person = photos.identity[photos.rows]
        number, size = np.unique(person[person >= 0], return_counts=True)
        enough = number[size >= each]
        if len(enough) * each < batch_size * world_size:
            fits = len(enough) // world_size * each
            raise ValueError(
                f"IdentityBalanced: {len(enough)} of the {len(number)} people that {photos.source} trains on have "
                f"photos_per_person={each} training photos or more, expected {batch_size // each * world_size} for one "
                f"batch of batch_size={batch_size} in {world_size} process(es): lower "
                f"{f'batch_size to {fits} or less, or ' if fits else ''}photos_per_person, or add people"
            )
        used = np.isin(person, enough)
        if len(enough) < len(number) or not used.all():
            rank_zero_info(
                f"IdentityBalanced: batches show {len(enough):,} people. Left out are "
                f"{len(number) - len(enough):,} with fewer than {each} training photos "
                f"({np.count_nonzero(~used & (person >= 0)):,} photos), and {np.count_nonzero(person < 0):,} photos of "
                "unknown people."
            )
        laps = _Laps(photos.rows[used], np.searchsorted(enough, person[used]), each, seed)
        visited = len(enough) * each // (batch_size * world_size) * (batch_size * world_size) // each

        def order(epoch: int) -> Rows:
            people = np.argsort(hash_counters(seed, _PEOPLE, epoch, enough), kind="stable")[:visited]
            return laps.take(epoch)[people].ravel()  # (people, K) -> one row of photos

        return order


class UnlabelledShare(TrainingSampler):
    """Batches in which a stated share of the photos shows nobody who is known (Bao et al. 2018, section 3.3).

    An epoch visits every photo of known people once, but for those that do not fill a last batch. Photos of nobody take
    turns from epoch to epoch; where there are fewer than an epoch takes, each comes up as often or once more. Which of
    a batch's places they have is drawn.

    Args:
        share: of each batch, below 1, rounded to photos; 0 trains without photos of nobody (the paper's "w/o U").
    """

    def __init__(self, share: float = 0.25) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share is {share:g}, expected a share from 0 to below 1")
        self.share = share

    def order(self, photos: TrainingPhotos, batch_size: int, world_size: int, seed: int) -> EpochOrder:
        """Batch by batch, photos of known people and of nobody, mixed."""
        unlabelled = round(self.share * batch_size)
        if unlabelled == batch_size or (unlabelled == 0 and self.share > 0):
            raise ValueError(
                f"UnlabelledShare: a share of {self.share:g} of batch_size={batch_size} is {unlabelled} photos, "
                "expected some, and not all of them: set another share or a larger batch_size"
            )
        is_known = photos.identity[photos.rows] >= 0
        known, nobody = photos.rows[is_known], photos.rows[~is_known]
        batches = len(known) // ((batch_size - unlabelled) * world_size) * world_size
        if (unlabelled and not len(nobody)) or not batches:
            raise ValueError(
                f"UnlabelledShare: {photos.source} trains on {len(known)} photos of known people and on {len(nobody)} "
                f"of nobody, expected {(batch_size - unlabelled) * world_size} or more, and some: add photos, or take "
                "another sampler"
            )
        laps = _Laps(nobody, np.zeros(len(nobody), np.int64), batches * unlabelled, seed) if unlabelled else None
        rank_zero_info(
            f"UnlabelledShare: {unlabelled} of {batch_size} photos of a batch show nobody who is known. An epoch takes "
            f"{batches * (batch_size - unlabelled):,} of {len(known):,} photos of people, and {batches * unlabelled:,} "
            f"times one of the {len(nobody):,} of nobody."
        )

        def order(epoch: int) -> Rows:
            shuffled = known[np.argsort(hash_counters(seed, _ORDER, epoch, known), kind="stable")]
            labelled = shuffled[: batches * (batch_size - unlabelled)].reshape(batches, -1)
            if laps is None:
                return labelled.ravel()
            mixed = np.concatenate([labelled, laps.take(epoch).reshape(batches, -1)], axis=1)
            places = hash_counters(seed, _MIXED, epoch, np.arange(mixed.size).reshape(mixed.shape))
            return np.take_along_axis(mixed, np.argsort(places, axis=1, kind="stable"), axis=1).ravel()

        return order


class SexAgeBalanced(TrainingSampler):
    """Batches that hold both sexes and all ages equally, after Sanche, "Generating Faces using GANs" (section 4).

    A bin is a sex and one of some age ranges of equal width; the paper has 2 x 8. Every batch of every rank holds as
    many photos of each bin. An epoch has as many batches as the photos would fill: those of a small bin come up
    several times, all of them as often or once more, and those of a large one take turns from epoch to epoch until all
    have come up; none of a bin that is large enough comes up twice in an epoch. Photos of unknown sex or age, or
    outside the ages, are left out.

    Args:
        bins: age ranges; the batch size must be a multiple of twice as many, less the bins that are left empty.
        youngest: years, where the first range begins.
        oldest: years, where the last range ends; it belongs to it.
        skip_empty: whether to go without the bins that hold no photo, with a warning, or else to refuse.
    """

    def __init__(self, bins: int = 8, youngest: float = 10, oldest: float = 100, skip_empty: bool = True) -> None:
        if bins < 1:
            raise ValueError(f"bins is {bins}, expected 1 or more")
        if not youngest < oldest:
            raise ValueError(f"youngest is {youngest} and oldest is {oldest}, expected an age and a greater one")
        self.bins = bins
        self.youngest = youngest
        self.oldest = oldest
        self.skip_empty = skip_empty

    def order(self, photos: TrainingPhotos, batch_size: int, world_size: int, seed: int) -> EpochOrder:
        """One photo of every bin after another."""
        bins = self._bins(photos)
        inside = bins >= 0
        if not inside.any():
            raise ValueError(
                f"SexAgeBalanced: none of the {len(bins):,} training photos of {photos.source} is of known sex and of "
                f"an age from {self.youngest:g} to {self.oldest:g}: set youngest and oldest to other ages"
            )
        filled, group, size = np.unique(bins[inside], return_inverse=True, return_counts=True)
        empty = ", ".join(self._name(number) for number in range(2 * self.bins) if number not in filled)
        if empty and not self.skip_empty:
            raise ValueError(
                f"SexAgeBalanced: no training photo of {photos.source} is in the bins {empty}: set bins, youngest or "
                "oldest so that there are some in each, or skip_empty to go without them"
            )
        if batch_size % len(filled):
            raise ValueError(
                f"SexAgeBalanced: batch_size={batch_size} is no multiple of {len(filled)}, as it must be for a batch "
                f"to hold the bins equally: {', '.join(map(self._name, filled))}"
                f"{f' (no photo is in {empty})' if empty else ''}"
            )
        total = int(size.sum())
        each = total // (batch_size * world_size) * (batch_size * world_size) // len(filled)
        if each == 0:
            raise ValueError(
                f"SexAgeBalanced: {total} training photos of {photos.source} in {len(filled)} bins do not fill one "
                f"batch of batch_size={batch_size} in {world_size} process(es): lower batch_size to a smaller multiple "
                f"of {len(filled)}, or add photos"
            )
        if empty:
            log.warning("SexAgeBalanced: no training photo is in the bins %s: batches go without them", empty)
        least, most = np.argmin(size), np.argmax(size)
        rank_zero_info(
            f"SexAgeBalanced: {total:,} training photos are in {len(filled)} bins, from {size[least]:,} "
            f"({self._name(filled[least])}) to {size[most]:,} ({self._name(filled[most])}); an epoch takes {each:,} of "
            f"each. {np.count_nonzero(~inside):,} of unknown sex or age, or outside {self.youngest:g}-{self.oldest:g} "
            "years, are left out."
        )
        laps = _Laps(photos.rows[inside], group, each, seed)
        return lambda epoch: laps.take(epoch).T.ravel()  # (photos, bins) -> one row

    def _bins(self, photos: TrainingPhotos) -> Rows:
        """(n,) the bin of every training row: women's by age, then men's; -1 in none."""
        for key in ("sex", "age"):
            if key not in photos.labels:
                raise ValueError(
                    f"SexAgeBalanced needs the label '{key}', which {photos.source} does not give (it gives "
                    f"{', '.join(photos.labels) or 'none'}): take another sampler, or a data set with sex and age"
                )
        sex, age = (photos.labels[key].double().numpy()[photos.rows] for key in ("sex", "age"))
        known = (np.abs(sex) == 1) & (age >= self.youngest) & (age <= self.oldest)  # NaN is neither
        share = (np.where(known, age, self.youngest) - self.youngest) / (self.oldest - self.youngest)
        within = np.minimum((share * self.bins).astype(np.int64), self.bins - 1)
        return np.where(known, within + self.bins * (sex > 0), -1)

    def _name(self, number: int) -> str:
        sex, place = divmod(int(number), self.bins)
        width = (self.oldest - self.youngest) / self.bins
        low = self.youngest + place * width
        return f"{('female', 'male')[sex]} {low:g}-{low + width:g}"


class _Laps:
    """Takes as many photos of every group each epoch, going round the group in shuffled laps.

    Args:
        rows: (n,) the photos.
        group: (n,) which of G groups each is in; none is empty.
        amount: photos of a group an epoch. A group with fewer gives each as often, or once more.
        seed: of the laps.
    """

    def __init__(self, rows: Rows, group: Rows, amount: int, seed: int) -> None:
        size = np.bincount(group)
        repeats = -(-amount // size)  # in a lap, which is as long as an epoch takes at least
        self._length = size * repeats
        self._epochs = -(-size // amount)  # for a lap; the last takes what it lacks from the lap's begin: other photos
        self._first = np.cumsum(self._length) - self._length
        order = np.argsort(group, kind="stable")
        times = repeats[group[order]]
        self._rows, self._group = np.repeat(rows[order], times), np.repeat(group[order], times)
        self._repeat = np.arange(len(self._rows)) - np.repeat(np.cumsum(times) - times, times)
        self._amount = amount
        self._seed = seed

    def take(self, epoch: int) -> Rows:
        """The photos of an epoch, (G, amount)."""
        lap, nth = np.divmod(epoch, self._epochs)
        hashes = hash_counters(self._seed, _LAP, lap[self._group], self._repeat, self._rows)
        order = np.lexsort((hashes, self._repeat, self._group))
        place = (nth[:, None] * self._amount + np.arange(self._amount)) % self._length[:, None]
        return self._rows[order[self._first[:, None] + place]]


class TrainingBatches(Sampler[Draw]):
    """An endless run of batches, cut into epochs.

    What does not fill a last batch for every rank is left out of an epoch. The batches of W ranks at one position are
    together the batch that a single process of W times the batch size would see. Iterating yields one epoch's number of
    batches from `position`.

    Args:
        order: the rows of each epoch.
        batch_size: photos a batch and rank.
        seed: of the partners.
        rank: this process, of `world_size`.
        world_size: processes that share the epoch.
        partners: what draws partners; None for none.

    Raises:
        ValueError: when the photos do not fill one batch.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        partners: SamePersonPartners | None = None,
    ) -> None:
        self._epoch = (0, order(0))  # the epoch at hand and its rows
        self._length = len(self._epoch[1]) // (batch_size * world_size)
        if self._length == 0:
            photos = len(self._epoch[1])
            raise ValueError(
                f"{photos} training photos do not fill one batch of batch_size={batch_size} in {world_size} "
                f"process(es): lower batch_size to {photos // world_size} or less, hold fewer people "
                "and photos out, or add photos"
            )
        self.order = order
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.partners = partners
        self.position = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Draw]:
        for position in range(self.position, self.position + len(self)):
            yield self.draw(position)

    def draw(self, position: int) -> Draw:
        """The batch at a position, counted from the start of the run."""
        epoch, batch = divmod(position, len(self))
        start = (batch * self.world_size + self.rank) * self.batch_size
        rows = self._rows(epoch)[start : start + self.batch_size]
        return Draw(epoch, rows, None if self.partners is None else self.partners.draw(rows, self.seed, epoch))

    def _rows(self, epoch: int) -> Rows:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.order(epoch))
        return self._epoch[1]


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
