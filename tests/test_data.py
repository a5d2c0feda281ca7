"""The paired pipeline as OpenCLIP calls it: rows, epochs, coverage, resume, bad input."""

import io
import tarfile
from collections import Counter

import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from open_clip_triplet.data import get_paired_dataset
from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.shards import write_sizes
from paired_shards import SIZE, arguments, jpeg, method, numbers, tokenize, write_shards

TRANSFORM = open_clip.image_transform(SIZE, is_train=True)


def dataset(args, loss="clip", **options):
    return get_paired_dataset(args, TRANSFORM, True, tokenizer=tokenize, method=method(loss), **options)


def epoch_of(info, epoch=0, first_batch=0):
    """The batches of one epoch."""
    info.set_epoch(epoch)
    if first_batch:
        info.dataloader.first_batch = first_batch
    return list(info.dataloader)


def seen(batches):
    return [number for _, texts in batches for number in numbers(texts)]


def brightness(images):
    """Grey levels 0 to 255 of plain images, with OpenCLIP's normalisation undone."""
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return ((images * std + mean) * 255).mean((1, 2, 3)).round().int().tolist()


def buffer_of_noise():
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "loss, image_rows, text_rows", [("clip", 1, 1), ("negclip", 1, 2), ("negimage", 2, 1)]
)
def test_rows_per_sample_follow_the_method(tmp_path, loss, image_rows, text_rows):
    info = dataset(arguments(write_shards(tmp_path, [8])), loss)
    images, texts = next(iter(info.dataloader))
    assert images.shape == (4 * image_rows, 3, SIZE, SIZE)
    assert texts.shape == (4 * text_rows, 2)
    assert info.dataloader.num_batches == 2
    assert info.dataloader.num_samples == 8 * image_rows


def test_rows_of_a_sample_lie_side_by_side(tmp_path):
    info = dataset(arguments(write_shards(tmp_path, [8]), neg_captions=2), "triplet")
    for images, texts in info.dataloader:
        positives = numbers(texts)[::3]
        assert numbers(texts)[1::3] == [n + 1000 for n in positives]
        assert numbers(texts)[2::3] == [n + 2000 for n in positives]
        assert brightness(images)[::2] == pytest.approx(positives, abs=2)
        assert brightness(images)[1::2] == pytest.approx([255 - n for n in positives], abs=2)


def test_batches_are_dicts_for_openclip_4(tmp_path):
    batch = next(iter(dataset(arguments(write_shards(tmp_path, [4])), as_dict=True).dataloader))
    assert set(batch) == {"image", "text"}


def test_released_member_names_are_read(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for n in range(4):
            members = {"image": jpeg(n), "caption": b"%d" % n, "neg_image": jpeg(9), "neg_caption": b"9"}
            for suffix, data in members.items():
                path = tmp_path / "member"
                path.write_bytes(data)
                tar.add(path, f"{n:04d}.{suffix}")
    write_sizes(tmp_path, {"00000.tar": 4})
    ((_, texts),) = epoch_of(dataset(arguments(f"{tmp_path}/<00000..00000>.tar"), "triplet"))
    assert sorted(numbers(texts)[::2]) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_sample_is_seen_once_whatever_the_ranks_and_workers(tmp_path, workers, caplog):
    spec = write_shards(tmp_path, [5, 1, 17, 2, 9, 3])  # 37 samples: 3 global batches of 12, one left over
    caplog.set_level("INFO")
    by_epoch = []
    for epoch in range(2):
        found = []
        for rank in range(3):
            info = dataset(arguments(spec, workers=workers, world_size=3, rank=rank))
            batches = epoch_of(info, epoch)
            assert len(batches) == info.dataloader.num_batches == 3
            found += seen(batches)
        assert len(set(found)) == len(found) == 36
        by_epoch.append(found)
    assert by_epoch[0] != by_epoch[1]
    assert "12 of 37 samples seen once, 1 in none of its batches" in caplog.text  # no process group


def test_same_configuration_gives_the_same_batches(tmp_path):
    spec = write_shards(tmp_path, [9, 8, 7])
    first, again = (epoch_of(dataset(arguments(spec, workers=2)), 1) for _ in range(2))
    other = epoch_of(dataset(arguments(spec, workers=2, seed=1)), 1)
    assert seen(first) == seen(again) != seen(other)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again))


def test_caption_sampling_is_random_by_epoch_and_keeps_the_caption_of_the_negative_image(tmp_path):
    args = arguments(write_shards(tmp_path, [40]), caption_sampling="random", batch_size=40)
    info = dataset(args, "triplet")
    epochs = [numbers(epoch_of(info, epoch)[0][1]) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1]
    choices = [{n % 1000: n for n in epoch[::2]} for epoch in epochs[1:]]
    assert choices[0] != choices[1]
    assert {n // 1000 for n in epochs[0][::2]} == {0, 5}
    assert {n // 1000 for n in epochs[0][1::2]} == {1}
    negatives = numbers(epoch_of(dataset(args, "negclip"))[0][1])[1::2]
    assert {n // 1000 for n in negatives} == {1, 2}


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("resampled", [False, True])
def test_resume_in_the_middle_of_an_epoch_gives_the_batches_that_were_left(tmp_path, workers, resampled):
    spec = write_shards(tmp_path, [9, 14, 7, 11], changes={3: {"jpg": b"no"}, 17: {"txt": ""}})
    args = arguments(spec, workers=workers, dataset_resampled=resampled)
    whole = epoch_of(dataset(args), 1)
    info = dataset(args)
    for first in (1, 4, 7):
        rest = epoch_of(info, 1, first_batch=first)
        assert [numbers(t) for _, t in rest] == [numbers(t) for _, t in whole[first:]]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole[first:]))
    assert seen(epoch_of(info, 1)) == seen(whole), "first_batch holds for one epoch"


def test_resume_does_not_open_shards_that_lie_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("open_clip_triplet.data._shuffle_samples", lambda plan: 4)
    spec = write_shards(tmp_path, [8] * 6)
    whole = epoch_of(dataset(arguments(spec)))
    for shard in {n // 8 for n in seen(whole)[:40]} - {n // 8 for n in seen(whole)[40:]}:
        (tmp_path / f"{shard:05d}.tar").rename(tmp_path / f"{shard:05d}.gone")
    assert len(list(tmp_path.glob("*.gone"))) >= 3
    (tmp_path / "00000.tar").exists() or (tmp_path / "00000.gone").rename(tmp_path / "00000.tar")
    info = dataset(arguments(spec))
    assert seen(epoch_of(info, first_batch=10)) == seen(whole)[40:]
    assert not any(info.dataloader.report()[name] for name in ("damaged shard", "repeated"))


def test_an_epoch_left_early_is_reported_as_such(tmp_path, caplog):
    caplog.set_level("INFO")
    loader = dataset(arguments(write_shards(tmp_path, [12]))).dataloader
    batches = iter(loader)
    next(batches)
    loader.finish_epoch()
    loader.finish_epoch()
    batches.close()
    assert caplog.text.count("Data of epoch") == 1
    assert "Data of epoch 0, stopped after 1 batches" in caplog.text and "4 of 12 samples" in caplog.text
    assert loader.report()["seen"] == 4


def test_only_the_first_rank_reports(tmp_path, caplog):
    caplog.set_level("INFO")
    epoch_of(dataset(arguments(write_shards(tmp_path, [12]), world_size=2, rank=1)))
    assert "Data of epoch" not in caplog.text


def test_unusable_samples_are_counted_and_replaced(tmp_path, caplog):
    caplog.set_level("INFO")
    changes = {
        2: {"jpg": b"not an image"},
        5: {"jpg": jpeg(5)[:-200]},
        9: {"txt": "  "},
        11: {"neg.txt": None},
        13: {"txt": b"\xff\xfe"},
    }
    info = dataset(arguments(write_shards(tmp_path, [10, 11], changes=changes), workers=2), "negclip")
    batches = epoch_of(info)
    assert len(batches) == 5 and all(len(texts) == 8 for _, texts in batches)
    good = set(range(21)) - set(changes)
    assert set(n for n in seen(batches) if n < 1000) <= good
    report = info.dataloader.report()
    dropped = sum(
        report[name] for name in ("corrupt image", "empty caption", "unreadable caption", "missing member")
    )
    assert report["seen"] + dropped == 20, "all but the one left over"
    assert report["repeated"] == dropped
    assert f"{dropped} dropped" in caplog.text


def test_truncated_shard_loses_what_lies_behind_and_no_half_sample_appears(tmp_path):
    spec = write_shards(tmp_path, [8, 8])
    whole = (tmp_path / "00001.tar").read_bytes()
    with tarfile.open(tmp_path / "00001.tar") as tar:
        cut = next(m for m in tar if m.name == "000012.neg.jpg").offset_data + 100
    (tmp_path / "00001.tar").write_bytes(whole[:cut])
    info = dataset(arguments(spec), "clip")
    found = Counter(seen(epoch_of(info)))
    assert set(found) == set(range(12))
    report = info.dataloader.report()
    assert (report["seen"], report["damaged shard"], report["repeated"]) == (12, 4, 4)


def test_shard_cut_between_members_does_not_pass_for_whole(tmp_path):
    spec = write_shards(tmp_path, [4])
    with tarfile.open(tmp_path / "00000.tar") as tar:
        cut = next(m for m in tar if m.name == "000003.txt").offset
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:cut])
    info = dataset(arguments(spec, batch_size=4))
    assert set(seen(epoch_of(info))) == {0, 1, 2}
    assert info.dataloader.report()["damaged shard"] == 1


def test_sizes_that_are_wrong_are_counted(tmp_path):
    spec = write_shards(tmp_path, [6, 6])
    write_sizes(tmp_path, {"00000.tar": 8, "00001.tar": 4})
    info = dataset(arguments(spec))
    found = seen(epoch_of(info))
    assert set(found) == set(range(10))
    report = info.dataloader.report()
    assert (report["seen"], report["shard shorter than sizes.json"], report["not in sizes.json"]) == (
        10,
        2,
        2,
    )


def test_links_in_a_shard_are_passed_over(tmp_path):
    spec = write_shards(tmp_path, [4])
    with tarfile.open(tmp_path / "00000.tar", "a") as tar:
        link = tarfile.TarInfo("000009.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert sorted(seen(epoch_of(dataset(arguments(spec))))) == [0, 1, 2, 3]


def test_nothing_readable_is_an_error_not_a_loop(tmp_path):
    spec = write_shards(tmp_path, [8], changes={n: {"jpg": b"no"} for n in range(8)})
    with pytest.raises(ShardError, match="none of .* samples in a row can be used"):
        epoch_of(dataset(arguments(spec)))


def test_missing_negatives_are_named_before_training(tmp_path):
    spec = write_shards(tmp_path, [4], changes={n: {"neg.jpg": None} for n in range(4)})
    with pytest.raises(
        ShardError, match=r"--loss triplet reads neg.jpg.*00000.tar.*has: jpg, json, neg.txt, txt"
    ):
        dataset(arguments(spec), "triplet")
    dataset(arguments(spec), "negclip")


def test_an_augmentation_that_fast_cannot_do_is_a_usage_error_and_auto_takes_pil(tmp_path, caplog):
    caplog.set_level("INFO")
    args = arguments(write_shards(tmp_path, [4]), image_decoder="fast")
    timm = open_clip.image_transform(SIZE, is_train=True, aug_cfg={"use_timm": True})
    with pytest.raises(UsageError, match="use_timm"):
        get_paired_dataset(args, timm, True, tokenizer=tokenize, method=method("clip"))
    args.image_decoder = "auto"
    dataset(args)
    assert "Image decoder: pil (the model on a CPU" in caplog.text


def test_fast_batches_are_normalised_floats_near_those_of_pil(tmp_path):
    spec = write_shards(tmp_path, [8])
    pil, fast = (epoch_of(dataset(arguments(spec, image_decoder=d), "triplet")) for d in ("pil", "fast"))
    for (a, texts), (b, same_texts) in zip(pil, fast):
        assert torch.equal(texts, same_texts) and a.shape == b.shape and a.dtype == b.dtype
        assert b.is_contiguous(memory_format=torch.channels_last) and (a - b).abs().max() < 0.02


def test_every_source_is_checked(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    good = write_shards(tmp_path / "a", [4])
    bad = write_shards(tmp_path / "b", [4], changes={n: {"neg.txt": None} for n in range(4)})
    with pytest.raises(ShardError, match="b/00000.tar"):
        dataset(arguments(f"{good}::{bad}"), "negclip")


def test_every_local_shard_is_checked(tmp_path):
    spec = write_shards(tmp_path, [4, 4, 4], changes={8: {"neg.txt": None}})
    with pytest.raises(ShardError, match="00002.tar"):
        dataset(arguments(spec), "negclip")
    dataset(arguments(spec), "negimage")


def test_too_few_negative_captions_are_named_before_training(tmp_path):
    only = {"json": {"neg_captions": ["1"]}}
    spec = write_shards(tmp_path, [4, 4], changes={n: only for n in (0, 4, 5, 6, 7)})
    with pytest.raises(ShardError, match=r"--neg-captions 3: .*00000.tar have at most 2 different"):
        dataset(arguments(spec, neg_captions=3), "negclip")
    (tmp_path / "00000.tar").rename(tmp_path / "00001.tar")
    dataset(arguments(f"{tmp_path}/00001.tar", neg_captions=2), "negclip")


def test_an_epoch_that_lost_much_is_warned_of(tmp_path, caplog):
    spec = write_shards(tmp_path, [40], changes={n: {"jpg": b"no"} for n in range(3)})
    epoch_of(dataset(arguments(spec)))
    assert "8% of the samples were dropped, most of them for: corrupt image" in caplog.text


def test_without_sizes(tmp_path):
    spec = write_shards(tmp_path, [6, 6], sizes=False)
    with pytest.raises(ShardError, match="--train-num-samples"):
        dataset(arguments(spec))
    with pytest.raises(ShardError, match="2 shards for 3 data workers.*Use fewer --workers"):
        dataset(arguments(spec, workers=3, train_num_samples=12))
    info = dataset(arguments(spec, workers=2, train_num_samples=16))
    batches = epoch_of(info, 1)
    assert len(batches) == 4 and set(seen(batches)) <= set(range(12))
    rest = epoch_of(info, 1, first_batch=3)
    assert [numbers(t) for _, t in rest] == [numbers(t) for _, t in batches[3:]]


def test_more_training_samples_than_there_are_start_the_next_pass(tmp_path, caplog):
    spec = write_shards(tmp_path, [5, 5])
    caplog.set_level("INFO")
    found = Counter(seen(epoch_of(dataset(arguments(spec, train_num_samples=20, workers=2)))))
    assert set(found.values()) == {2} and len(found) == 10
    assert "20 samples read, in 2 passes over 10." in caplog.text


def test_no_sample_is_twice_in_a_batch_unless_there_is_no_other(tmp_path):
    spec = write_shards(tmp_path, [13], changes={n: {"jpg": b"no"} for n in (1, 2, 6, 9)})
    for seed in range(6):
        for batch in epoch_of(dataset(arguments(spec, seed=seed))):
            assert len(set(seen([batch]))) == 4
    ((_, texts),) = epoch_of(dataset(arguments(spec, batch_size=13)))
    assert len(texts) == 13 and len(set(numbers(texts))) == 9


def test_samples_of_one_key_in_two_shards_are_augmented_apart(tmp_path):
    same = {"__key__": "0", "jpg": buffer_of_noise()}
    spec = write_shards(tmp_path, [1, 1], changes={0: same, 1: same})
    ((images, _),) = epoch_of(dataset(arguments(spec, batch_size=2)))
    assert not torch.equal(*images)


def test_fewer_samples_than_a_global_batch(tmp_path):
    with pytest.raises(
        ShardError, match=r"7 training samples are fewer than one global batch of 16 \(--batch-size 4"
    ):
        dataset(arguments(write_shards(tmp_path, [7]), world_size=2, accum_freq=2))


def test_upsampling_weights_the_sources(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    spec = f"{write_shards(tmp_path / 'a', [4])}::{write_shards(tmp_path / 'b', [8])}"
    info = dataset(arguments(spec, dataset_resampled=True, train_data_upsampling_factors="1::0"))
    assert set(seen(epoch_of(info))) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="3 factors for 2 sources"):
        dataset(arguments(spec, dataset_resampled=True, train_data_upsampling_factors="1::2::3"))
    with pytest.raises(ValueError, match="needs --dataset-resampled"):
        dataset(arguments(spec, train_data_upsampling_factors="1::2"))


def test_spawned_workers_can_run_the_pipeline(tmp_path):
    info = dataset(arguments(write_shards(tmp_path, [6, 6]), workers=1))
    inner = info.dataloader.dataloader
    info.dataloader.dataloader = DataLoader(
        inner.dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert sorted(seen(epoch_of(info))) == list(range(12))
    assert info.dataloader.report()["seen"] == 12
