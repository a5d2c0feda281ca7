"""The stream alone, without files: dealing, passes, shuffling, continuing. Properties over random layouts."""

from collections import Counter
from itertools import islice
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_clip_triplet.data.state import StreamState, continued
from open_clip_triplet.data.stream import (
    SHUFFLE_BYTES_IN_ALL,
    Dealing,
    Position,
    ShuffleOrder,
    StreamPlan,
    shuffle_samples,
)

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(lambda sizes: sum(sizes) >= 8)


def plan(sizes, streams, **options):
    return StreamPlan(tuple(f"{n}.tar" for n in range(len(sizes))), tuple(sizes), streams, **options)


def samples(a_plan, pass_index, stream):
    return [(s.shard, i) for s in a_plan.slices(pass_index, stream) for i in range(s.first, s.last)]


@given(sizes=SIZES, streams=st.integers(1, 8), pass_index=st.integers(0, 5), seed=st.integers(0, 9))
def test_every_sample_is_in_one_slice_of_a_pass(sizes, streams, pass_index, seed):
    one = plan(sizes, streams, seed=seed)
    found = Counter(place for stream in range(streams) for place in samples(one, pass_index, stream))
    assert found == Counter((shard, i) for shard, size in enumerate(sizes) for i in range(size))
    lengths = [one.length(pass_index, stream) for stream in range(streams)]
    assert max(lengths) - min(lengths) <= 1


@given(batch=st.integers(1, 64), streams=st.integers(1, 48), pieces=st.integers(1, 4), step=st.integers(0, 99))
def test_shares_add_up_for_every_number_of_ranks_that_fits(batch, streams, pieces, step):
    dealing = Dealing(batch, streams, pieces)
    shares = [dealing.share(stream, step) for stream in range(streams)]
    assert sum(shares) == batch and max(shares) - min(shares) <= 1
    assert shares == [sum(dealing.piece(s, step, p) for p in range(pieces)) for s in range(streams)]
    for ranks in (n for n in range(1, gcd(batch, streams) + 1) if batch % n == streams % n == 0):
        own = streams // ranks
        assert {sum(shares[r * own : (r + 1) * own]) for r in range(ranks)} == {batch // ranks}


@given(batch=st.integers(1, 64), streams=st.integers(1, 48), steps=st.integers(0, 60))
def test_streams_advance_alike(batch, streams, steps):
    dealing = Dealing(batch, streams)
    taken = [sum(dealing.share(stream, step) for step in range(steps)) for stream in range(streams)]
    assert max(taken) - min(taken) <= 1


@given(length=st.integers(0, 200), buffer=st.integers(1, 60), data=st.data())
def test_a_shuffled_slice_continues_anywhere(length, buffer, data):
    whole = list(ShuffleOrder(length, buffer, "seed"))
    assert sorted(whole) == list(range(length))
    drawn = data.draw(st.integers(0, length))
    order = ShuffleOrder.at(Position(0, drawn), length, buffer, "seed")
    rest = frozenset(order.pending) | set(range(order.next_index, length))
    assert rest == set(whole[drawn:]) and list(order) == whole[drawn:]


def test_all_streams_together_hold_no_more_as_they_get_more():
    mean = 50_000
    held = [streams * shuffle_samples(streams, mean) * mean for streams in (1, 4, 8, 96, 1000)]
    assert held[0] < held[1] and max(held) <= SHUFFLE_BYTES_IN_ALL
    assert shuffle_samples(10**6, mean) == 1


@settings(max_examples=30)
@given(sizes=SIZES, streams=st.integers(1, 4))
def test_draws_with_replacement_follow_the_weights(sizes, streams):
    weights = tuple(float(n == 0) for n in range(len(sizes)))
    drawn = plan(sizes, streams, resampled=True, weights=weights)
    slices = [one for p in range(3) for stream in range(streams) for one in drawn.slices(p, stream)]
    assert {one.shard for one in slices} == {0}
    assert len({(one.draw) for one in drawn.slices(0, 0)}) == len(drawn.slices(0, 0))


def test_passes_and_seeds_have_orders_of_their_own():
    orders = [samples(plan([40] * 5, 2, seed=seed), p, 0) for seed in range(2) for p in range(2)]
    assert len(set(map(tuple, orders))) == 4


def test_a_state_goes_on_where_it_was_and_under_another_order_at_the_next_pass(caplog):
    one = plan([8, 8], 2, shuffle=5)
    state = StreamState([Position(3, 4), Position(2, 1)], step=7)
    state.counts.add(0, [(3, "seen", 4)])
    saved = state.export(one)
    moved = StreamPlan(("s3://b/0.tar", "s3://b/1.tar"), (8, 8), 2, shuffle=99)
    same, back = continued(moved, saved, epoch=5, log=True)
    assert same.shuffle == 5 and back.positions == state.positions and back.step == 7
    assert back.counts.export() == state.counts.export() and not caplog.text
    for other in (plan([8, 9], 2), plan([8, 8], 4), plan([8, 8], 2, seed=1), plan([8, 8], 2, resampled=True)):
        _, fresh = continued(other, saved, epoch=5, log=True)
        assert fresh.positions == [Position(4)] * other.streams
    assert "other shards or sizes" in caplog.text and "--data-streams (2 before, 4 now)" in caplog.text
    assert continued(one, None, epoch=5, log=True)[1].positions == [Position(5)] * 2


@pytest.mark.parametrize("streams", [1, 3])
def test_unknown_sizes_deal_whole_shards(streams):
    whole = StreamPlan(tuple("abcde"), None, streams)
    found = [s.url for stream in range(streams) for s in whole.slices(0, stream)]
    assert sorted(found) == list("abcde") and whole.length(0, 0) is None and whole.total is None


def test_an_order_of_unknown_length_continues_after_its_end_was_met():
    def draw(order, length):
        for place in order:
            if place < length:
                yield place
            elif order.length is None:
                order.length = length

    whole = list(draw(ShuffleOrder(None, 8, "s"), 30))
    assert sorted(whole) == list(range(30))
    order = ShuffleOrder(None, 8, "s")
    first = list(islice(draw(order, 30), 29))
    rest = ShuffleOrder.at(Position(0, order.drawn, order.length), None, 8, "s")
    assert sorted(first + list(draw(rest, 30))) == list(range(30))
