"""Batches travel in shared memory that is used again: never while a batch in it is still read."""

import time

import pytest
import torch
from torch.utils.data import DataLoader

from open_clip_triplet.data.buffers import MOST
from paired_shards import arguments, write_shards
from test_data import dataset, epoch_of


def loaders(folder, **options):
    """The same data set twice: with buffers used again, and with torch's own sharing."""
    spec = write_shards(folder, [16, 16])
    options = {"image_decoder": "fast", "batch_size": 2, "workers": 2} | options
    recycled, fresh = (dataset(arguments(spec, **options), "triplet") for _ in range(2))
    fresh.dataloader.dataloader.dataset.buffers.recycle = False
    return recycled, fresh


def same(batches, others):
    assert len(batches) == len(others) == 16
    for (images, texts), (other_images, other_texts) in zip(batches, others):
        assert torch.equal(images, other_images) and torch.equal(texts, other_texts)


def test_batches_kept_by_the_loop_stay_what_they_were(tmp_path):
    recycled, fresh = loaders(tmp_path)
    for epoch in range(2):
        same(epoch_of(recycled, epoch), epoch_of(fresh, epoch))


def test_few_buffers_serve_an_epoch_and_are_mapped_once(tmp_path):
    recycled, _ = loaders(tmp_path, workers=1)
    loader = recycled.dataloader
    places: dict[tuple, set] = {}
    for images, _, ticket in loader.dataloader:
        assert images.is_shared()
        places.setdefault(tuple(ticket), set()).add(images.data_ptr())
        loader.buffers.give_back(images, ticket)
        time.sleep(0.02)  # workers run ahead as far as they may
    assert len(places) <= 5  # torch's prefetch of 2, one being filled, one being read, one on its way back
    assert all(len(addresses) == 1 for addresses in places.values())
    assert len(set.union(*places.values())) == len(places)


def test_batches_that_are_never_given_back_are_torchs(tmp_path):
    recycled, fresh = loaders(tmp_path, workers=1, batch_size=1)
    kept = [(images.clone(), images, ticket) for images, _, ticket in recycled.dataloader.dataloader]
    assert len({ticket and tuple(ticket) for *_, ticket in kept}) == MOST + 1
    assert all(torch.equal(copy, images) for copy, images, _ in kept)


def test_spawned_workers_give_the_same_batches(tmp_path):
    """Workers of their own for each epoch, as a DataLoader without persistent workers has them."""
    recycled, fresh = loaders(tmp_path)
    inner = recycled.dataloader.dataloader
    recycled.dataloader.dataloader = DataLoader(
        inner.dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    for epoch in range(2):
        same(epoch_of(recycled, epoch), epoch_of(fresh, epoch))


def test_an_epoch_left_early_leaves_nothing_behind(tmp_path):
    recycled, fresh = loaders(tmp_path)
    batches = iter(recycled.dataloader)
    for _ in range(3):
        next(batches)
    del batches
    same(epoch_of(recycled, 1), epoch_of(fresh, 1))


def test_a_slow_reader_of_the_last_batch_is_not_overtaken(tmp_path):
    """The batch in hand is not given back before the next is asked for."""
    recycled, _ = loaders(tmp_path, workers=1)
    for images, _ in recycled.dataloader.from_workers():
        before = images.clone()
        time.sleep(0.05)
        assert torch.equal(images, before)


@pytest.mark.parametrize("options", [{"image_decoder": "pil"}, {"workers": 0}])
def test_what_the_loop_keeps_is_never_used_again(tmp_path, options):
    """pil's floats reach the loop as they are, and without workers nothing is shared."""
    recycled, fresh = loaders(tmp_path, **options)
    assert {ticket for *_, ticket in recycled.dataloader.dataloader} == {None}
    same(epoch_of(recycled), epoch_of(fresh))
