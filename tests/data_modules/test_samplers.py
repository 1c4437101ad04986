"""Batches are a function of seed, position and rank."""

import logging
import re

import numpy as np
import pytest
import torch

from data_modules.samplers import (
    EvaluationBatches,
    IdentityBalanced,
    SamePersonPartners,
    SexAgeBalanced,
    Shuffled,
    TrainingBatches,
    TrainingPhotos,
    TrainingSampler,
    UnlabelledShare,
    draw_other_people,
    hash_counters,
)
from data_modules.splits import Rows


def photos_of(rows: Rows, identity: Rows | None = None, **labels: Rows) -> TrainingPhotos:
    columns = {key: torch.tensor(column, dtype=torch.float32) for key, column in labels.items()}
    return TrainingPhotos(rows, np.full(rows.max() + 1, -1) if identity is None else identity, columns, "SomeFaces")


def shuffled(rows: Rows, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> TrainingBatches:
    order = Shuffled().order(photos_of(rows), batch_size, world_size, seed)
    return TrainingBatches(order, batch_size, seed, rank, world_size)


def drawn(
    sampler: TrainingSampler, photos: TrainingPhotos, batch_size: int, world_size: int, epochs: int, seed: int = 0
) -> Rows:
    """Rows (epochs, batches, ranks, batch size)."""
    order = sampler.order(photos, batch_size, world_size, seed)
    ranks = [TrainingBatches(order, batch_size, seed, rank, world_size) for rank in range(world_size)]
    every = np.stack([[[b.draw(n).rows for b in ranks] for n in range(epochs * len(ranks[0]))]])
    return every.reshape(epochs, len(ranks[0]), world_size, batch_size)


def test_hash_is_splitmix64() -> None:
    """The first outputs of the reference implementation, started at 0: its state grows by the golden gamma."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(hash_counters(step * gamma)) for step in range(3)] == outputs
    assert hash_counters(0, np.arange(4)).tolist() == [int(hash_counters(0, n)) for n in range(4)]
    assert int(hash_counters(-1)) == int(hash_counters(2**64 - 1))


def test_hashes_are_uniform_and_independent() -> None:
    counters = np.arange(4096)
    bits = np.unpackbits(hash_counters(3, 5, counters).view(np.uint8).reshape(4096, 8), axis=1)
    neighbours = np.unpackbits(hash_counters(3, 6, counters).view(np.uint8).reshape(4096, 8), axis=1)
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 64  # five standard deviations of a fair coin
    assert abs((bits ^ neighbours).mean(0) - 0.5).max() < 5 * 0.5 / 64


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch(world_size: int) -> None:
    rows = np.arange(100, 147)
    ranks = [shuffled(rows, 4, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = shuffled(rows, 4 * world_size, seed=1)
    epochs = []
    for epoch in range(2):
        for batches in ranks:
            batches.position = epoch * len(batches)
        seen = [[draw.rows for draw in batches] for batches in ranks]
        assert {len(draws) for draws in seen} == {47 // (4 * world_size)}
        flat = np.concatenate([rows for draws in seen for rows in draws])
        assert len(set(flat.tolist())) == len(flat)
        assert set(flat.tolist()) <= set(rows.tolist())
        # The ranks' batches are together the one that a single process of the joint batch size sees.
        for position, parts in enumerate(zip(*seen, strict=True)):
            joint = alone.draw(epoch * len(alone) + position).rows
            assert np.concatenate(parts).tolist() == joint.tolist()
        epochs.append(flat.tolist())
    assert epochs[0] != epochs[1]


def test_all_photos_come_up_in_time() -> None:
    rows = np.arange(11)
    batches = shuffled(rows, 4, seed=0)
    seen = {int(row) for position in range(10 * len(batches)) for row in batches.draw(position).rows}
    assert seen == set(range(11))


def test_the_shuffled_order_is_the_one_of_earlier_versions() -> None:
    """What the first release gave: a run that it began goes on with the photos that it would have had."""
    rows = np.arange(20, 31)
    partners = SamePersonPartners(rows, np.arange(40) // 4)
    order = Shuffled().order(photos_of(rows), 2, 2, 7)
    batches = TrainingBatches(order, 2, seed=7, rank=1, world_size=2, partners=partners)
    assert len(batches) == 2
    draws = [batches.draw(position) for position in range(5)]
    assert [draw.rows.tolist() for draw in draws] == [[22, 20], [28, 30], [24, 23], [26, 28], [28, 24]]
    assert [draw.partners.tolist() for draw in draws] == [[21, 23], [30, 28], [26, 20], [25, 29], [29, 27]]


def test_any_position_can_be_drawn_first() -> None:
    forwards = [draw.rows.tolist() for draw in shuffled(np.arange(30), 4, seed=5)]
    batches = shuffled(np.arange(30), 4, seed=5)
    assert [batches.draw(position).rows.tolist() for position in (6, 0, 3)] == [forwards[6], forwards[0], forwards[3]]
    batches.position = 4
    assert [draw.rows.tolist() for draw in batches][:3] == forwards[4:]
    assert [draw.epoch for draw in batches] == [0, 0, 0, 1, 1, 1, 1]


def test_partners_are_uniform_over_the_persons_other_photos() -> None:
    identity = np.array([7, 2, 7, -1, 2, 7, 5, 7, -1, 2])
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])  # row 9 is held out
    partners = SamePersonPartners(rows, identity)
    drawn = np.stack([partners.draw(rows, seed=0, epoch=epoch) for epoch in range(3000)])
    for place, others in enumerate([{2, 5, 7}, {4}, {0, 5, 7}, {3}, {1}, {0, 2, 7}, {6}, {0, 2, 5}, {8}]):
        found, counts = np.unique(drawn[:, place], return_counts=True)
        assert set(found.tolist()) == others
        expected = 3000 / len(others)
        assert ((counts - expected) ** 2 / expected).sum() < 14  # chi-squared of two degrees, p = 0.001


def test_partners_do_not_depend_on_who_else_is_in_the_batch() -> None:
    partners = SamePersonPartners(np.arange(40), np.arange(40) // 8)
    everyone = partners.draw(np.arange(40), 3, 9)
    assert partners.draw(np.array([31, 2]), 3, 9).tolist() == everyone[[31, 2]].tolist()


def test_other_people_are_as_many_as_can_be() -> None:
    identity = np.repeat(np.arange(10), 6)
    queries = np.arange(0, 60, 2)
    rows, partners = draw_other_people(queries, identity, queries, 4, seed=0)
    assert rows.tolist() == np.repeat(queries, 4).tolist()
    for query in queries:
        people = identity[partners[rows == query]]
        assert len(set(people.tolist())) == 4
        assert identity[query] not in people
    assert set(identity[partners].tolist()) == set(range(10))


def test_other_people_where_there_are_few() -> None:
    identity = np.array([0, 0, 1, 2])
    rows, partners = draw_other_people(np.array([0, 2]), identity, np.array([1, 2]), 3, seed=0)
    assert list(zip(rows.tolist(), partners.tolist(), strict=True)) == [(0, 2), (2, 1)]
    rows, partners = draw_other_people(np.array([0]), identity, np.array([1]), 3, seed=0)
    assert len(rows) == len(partners) == 0
    rows, partners = draw_other_people(np.array([], np.int64), identity, np.array([], np.int64), 3, seed=0)
    assert len(rows) == len(partners) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 3, 17, 48])
def test_evaluation_visits_each_pair_once(world_size: int, count: int) -> None:
    rows = np.arange(count) * 3
    ranks = [EvaluationBatches(rows, rows + 1, 8, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1, "ranks with different numbers of batches wait for ever"
    draws = [draw for batches in ranks for draw in batches]
    assert all(0 < len(draw.rows) <= 8 for draw in draws)
    assert sorted(row for draw in draws for row in draw.rows.tolist()) == rows.tolist()
    assert all(draw.partners.tolist() == (draw.rows + 1).tolist() for draw in draws)


def test_too_few_photos() -> None:
    with pytest.raises(ValueError, match=r"7 training photos .* batch_size=4 in 2 process.* to 3 or less"):
        shuffled(np.arange(7), 4, seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"2 photo.* cannot be shared by 3 processes"):
        EvaluationBatches(np.arange(2), None, 4, world_size=3)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, also by Lightning's logger, which may keep its messages to itself."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


class TestIdentityBalanced:
    SIZES = (3, 4, 4, 5, 7, 9, 2, 12, 4, 6)
    """Photos a person; the first and the seventh have too few."""

    @pytest.fixture
    def photos(self) -> TrainingPhotos:
        identity = np.repeat(np.arange(len(self.SIZES)), self.SIZES)
        identity = np.append(identity, [-1] * 5)[np.random.default_rng(0).permutation(sum(self.SIZES) + 5)]
        return photos_of(np.arange(len(identity)), identity)

    @pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 8), (1, 32), (2, 4), (2, 12), (3, 8)])
    def test_batches_hold_as_many_photos_of_everybody(
        self, photos: TrainingPhotos, world_size: int, batch_size: int
    ) -> None:
        rows = drawn(IdentityBalanced(4), photos, batch_size, world_size, epochs=60)
        assert rows.shape[1] == 8 * 4 // (batch_size * world_size)
        for batch in rows.reshape(-1, batch_size):
            people, count = np.unique(photos.identity[batch], return_counts=True)
            assert (len(people), set(count.tolist())) == (batch_size // 4, {4})
        for epoch in rows.reshape(60, -1):
            assert len(set(epoch.tolist())) == len(epoch)
            assert set(np.unique(photos.identity[epoch], return_counts=True)[1].tolist()) == {4}
        enough = [person for person, size in enumerate(self.SIZES) if size >= 4]
        assert set(rows.ravel().tolist()) == set(np.flatnonzero(np.isin(photos.identity, enough)).tolist())

    def test_photos_of_a_person_take_turns(self, photos: TrainingPhotos) -> None:
        rows = drawn(IdentityBalanced(4), photos, 32, 1, epochs=12).reshape(12, -1)  # everybody in every epoch
        for person, size in enumerate(self.SIZES):
            turns = -(-size // 4)
            for lap in range(0, 12, turns) if size >= 4 else ():
                seen = [set(epoch[photos.identity[epoch] == person].tolist()) for epoch in rows[lap : lap + turns]]
                assert len(set.union(*seen)) == size
        nine = [frozenset(epoch[photos.identity[epoch] == 5].tolist()) for epoch in rows]
        assert len(set(nine)) > 6, "laps must differ"

    def test_ranks_are_slices_of_one_batch(self, photos: TrainingPhotos) -> None:
        alone = drawn(IdentityBalanced(2), photos, 12, 1, epochs=3)
        assert drawn(IdentityBalanced(2), photos, 4, 3, epochs=3).reshape(alone.shape).tolist() == alone.tolist()
        assert drawn(IdentityBalanced(2), photos, 12, 1, epochs=3, seed=1).tolist() != alone.tolist()

    def test_who_is_left_out_is_told(self, photos: TrainingPhotos, told: pytest.LogCaptureFixture) -> None:
        IdentityBalanced(4).order(photos, 8, 1, 0)
        assert (
            "batches show 8 people. Left out are 2 with fewer than 4 training photos (5 photos), and 5 photos of"
            in (told.text)
        )

    def test_refusals(self, photos: TrainingPhotos) -> None:
        with pytest.raises(ValueError, match=r"batch_size=6 is no multiple of photos_per_person=4"):
            IdentityBalanced(4).order(photos, 6, 1, 0)
        few = (
            r"8 of the 10 people that SomeFaces trains on have photos_per_person=4 .*, expected 9 .*batch_size=12 in 3"
        )
        with pytest.raises(
            ValueError, match=few + r" process\(es\): lower batch_size to 8 or less, or photos_per_person"
        ):
            IdentityBalanced(4).order(photos, 12, 3, 0)
        with pytest.raises(ValueError, match=r"0 of the 10 people .*: lower photos_per_person, or add people"):
            IdentityBalanced(13).order(photos, 13, 1, 0)
        with pytest.raises(ValueError, match="photos_per_person is 0"):
            IdentityBalanced(0)


class TestSexAgeBalanced:
    @pytest.fixture
    def photos(self) -> TrainingPhotos:
        """1,000 photos, of which some are not for use; as in real sets, there are few of the old."""
        rng = np.random.default_rng(0)
        sex = rng.choice([-1, 1, np.nan], 1000, p=[0.6, 0.35, 0.05])
        age = rng.choice([np.nan, 9.9, 10, 100, 100.1, *range(11, 100)], 1000, p=[0.01] * 5 + [0.95 / 89] * 89)
        age[(age > 70) & (age < 90) & (rng.random(1000) < 0.9)] = 25
        return photos_of(np.arange(0, 1000, 2), sex=sex, age=age)

    @staticmethod
    def bins_of(photos: TrainingPhotos, bins: int = 8) -> Rows:
        """By the edges of the ranges, one after another."""
        sex, age = photos.labels["sex"].numpy(), photos.labels["age"].numpy()
        found = np.full(len(sex), -1)
        for number in range(bins):
            low, high = 10 + 90 / bins * number, 10 + 90 / bins * (number + 1)
            within = (age >= low) & ((age < high) | ((number == bins - 1) & (age == 100)))
            found[within & (sex == -1)] = number
            found[within & (sex == 1)] = number + bins
        return found

    @pytest.mark.parametrize(("world_size", "batch_size"), [(1, 16), (1, 64), (2, 16), (2, 48), (3, 32)])
    def test_every_batch_holds_the_bins_equally(self, photos: TrainingPhotos, world_size: int, batch_size: int) -> None:
        bins = self.bins_of(photos)
        used = photos.rows[bins[photos.rows] >= 0]
        size = np.bincount(bins[used], minlength=16)
        rows = drawn(SexAgeBalanced(), photos, batch_size, world_size, epochs=30)
        assert rows.shape[1] == len(used) // (batch_size * world_size)
        for batch in rows.reshape(-1, batch_size):
            assert np.bincount(bins[batch], minlength=16).tolist() == [batch_size // 16] * 16
        each = rows[0].size // 16
        assert size.min() < each // 2 < each < size.max(), "small and large bins, or this test shows little"
        for epoch in rows.reshape(30, -1):
            for number in range(16):
                counts = np.unique(epoch[bins[epoch] == number], return_counts=True)[1]
                assert counts.sum() == each
                assert len(counts) == min(each, size[number])
                assert counts.max() - counts.min() <= 1
        assert set(rows.ravel().tolist()) == set(used.tolist())

    def test_photos_of_a_large_bin_take_turns(self, photos: TrainingPhotos) -> None:
        bins = self.bins_of(photos)
        rows = drawn(SexAgeBalanced(), photos, 16, 1, epochs=12).reshape(12, -1)
        largest = np.bincount(bins[photos.rows][bins[photos.rows] >= 0]).argmax()
        of_bin = set(photos.rows[bins[photos.rows] == largest].tolist())
        turns = -(-len(of_bin) // (rows.shape[1] // 16))
        assert turns > 1
        for lap in range(0, 12 // turns * turns, turns):
            assert {row for row in rows[lap : lap + turns].ravel().tolist() if bins[row] == largest} == of_bin

    def test_ranks_are_slices_of_one_batch(self, photos: TrainingPhotos) -> None:
        alone = drawn(SexAgeBalanced(4), photos, 48, 1, epochs=3)
        assert drawn(SexAgeBalanced(4), photos, 16, 3, epochs=3).reshape(alone.shape).tolist() == alone.tolist()
        assert drawn(SexAgeBalanced(4), photos, 48, 1, epochs=3, seed=1).tolist() != alone.tolist()

    def test_photos_of_a_small_bin_come_in_another_order_each_time(self) -> None:
        photos = photos_of(np.arange(106), sex=[1] * 100 + [-1] * 6, age=[20] * 106)
        rows = drawn(SexAgeBalanced(1), photos, 2, 1, epochs=2).reshape(2, -1)
        laps = rows[rows >= 100].reshape(2, -1)[:, :48].reshape(16, 6)
        assert all(set(lap.tolist()) == set(range(100, 106)) for lap in laps)
        assert len(np.unique(laps, axis=0)) == 16

    def test_a_bin_of_one_photo(self) -> None:
        photos = photos_of(np.arange(20), sex=[1] * 19 + [-1], age=[20] * 20)
        rows = drawn(SexAgeBalanced(1), photos, 4, 1, epochs=2).reshape(2, -1)
        assert [(epoch == 19).sum() for epoch in rows] == [10, 10]

    def test_empty_bins(self, told: pytest.LogCaptureFixture) -> None:
        age = [12.0] * 30 + [30.0] * 30 + [np.nan, 105]
        photos = photos_of(np.arange(62), sex=[-1, 1] * 15 + [1] * 30 + [1, 1], age=age)
        rows = drawn(SexAgeBalanced(bins=2, oldest=50), photos, 6, 1, epochs=2)
        assert rows.shape[1] == 10
        assert "WARNING" in told.text
        assert "no training photo is in the bins female 30-50: batches go without them" in told.text
        assert "60 training photos are in 3 bins, from 15 (female 10-30) to 30 (male 30-50)" in told.text
        assert "2 of unknown sex or age, or outside 10-50 years, are left out" in told.text
        with pytest.raises(ValueError, match=r"no training photo of SomeFaces is in the bins female 30-50: set bins"):
            SexAgeBalanced(bins=2, oldest=50, skip_empty=False).order(photos, 6, 1, 0)
        names = re.escape("equally: female 10-30, male 10-30, male 30-50 (no photo is in female 30-50)")
        with pytest.raises(ValueError, match=rf"batch_size=4 is no multiple of 3, .* {names}"):
            SexAgeBalanced(bins=2, oldest=50).order(photos, 4, 1, 0)
        with pytest.raises(ValueError, match=r"do not fill one batch of batch_size=63 in 1 .* smaller multiple of 3"):
            SexAgeBalanced(bins=2, oldest=50).order(photos, 63, 1, 0)
        with pytest.raises(ValueError, match=r"none of the 62 .* of an age from 60 to 100: set youngest and oldest"):
            SexAgeBalanced(youngest=60).order(photos, 6, 1, 0)

    def test_missing_labels_and_odd_options(self, photos: TrainingPhotos) -> None:
        for key, given in (("age", "sex"), ("sex", "age")):
            labels = {given: photos.labels[given]}
            with pytest.raises(
                ValueError, match=rf"the label '{key}', which SomeFaces does not give \(it gives {given}"
            ):
                SexAgeBalanced().order(photos._replace(labels=labels), 16, 1, 0)
        with pytest.raises(ValueError, match="bins is 0"):
            SexAgeBalanced(0)
        with pytest.raises(ValueError, match="youngest is 40 and oldest is 40"):
            SexAgeBalanced(youngest=40, oldest=40)


class TestUnlabelledShare:
    @pytest.fixture
    def photos(self) -> TrainingPhotos:
        identity = np.where(np.arange(130) < 100, np.arange(130) % 7, -1)
        return photos_of(np.arange(130), identity)

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_every_batch_has_its_share(self, photos: TrainingPhotos, world_size: int) -> None:
        batches = drawn(UnlabelledShare(0.25), photos, 8, world_size, epochs=3)
        nobody = photos.identity[batches] < 0
        assert (nobody.sum(-1) == 2).all()
        places = nobody.reshape(-1, 8).mean(0)
        assert (places > 0.05).all()  # neighbours in a batch become pairs: no place is theirs
        assert (places < 0.55).all()
        for epoch in batches:
            known = epoch[photos.identity[epoch] >= 0]
            assert len(known) == len(set(known.tolist())) == 96  # 16 batches of 6
        counts = np.bincount(batches[nobody], minlength=130)[100:]
        assert counts.min() >= 2
        assert counts.max() <= 5  # 96 places for 30 photos in three epochs

    def test_a_share_of_nothing(self, photos: TrainingPhotos) -> None:
        batches = drawn(UnlabelledShare(0), photos, 8, 1, epochs=2)
        assert batches.shape[1] == 100 // 8
        assert (photos.identity[batches] >= 0).all()
        assert len(set(batches[0].ravel().tolist())) == batches[0].size

    def test_refusals(self, photos: TrainingPhotos) -> None:
        with pytest.raises(ValueError, match="share is 1"):
            UnlabelledShare(1)
        with pytest.raises(ValueError, match="is 0 photos"):
            UnlabelledShare(0.01).order(photos, 8, 1, 0)
        with pytest.raises(ValueError, match="on 100 photos of known people and on 0 of nobody"):
            UnlabelledShare().order(photos._replace(rows=np.arange(100)), 8, 1, 0)
