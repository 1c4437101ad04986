"""Batches are a function of seed, position and rank."""

import numpy as np
import pytest

from data_modules.samplers import (
    EvaluationBatches,
    SamePersonPartners,
    TrainingBatches,
    draw_other_people,
    hash_counters,
)


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
    ranks = [TrainingBatches(rows, 4, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = TrainingBatches(rows, 4 * world_size, seed=1)
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
    batches = TrainingBatches(rows, 4, seed=0)
    seen = {int(row) for position in range(10 * len(batches)) for row in batches.draw(position).rows}
    assert seen == set(range(11))


def test_any_position_can_be_drawn_first() -> None:
    forwards = [draw.rows.tolist() for draw in TrainingBatches(np.arange(30), 4, seed=5)]
    batches = TrainingBatches(np.arange(30), 4, seed=5)
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
        TrainingBatches(np.arange(7), 4, seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"2 photo.* cannot be shared by 3 processes"):
        EvaluationBatches(np.arange(2), None, 4, world_size=3)
