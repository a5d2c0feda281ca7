"""The paired pipeline as OpenCLIP calls it: rows, passes, coverage, continuing, bad input."""

import io
import itertools
import tarfile
from collections import Counter

import open_clip
import pytest
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from open_clip_triplet.data import get_paired_dataset
from open_clip_triplet.data.group import HostGroup
from open_clip_triplet.data.pipeline import UserStage
from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.shards import write_sizes
from paired_shards import SIZE, arguments, jpeg, method, numbers, tokenize, write_shards

TRANSFORM = open_clip.image_transform(SIZE, is_train=True)


def dataset(args, loss="clip", **options):
    return get_paired_dataset(args, TRANSFORM, True, tokenizer=tokenize, method=method(loss), **options)


def epoch_of(info, batches=None):
    """The batches of the next epoch, or of a stretch of so many."""
    info.dataloader.stretch = info.dataloader.num_batches if batches is None else batches
    return list(info.dataloader)


def counted(info):
    """Everything counted so far, over all passes."""
    counts = info.dataloader.state.counts
    return sum((counts.totals(pass_index) for pass_index in counts.passes()), Counter())


def state_of(info):
    return info.dataloader.gather().export(info.dataloader.pieces.plan)


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
def test_every_sample_is_seen_once_a_pass_whatever_the_ranks_and_workers(tmp_path, workers):
    spec = write_shards(tmp_path, [5, 1, 17, 2, 0, 9, 3])  # 37 samples: 3 global batches of 12, one left over
    found = []
    for rank in range(3):
        info = dataset(arguments(spec, workers=workers, world_size=3, rank=rank, data_streams=6))
        batches = epoch_of(info)
        assert len(batches) == info.dataloader.num_batches == 3
        found += seen(batches)
    assert len(set(found)) == len(found) == 36


LAYOUTS = [(1, 0), (1, 1), (1, 4), (2, 2), (4, 2)]


def global_batches(spec, ranks, workers, *, batches, saved=None, **options):
    """For each step the sorted (number, crop) of the whole global batch of 16, and the state after them."""
    options = {"data_streams": 8, "image_decoder": "fast", "seed": 5, **options}
    steps, told = [[] for _ in range(batches)], []
    for rank in range(ranks):
        args = arguments(
            spec, workers=workers, world_size=ranks, rank=rank, batch_size=options.pop("batch", 16) // ranks,
            **options,
        )
        info = dataset(args, "triplet", saved=saved)
        for step, (images, texts) in enumerate(epoch_of(info, batches)):
            rows = zip(numbers(texts)[::2], images[::2].flatten(1).sum(1).tolist())
            steps[step] += rows
        told.append(state_of(info))
    whole = {**told[0], "counts": [entry for state in told for entry in state["counts"]]}
    own = 8 // ranks
    whole["positions"] = [told[s // own]["positions"][s % own] for s in range(8)] if ranks > 1 else (
        told[0]["positions"]
    )
    return [sorted(step) for step in steps], whole


@pytest.mark.parametrize("changes", [{}, {3: {"jpg": b"no"}, 17: {"txt": ""}}], ids=["sound", "damaged"])
def test_batches_do_not_depend_on_ranks_and_workers(tmp_path, changes):
    """Two and a half passes: the same samples and crops in every global batch, and the same state after them."""
    spec = write_shards(tmp_path, [9, 14, 0, 1, 40], changes=changes)
    first, *others = (global_batches(spec, *layout, batches=10) for layout in LAYOUTS)
    for steps, state in others:
        assert steps == first[0]
        assert state["positions"] == first[1]["positions"]


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("sizes", [True, False])
def test_another_layout_continues_at_the_next_unseen_sample(tmp_path, resampled, sizes):
    spec = write_shards(
        tmp_path, [9, 14, 7, 11, 6, 5, 8, 13], changes={3: {"jpg": b"no"}, 17: {"txt": ""}}, sizes=sizes
    )
    options = {"dataset_resampled": resampled, "train_num_samples": 64}
    whole, end = global_batches(spec, 1, 0, batches=13, **options)
    for first, ranks, workers in ((1, 4, 0), (4, 1, 2), (9, 8, 0)):
        before, state = global_batches(spec, ranks, workers, batches=first, **options)
        after, last = global_batches(spec, 2, 0, batches=13 - first, saved=state, **options)
        assert before + after == whole
        assert last["positions"] == end["positions"]


def test_accumulation_takes_the_same_global_batches(tmp_path):
    spec = write_shards(tmp_path, [40, 31])
    (first, *_), _ = global_batches(spec, 1, 2, batches=1)
    halves, _ = global_batches(spec, 1, 2, batches=2, batch=8, accum_freq=2)
    assert sorted(halves[0] + halves[1]) == first


def test_streams_that_do_not_divide_the_batch_all_have_their_turn(tmp_path):
    info = dataset(arguments(write_shards(tmp_path, [40, 44]), batch_size=5, data_streams=7, workers=3))
    found = seen(epoch_of(info))
    assert len(found) == 80 and len(set(found)) >= 80 - 7
    drawn = [position.drawn for position in info.dataloader.state.positions if position.pass_index == 0]
    assert max(drawn) - min(drawn) <= 1


def test_an_epoch_is_a_stretch_and_the_next_goes_on(tmp_path, caplog):
    caplog.set_level("INFO")
    info = dataset(arguments(write_shards(tmp_path, [10, 14]), train_num_samples=16, workers=2))
    first, second = epoch_of(info), epoch_of(info)
    assert len(first) == len(second) == 4
    both = Counter(seen(first + second))
    assert len(both) == 24 and sum(both.values()) == 32
    info.dataloader.report()
    assert "Data, pass 0: 24 of 24 samples seen." in caplog.text
    assert "Data, pass 1 so far: 8 of 24 samples seen." in caplog.text


def test_passes_have_orders_of_their_own(tmp_path):
    info = dataset(arguments(write_shards(tmp_path, [24])))
    first, second = seen(epoch_of(info)), seen(epoch_of(info))
    assert sorted(first) == sorted(second) and first != second


def test_same_configuration_gives_the_same_batches(tmp_path):
    spec = write_shards(tmp_path, [9, 8, 7])
    first, again = (epoch_of(dataset(arguments(spec, workers=2))) for _ in range(2))
    other = epoch_of(dataset(arguments(spec, workers=2, seed=1)))
    assert seen(first) == seen(again) != seen(other)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again))


def test_caption_sampling_is_random_by_pass_and_keeps_the_caption_of_the_negative_image(tmp_path):
    args = arguments(write_shards(tmp_path, [40]), caption_sampling="random", batch_size=40)
    info, same = dataset(args, "triplet"), dataset(args, "triplet")
    passes = [numbers(epoch_of(one)[0][1]) for one in (same, info, info)]
    assert passes[0] == passes[1]
    choices = [{n % 1000: n for n in one[::2]} for one in passes[1:]]
    assert choices[0] != choices[1]
    assert {n // 1000 for n in passes[0][::2]} == {0, 5}
    assert {n // 1000 for n in passes[0][1::2]} == {1}
    negatives = numbers(epoch_of(dataset(args, "negclip"))[0][1])[1::2]
    assert {n // 1000 for n in negatives} == {1, 2}


def test_continuing_does_not_open_shards_that_lie_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("open_clip_triplet.data.shuffle_samples", lambda streams, mean: 4)
    spec = write_shards(tmp_path, [8] * 6)
    info = dataset(arguments(spec))
    before = seen(epoch_of(info, 10))
    state = state_of(info)
    rest = seen(epoch_of(info, 2))
    gone = {n // 8 for n in before} - {n // 8 for n in rest}
    assert len(gone) >= 3
    for shard in gone:
        (tmp_path / f"{shard:05d}.tar").rename(tmp_path / f"{shard:05d}.gone")
    info = dataset(arguments(spec), saved=state)
    assert seen(epoch_of(info, 2)) == rest and counted(info)["damaged shard"] == 0


def test_streams_that_the_ranks_cannot_share_are_refused_with_what_can(tmp_path):
    spec = write_shards(tmp_path, [40])
    with pytest.raises(UsageError, match="--data-streams 8 cannot be shared out to 3.* 1 or 2 or 4 or 8 processes"):
        dataset(arguments(spec, world_size=3, data_streams=8))
    state = state_of(dataset(arguments(spec, data_streams=8)))
    with pytest.raises(UsageError, match="the checkpoint's --data-streams 8 cannot be shared out to 3"):
        dataset(arguments(spec, world_size=3), saved=state)


def test_workers_that_do_not_divide_the_streams_are_lowered(tmp_path, caplog):
    caplog.set_level("INFO")
    info = dataset(arguments(write_shards(tmp_path, [40]), workers=5, data_streams=8))
    assert "--workers 5: 4 are used, which share out 8 data streams evenly" in caplog.text
    assert sorted(seen(epoch_of(info))) == list(range(40))


def test_unusable_samples_are_counted_and_the_next_ones_take_their_place(tmp_path, caplog):
    caplog.set_level("INFO")
    changes = {
        2: {"jpg": b"not an image"},
        5: {"jpg": jpeg(5)[:-200]},
        9: {"txt": "  "},
        11: {"neg.txt": None},
        13: {"txt": b"\xff\xfe"},
    }
    info = dataset(arguments(write_shards(tmp_path, [10, 11], changes=changes), workers=2), "negclip")
    batches = epoch_of(info, 8)
    assert all(len(texts) == 8 for _, texts in batches)
    found = Counter(n for n in seen(batches) if n < 1000)
    assert set(found) == set(range(21)) - set(changes)
    info.dataloader.report()
    assert (
        "Data, pass 0: 16 of 21 samples seen, corrupt image 2, empty caption 1, missing member 1, "
        "unreadable caption 1." in caplog.text
    )


def test_truncated_shard_loses_what_lies_behind_and_no_half_sample_appears(tmp_path):
    spec = write_shards(tmp_path, [8, 8])
    whole = (tmp_path / "00001.tar").read_bytes()
    with tarfile.open(tmp_path / "00001.tar") as tar:
        cut = next(m for m in tar if m.name == "000012.neg.jpg").offset_data + 100
    (tmp_path / "00001.tar").write_bytes(whole[:cut])
    info = dataset(arguments(spec), "clip")
    assert set(seen(epoch_of(info, 3))) == set(range(12))
    epoch_of(info, 1)  # into the next pass
    totals = info.dataloader.state.counts.totals(0)
    assert (totals["seen"], totals["damaged shard"]) == (12, 4)


def test_shard_cut_between_members_does_not_pass_for_whole(tmp_path):
    spec = write_shards(tmp_path, [4])
    with tarfile.open(tmp_path / "00000.tar") as tar:
        cut = next(m for m in tar if m.name == "000003.txt").offset
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:cut])
    info = dataset(arguments(spec, batch_size=4))
    assert set(seen(epoch_of(info))) == {0, 1, 2}
    assert info.dataloader.state.counts.totals(0)["damaged shard"] == 1


def test_sizes_that_are_wrong_are_counted(tmp_path, caplog):
    spec = write_shards(tmp_path, [6, 6])
    write_sizes(tmp_path, {"00000.tar": 8, "00001.tar": 4})
    info = dataset(arguments(spec, batch_size=1))
    assert set(seen(epoch_of(info, 11))) == set(range(10))
    totals = info.dataloader.state.counts.totals(0)
    assert (totals["seen"], totals["shard shorter than sizes.json"]) == (10, 2)
    assert "00001.tar: skipped 2 samples that are not in sizes.json, in pass 0" in caplog.text


def test_links_in_a_shard_are_skipped(tmp_path):
    spec = write_shards(tmp_path, [4])
    with tarfile.open(tmp_path / "00000.tar", "a") as tar:
        link = tarfile.TarInfo("000009.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert sorted(seen(epoch_of(dataset(arguments(spec))))) == [0, 1, 2, 3]


def test_nothing_usable_is_an_error_not_a_loop(tmp_path):
    spec = write_shards(tmp_path, [8, 8], changes={n: {"jpg": b"no"} for n in range(16)})
    with pytest.raises(Exception, match="none of the samples of a whole data stream can be used.*corrupt image"):
        epoch_of(dataset(arguments(spec)))


def test_training_stops_early_where_too_much_is_bad_and_goes_on_below(tmp_path):
    spec = write_shards(tmp_path, [200, 200], changes={n: {"jpg": b"no"} for n in range(400) if n % 5 < 4})
    info = dataset(arguments(spec))
    with pytest.raises(ShardError, match=r"\d+% of the training data is bad, more than --max-bad-fraction 0.5: pass 0"):
        epoch_of(info)
    assert counted(info)["seen"] < 40
    assert len(epoch_of(dataset(arguments(spec, max_bad_fraction=0.9)), 20)) == 20


@pytest.mark.parametrize("workers", [0, 4])
def test_a_shard_that_is_a_quarter_of_the_data_may_be_bad(tmp_path, workers, caplog):
    """Some streams find their whole slice bad, and go on with their next."""
    spec = write_shards(tmp_path, [16] * 4)
    (tmp_path / "00002.tar").write_bytes(b"")
    info = dataset(arguments(spec, workers=workers, data_streams=8, batch_size=8))
    found = Counter(seen(epoch_of(info, 30)))
    assert set(found) == set(range(64)) - set(range(32, 48))
    info.dataloader.report()
    totals = info.dataloader.state.counts.totals(4)
    for pass_index in info.dataloader.state.counts.passes()[:2]:
        assert "of 64" in info.dataloader.state.counts.line(pass_index, total=64, whole=True)
    assert totals["damaged shard"] <= 16
    lines = [r.message for r in caplog.records if "00002.tar" in r.message and "for pass 0" in r.message]
    assert len(lines) <= 1


def clean(samples):
    """The caption cleaner of the docs: no line breaks, and no captions that are a file name."""
    for sample in samples:
        if sample["text"].endswith(b"7"):
            continue
        sample["text"] = b"9" + sample["text"]
        yield sample


def test_processes_that_see_different_data_are_told_so(tmp_path, monkeypatch):
    """As where the shards lie on disks of their own, and one has no sizes.json."""
    told = []
    monkeypatch.setattr(HostGroup, "gather", lambda self, value: told.append(value) or told)
    spec = write_shards(tmp_path, [8, 8])
    dataset(arguments(spec, train_num_samples=16))
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(ShardError, match="see different training data"):
        dataset(arguments(spec, train_num_samples=16))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_of_the_users(tmp_path, workers, caplog):
    caplog.set_level("INFO")
    args = arguments(write_shards(tmp_path, [20, 20]), data_stage=["test_data:clean"], workers=workers)
    info = dataset(args)
    found = seen(epoch_of(info, 10))
    assert set(found) == {int(f"9{n}") for n in range(40) if n % 10 != 7}
    info.dataloader.report()
    assert "36 of 40 samples seen, left out by a data stage 4" in caplog.text


def test_a_stage_is_one_line_in_the_list(tmp_path):
    pieces = dataset(arguments(write_shards(tmp_path, [8]))).dataloader.pieces
    stages = pieces.pipeline(0)
    stages.insert(3, UserStage(clean))
    pieces = itertools.islice(wds.DataPipeline(*stages), 6)  # three passes, without the 7
    assert {n for piece in pieces for n in numbers(piece.texts)} == {int(f"9{n}") for n in range(7)}


def test_a_stage_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="--data-stage nowhere:f.*Give module:function"):
        dataset(arguments(write_shards(tmp_path, [8]), data_stage=["nowhere:f"]))


    with pytest.raises(UsageError, match="--data-stage test_data: give module:function"):
        dataset(arguments(write_shards(tmp_path, [8]), data_stage=["test_data"]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stage_that_leaves_out_everything_is_an_error(tmp_path, workers):
    args = arguments(write_shards(tmp_path, [8]), data_stage=["test_data:nothing"], workers=workers)
    with pytest.raises(ShardError, match="^the data stage test_data:nothing has left out every sample of .* passes$"):
        epoch_of(dataset(args))


def no_stage(samples):
    """It forgets to return."""
    list(range(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stage_that_gives_no_samples_is_an_error_of_one_line(tmp_path, workers):
    args = arguments(write_shards(tmp_path, [8]), data_stage=["test_data:no_stage"], workers=workers)
    with pytest.raises(UsageError, match="^the data stage test_data:no_stage gave NoneType, not an iterator.*s$"):
        epoch_of(dataset(args))


def first_five(samples):
    yield from itertools.islice(samples, 5)


def made_anew(samples):
    yield from ({"image": sample["image"], "text": sample["text"]} for sample in samples)


@pytest.mark.parametrize(
    ("stage", "message"), [("first_five", "ended, and its samples never do"), ("made_anew", r"make one as {\*\*sample")]
)
def test_a_stage_that_loses_the_stream_is_an_error_of_one_line(tmp_path, stage, message):
    args = arguments(write_shards(tmp_path, [8]), data_stage=[f"test_data:{stage}"])
    with pytest.raises(UsageError, match=f"^the data stage test_data:{stage} .*{message}"):
        epoch_of(dataset(args))


def as_text(samples):
    for sample in samples:
        yield {**sample, "text": "9" + sample["text"].decode()}


def test_a_stage_may_give_text_instead_of_bytes(tmp_path):
    args = arguments(write_shards(tmp_path, [8]), data_stage=["test_data:as_text"])
    assert set(seen(epoch_of(dataset(args)))) == {int(f"9{n}") for n in range(8)}


def test_a_stage_that_looks_ahead_keeps_counts_and_positions(tmp_path, caplog):
    """It holds four samples at a time; others are missing, and one pass ends while it holds some."""
    caplog.set_level("INFO")
    changes = {n: {"txt": None} for n in (3, 4, 11)}
    args = arguments(write_shards(tmp_path, [10, 8], changes=changes), batch_size=1, data_stage=["test_data:in_fours"])
    info = dataset(args)
    whole = seen(epoch_of(info, 45))
    info.dataloader.report()
    for pass_index in (0, 1):
        assert f"pass {pass_index}: 15 of 18 samples seen, missing member 3." in caplog.text
    assert Counter(whole) == Counter([n for n in range(18) if n not in (3, 4, 11)] * 3)
    for steps in range(1, 40, 5):
        first = dataset(args)
        begun = seen(epoch_of(first, steps))
        rest = seen(epoch_of(dataset(args, saved=state_of(first)), 45 - steps))
        assert begun + rest == whole


def in_fours(samples):
    while held := list(itertools.islice(samples, 4)):
        yield from held


def test_bad_data_is_found_out_in_epochs_shorter_than_a_check(tmp_path, monkeypatch):
    monkeypatch.setattr("open_clip_triplet.data.loader.CHECKS_PER_PASS", 5)
    changes = {n: {"jpg": b"no"} for n in range(60) if n % 4}
    info = dataset(arguments(write_shards(tmp_path, [30, 30], changes=changes), batch_size=1, train_num_samples=2))
    with pytest.raises(ShardError, match="of the training data is bad"):
        for _ in range(15):
            epoch_of(info)


def nothing(samples):
    return (sample for sample in samples if False)


def test_openclips_member_flags_are_followed(tmp_path):
    """--image-key, --text-key, --json-text-key with its weights, --max-image-pixels (OpenCLIP 4.x)."""
    changes = {n: {"caption": str(n + 100), "big.jpg": jpeg(9, (400, 400))} for n in range(8)}
    for n in range(8):
        changes[n]["json"] = {"short": str(n + 200), "long": str(n + 300) if n else " "}
    spec = write_shards(tmp_path, [8], changes=changes)

    def captions(**flags):
        return sorted(seen(epoch_of(dataset(arguments(spec, **flags)))))

    assert captions(text_key="caption;txt", image_key="jpg;png;jpeg;webp") == list(range(100, 108))
    assert captions(json_text_key="long;short") == [200, *range(301, 308)]
    assert captions(json_text_key="long;short", json_text_key_probs=[0.0, 1.0]) == list(range(200, 208))
    for decoder in ("pil", "fast"):
        flags = {"image_key": "big.jpg", "image_decoder": decoder}
        with pytest.raises(ShardError, match="image too large"):
            captions(max_image_pixels=100_000, **flags)
        assert captions(max_image_pixels=160_000, **flags) == list(range(8))


@pytest.mark.parametrize("spelling", ["", "/*.tar", "/0000?.tar"])
def test_a_folder_or_pattern_stands_for_its_shards(tmp_path, spelling):
    write_shards(tmp_path, [4, 4])
    assert sorted(seen(epoch_of(dataset(arguments(f"{tmp_path}{spelling}"))))) == list(range(8))


def test_members_that_are_not_adjacent_are_told(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for suffix in ("jpg", "txt"):
            for n in range(4):
                info = tarfile.TarInfo(f"{n}.{suffix}")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"1"))
    write_sizes(tmp_path, {"00000.tar": 4})
    with pytest.raises(ShardError, match=r"members of a sample are not adjacent.*sort the archive"):
        dataset(arguments(f"{tmp_path}/00000.tar"))


def test_later_samples_without_negatives_are_found(tmp_path, caplog):
    spec = write_shards(tmp_path, [40], changes={n: {"neg.jpg": None} for n in range(10, 40)})
    with pytest.raises(ShardError, match=r"reads neg.jpg, which 30 of the 40 samples looked at"):
        dataset(arguments(spec), "triplet")
    (tmp_path / "few").mkdir()
    few = write_shards(tmp_path / "few", [40], changes={n: {"neg.jpg": None} for n in range(30, 40)})
    dataset(arguments(few), "triplet")
    assert "10 of the 40 samples" in caplog.text and "dropped, and counted" in caplog.text


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
    spec = write_shards(tmp_path, [4, 4, 4], changes={n: {"neg.txt": None} for n in (8, 9, 10)})
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


def test_a_pass_that_lost_much_is_warned_of(tmp_path, caplog):
    spec = write_shards(tmp_path, [40], changes={n: {"jpg": b"no"} for n in range(3)})
    info = dataset(arguments(spec))
    epoch_of(info)
    info.dataloader.report()
    assert "8% of the samples were dropped, most of them for: corrupt image" in caplog.text


@pytest.mark.parametrize(("units", "used_again"), [(1, ""), (2, ", captions used again 7")])
def test_samples_without_units_are_counted_as_dropped(units, used_again, tmp_path, caplog):
    caplog.set_level("INFO")
    changes = {n: {"json": {"units": [{"text": "1", "neg_text": "2"}] * (n != 3)}} for n in range(8)}
    info = dataset(arguments(write_shards(tmp_path, [8], changes=changes), batch_size=1, units=units))
    epoch_of(info)
    info.dataloader.report()
    assert f"Data, pass 0: 7 of 8 samples seen, no units 1{used_again}." in caplog.text


def test_without_sizes(tmp_path):
    spec = write_shards(tmp_path, [6, 6], sizes=False)
    with pytest.raises(ShardError, match="no sizes.json beside .*00000.tar.*--train-num-samples"):
        dataset(arguments(spec))
    with pytest.raises(UsageError, match="--data-streams 3: there is data for 2 streams"):
        dataset(arguments(spec, data_streams=3, train_num_samples=12))
    info = dataset(arguments(spec, workers=3, train_num_samples=16))
    found = Counter(seen(epoch_of(info)))
    assert sum(found.values()) == 16 and set(found) == set(range(12)) and max(found.values()) == 2


def test_the_shard_that_sizes_json_lacks_is_named(tmp_path):
    spec = write_shards(tmp_path, [6, 6])
    write_sizes(tmp_path, {"00000.tar": 6})
    with pytest.raises(ShardError, match="sizes.json lacks .*00001.tar"):
        dataset(arguments(spec))


def test_more_training_samples_than_there_are_start_the_next_pass(tmp_path):
    spec = write_shards(tmp_path, [5, 5])
    found = Counter(seen(epoch_of(dataset(arguments(spec, train_num_samples=20, workers=2)))))
    assert set(found.values()) == {2} and len(found) == 10


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
    with pytest.raises(UsageError, match="factors 1::x: could not convert"):
        dataset(arguments(spec, dataset_resampled=True, train_data_upsampling_factors="1::x"))
    with pytest.raises(UsageError, match="3 factors for 2 sources"):
        dataset(arguments(spec, dataset_resampled=True, train_data_upsampling_factors="1::2::3"))
    with pytest.raises(UsageError, match="needs --dataset-resampled"):
        dataset(arguments(spec, train_data_upsampling_factors="1::2"))


def test_spawned_workers_can_run_the_pipeline(tmp_path):
    info = dataset(arguments(write_shards(tmp_path, [6, 6]), workers=1, data_stage=["test_data:clean"]))
    loader = info.dataloader
    loader._workers = DataLoader(
        loader.pieces, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert len(epoch_of(info)) == 3 and counted(info)["seen"] == 12
