"""Filter by CLIP score, concept coverage."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import TINY_MODEL, picture, write_shards
from open_clip_triplet import make_shards
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples
from open_clip_triplet.tripletdata.backends.openclip import check_weights
from open_clip_triplet.tripletdata.checks.clip_scores import Scores
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.sample import Sample
from open_clip_triplet.tripletdata.run.task import Policy, ShardTask
from open_clip_triplet.tripletdata.stages import coverage
from open_clip_triplet.tripletdata.stages.concepts import Positions
from open_clip_triplet.tripletdata.stages.coverage import Captions, Vocabulary
from open_clip_triplet.tripletdata.stages.pack import Pack
from open_clip_triplet.tripletdata.stages.selection import Selection, select_top
from open_clip_triplet.tripletdata.stages.wordnet import Concepts, load_wordnet, words

scores = st.dictionaries(
    st.integers(0, 5), st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.25]), max_size=8), max_size=4
)


@settings(max_examples=200, deadline=None)
@given(scores, st.integers(0, 40))
def test_top_k_is_exact_and_ties_go_by_shard_order(scores, count):
    chosen = select_top(scores, count)
    kept = []
    for task in sorted(scores):
        keep = chosen.keeper(ShardTask(task, ("x",)))
        kept += [(task, n) for n, s in enumerate(scores[task]) if keep(scored(s))]
    ranked = sorted((-s, task, n) for task in scores for n, s in enumerate(scores[task]))
    assert kept == sorted((task, n) for _, task, n in ranked[:count])


def scored(mean: float) -> Sample:
    return Sample("k", "a", meta={"scores": {"mean": mean}})


def test_a_threshold_keeps_its_ties():
    keep = Selection(0.2).keeper(ShardTask(0, ("x",)))
    assert [keep(scored(s)) for s in (0.1, 0.2, 0.2, 0.3)] == [False, True, True, True]


def test_a_selection_is_made_anew_where_dropped_samples_are_asked_for_again(tmp_path):
    with ShardWriter(tmp_path / "in/00000.tar") as writer:
        for number, mean in enumerate((0.3, 0.2, 0.2, 0.1, 0.2)):
            image = b"no image" if number == 1 else picture(number)
            writer.write({"__key__": f"k{number}", "jpg": image, "txt": "a dog", "json": {"scores": {"mean": mean}}})

    def packed(selection, redo=None) -> list[str]:
        tasks = plan_tasks(str(tmp_path / "in"), output=tmp_path / "out", policy=Policy(redo=redo))
        stage = Pack(0, negatives=(), selection=selection)
        run_stage(stage, tasks, tmp_path / "out", Local(cpu=True), quiet=True, replace_settings=True)
        return kept(tmp_path / "out")

    assert packed(Selection(0.2, {0: 2})) == packed(Selection(0.2, {0: 2}), redo=()) == ["k0", "k2"]
    assert packed(Selection(0.3, {0: 1}), redo=()) == ["k0"]  # of other settings: nothing is settled
    assert packed(Positions(2, {0: frozenset({1, 4})})) == packed(Positions(2, {0: frozenset({1, 4})}), redo=())
    assert kept(tmp_path / "out") == ["k4"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny OpenCLIP model registered by name, with its weights in a file."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-filter.json").write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(folder / "tiny-filter.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-filter").state_dict(), folder / "weights.pt")
    return ["--clip", "tiny-filter", "--clip-pretrained", str(folder / "weights.pt"), "--clip-batch", "3"]


def test_filter_keeps_exactly_the_best_by_the_mean_of_both_pairs(clip, tmp_path, capfd):
    import io

    import open_clip
    import torch
    from PIL import Image

    shards = write_shards(tmp_path / "in", [5, 4])
    argv = ["filter", "--input", shards, *clip, "--quiet", "--output"]
    assert make_shards.main([*argv, str(tmp_path / "top"), "--top-k", "4"]) == 0
    model, _, preprocess = open_clip.create_model_and_transforms(clip[1], pretrained=clip[3])
    tokenizer, expected = open_clip.get_tokenizer(clip[1]), {}
    model.eval()
    for shard in ("00000", "00001"):
        for sample in read_samples(tmp_path / f"in/{shard}.tar"):
            total = 0.0
            for image, text in (("jpg", "txt"), ("neg.jpg", "neg.txt")):
                with torch.inference_mode():
                    x = model.encode_image(
                        preprocess(Image.open(io.BytesIO(sample[image])))[None], normalize=True
                    )
                    y = model.encode_text(tokenizer([sample[text].decode()]), normalize=True)
                total += float((x * y).sum()) / 2
            expected[sample["__key__"]] = total
    kept = {}
    for path in sorted((tmp_path / "top").glob("*.tar")):
        for sample in read_samples(path):
            meta = json.loads(sample["json"])
            kept[meta["source_key"]] = meta["scores"]["mean"]
            assert {"jpg", "txt", "neg.jpg", "neg.txt"} < set(sample)
    assert sorted(kept) == sorted(sorted(expected, key=expected.get)[-4:])
    assert all(abs(score - expected[key]) < 1e-5 for key, score in kept.items())
    assert "below the cut-off 5" in capfd.readouterr().err
    assert make_shards.main([*argv, str(tmp_path / "all"), "--threshold", "-1"]) == 0
    assert sum(1 for p in (tmp_path / "all").glob("*.tar") for _ in read_samples(p)) == 9


def test_filter_asks_for_one_rule_and_a_model_that_exists(clip, tmp_path, capsys):
    shards = write_shards(tmp_path / "in", [2])
    argv = ["filter", "--input", shards, "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 2
    assert make_shards.main([*argv, "--top-k", "1", "--clip", "no-such-model"]) == 4
    assert "cannot load 'no-such-model'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["filter", "verify"])
def test_scores_come_from_the_network_that_was_trained(command, tmp_path, capsys):
    """OpenAI's CLIP was trained with QuickGELU; OpenCLIP builds ViT-L-14 without, and only warns."""
    shards = write_shards(tmp_path / "in", [2])
    argv = [command, "--input", shards, "--output", str(tmp_path / "out"), "--quiet"]
    argv += ["--top-k", "1"] if command == "filter" else ["--checks", "four-way"]
    assert make_shards.main([*argv, "--clip", "ViT-L-14"]) == 2
    assert "use the model ViT-L-14-quickgelu" in capsys.readouterr().err
    assert make_shards.main([*argv, "--clip-pretrained", ""]) == 2 and "random network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # the same folder is there for the right model
    check_weights(Scores.model, Scores.pretrained)


def test_a_build_asks_for_the_weights_of_its_filter_first(tmp_path, capsys):
    shards = write_shards(tmp_path / "in", [2])
    argv = ["build", "--input", shards, "--output", str(tmp_path / "out"), "--backend", "rules", "--clip", "ViT-L-14"]
    assert make_shards.main([*argv, "--top-k", "1"]) == 2 and not (tmp_path / "out").exists()
    assert "use the model ViT-L-14-quickgelu" in capsys.readouterr().err


def test_a_folder_is_recorded_with_the_weights_that_it_brings(clip, tmp_path):
    """The default --clip-pretrained is no part of it."""
    import open_clip
    import torch

    folder = tmp_path / "conv"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": {}}))
    torch.save(open_clip.create_model(clip[1]).state_dict(), folder / "open_clip_pytorch_model.bin")
    argv = ["filter", "--input", write_shards(tmp_path / "in", [2]), "--output", str(tmp_path / "out"), "--quiet"]
    assert make_shards.main([*argv, "--top-k", "2", "--clip", f"local-dir:{folder}"]) == 0
    (sample, _) = read_samples(tmp_path / "out/00000.tar")
    assert json.loads(sample["json"])["scores"]["model"] == "local-dir:conv"
    assert json.loads((tmp_path / "out/.work/scores/stage.json").read_text())["pretrained"] == ""


def test_a_drop_list_leaves_out_what_was_marked(tmp_path, capfd):
    shards = write_shards(tmp_path / "in", [3])
    keys = [s["__key__"] for s in read_samples(tmp_path / "in/00000.tar")]
    marks = tmp_path / "marks.csv"
    marks.write_text(f"key,mark\n{keys[0]},bad\n{keys[1]},keep\n")
    argv = ["filter", "--input", shards, "--drop-list", str(marks), "--quiet", "--output"]
    assert make_shards.main([*argv, str(tmp_path / "out")]) == 0
    left = [json.loads(s["json"])["source_key"] for s in read_samples(tmp_path / "out/00000.tar")]
    assert left == keys[1:] and "left out: marked to be dropped 1" in capfd.readouterr().err
    assert make_shards.main([*argv, str(tmp_path / "two"), "--drop-mark", "keep"]) == 0
    assert len(list(read_samples(tmp_path / "two/00000.tar"))) == 2
    marks.write_text("name\nx\n")
    assert make_shards.main([*argv, str(tmp_path / "three")]) == 2 and "key and mark" in capfd.readouterr().err


def drop(tmp_path, shards, rows: str, *options: str, output: str = "out") -> int:
    (tmp_path / "marks.csv").write_text(rows)
    argv = ["filter", "--input", *shards, "--drop-list", str(tmp_path / "marks.csv"), "--quiet", *options]
    return make_shards.main([*argv, "--output", str(tmp_path / output)])


def kept(folder) -> list[str]:
    return [json.loads(s["json"])["source_key"] for path in sorted(folder.glob("*.tar")) for s in read_samples(path)]


@pytest.fixture
def same_keys(tmp_path):
    """Two shards that hold the keys 0, 1 and 2 each."""
    shards = [str(tmp_path / "in" / f"{name}.tar") for name in "ab"]
    for shard in shards:
        with ShardWriter(shard) as writer:
            for key in "012":
                writer.write({"__key__": key, "jpg": picture(0), "txt": "a dog"})
    return shards


def test_a_drop_list_means_the_shard_that_it_names(same_keys, tmp_path, capfd):
    assert drop(tmp_path, same_keys, "key,mark,shard\n0,bad,b.tar\n2,bad,\n") == 0
    assert kept(tmp_path / "out") == ["0", "1", "1"]
    assert "drop list: 2 samples listed, 3 found" in capfd.readouterr().err
    # the keys of the new shards, which an earlier filter gave them
    shards = [str(tmp_path / "out" / f"0000{n}.tar") for n in (0, 1)]
    assert drop(tmp_path, shards[1:], "key,mark,shard\n00001_000001,bad,00001.tar\n", output="next") == 3
    assert "pack kept nothing" in capfd.readouterr().err


def test_a_drop_list_knows_a_sample_by_its_key_in_a_shard_of_another_number(same_keys, tmp_path):
    assert drop(tmp_path, same_keys, "key,mark\n2,bad\n") == 0
    (tmp_path / "out/00001.tar").rename(tmp_path / "best.tar")
    assert drop(tmp_path, [str(tmp_path / "best.tar")], "key,mark\n00001_000000,bad\n", output="next") == 0
    assert kept(tmp_path / "next") == ["1"]


def test_a_drop_list_that_finds_nothing_is_told(same_keys, tmp_path, capfd):
    rows = "key,mark,shard\n1,bad,b.tar\n"
    assert drop(tmp_path, same_keys, rows, "--part", "1/2") == 0  # the other part may find it
    assert "1 samples listed, 0 found" in capfd.readouterr().err
    assert drop(tmp_path, same_keys, rows, "--part", "2/2") == 0
    rows = "key,mark,shard\n1,bad,c.tar\n"
    for _ in range(2):  # and when there is nothing left to do
        assert drop(tmp_path, same_keys, rows, output="none") == 3
        assert "None of them is in --input" in capfd.readouterr().err
    assert drop(tmp_path, same_keys, rows, "--part", "1/2", output="parts") == 0
    assert drop(tmp_path, same_keys, rows, "--part", "2/2", output="parts") == 3
    assert drop(tmp_path, same_keys, "key,mark\n1,bad\n", "--drop-mark", "blurred", "bad") == 2
    assert "--drop-mark blurred: " in (said := capfd.readouterr().err) and "has bad" in said
    assert drop(tmp_path, same_keys, "key,mark\n1,good\n") == 2
    assert "marks nothing to be dropped (good)" in capfd.readouterr().err


def test_a_cut_off_waits_for_every_shard(clip, tmp_path, capfd):
    shards = write_shards(tmp_path / "in", [2, 2])
    (tmp_path / "in/00001.tar").write_bytes(b"not a tar")
    argv = ["filter", "--input", shards, *clip, "--quiet", "--top-k", "2", "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 3
    assert not list((tmp_path / "out").glob("*.tar"))


# concepts


def test_words_of_a_caption():
    assert words("A dog's RED ball on 2 well-known tables; {}") == [
        "dog",
        "red",
        "ball",
        "well-known",
        "tables",
    ]


def greedy(concepts: list[list[str]], folder, chunk: int = coverage.CHUNK) -> list[int]:
    """``coverage_order`` of captions, each of one word that has these concepts (or of two, half each)."""
    vocabulary = Vocabulary([half for names in concepts for half in (names[::2], names)])
    captions = Captions(folder / "words.int32", chunk)
    for number in range(len(concepts)):
        captions.append([[2 * number, 2 * number + 1]])
    captions.close()
    return list(coverage.coverage_order(captions, vocabulary))


def test_coverage_order_takes_most_new_concepts_first(tmp_path):
    concepts = [["a"], ["a", "b", "c"], ["c", "d"], ["d", "e"], []]
    assert greedy(concepts, tmp_path) == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(concepts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=9))
def test_coverage_order_is_greedy_whatever_the_chunks(tmp_path, chunk, concepts):
    order, covered = greedy(concepts, tmp_path, chunk), set()
    assert sorted(order) == list(range(len(concepts)))
    for place, number in enumerate(order):
        gains = {n: len(set(concepts[n]) - covered) for n in order[place:]}
        assert gains[number] == max(gains.values())
        assert number == min(n for n, gain in gains.items() if gain == gains[number])
        covered |= set(concepts[number])


def test_what_a_word_most_often_stands_for():
    concepts = Concepts()
    assert [concepts.primary(word) for word in ("dogs", "men", "running", "red", "zzxqy")] == [
        "dog.n.01",
        "man.n.01",
        "run.v.01",
        "red.s.01",
        "",
    ]


def test_wordnet_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("nltk", reason="NLTK is not installed: install open_clip_triplet with its extra `build`")
    with pytest.raises(PipelineError, match="wordnet-base"):
        load_wordnet(str(tmp_path))


def test_concepts_of_real_captions_and_growing_subsets(tmp_path, capfd):
    pytest.importorskip("nltk", reason="NLTK is not installed: install open_clip_triplet with its extra `build`")
    try:
        load_wordnet("")
    except PipelineError as stop:
        pytest.skip(str(stop))
    captions = ["A dog", "A dog runs", "Two dogs and a red car", "a dog", "zzxqy"]
    for shard in (0, 1):
        with ShardWriter(tmp_path / f"in/{shard}.tar") as writer:
            for number, text in enumerate(captions[shard::2]):
                writer.write({"__key__": f"{number}", "jpg": picture(0), "txt": text, "neg.txt": "A cat"})
    argv = ["concepts", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--quiet"]
    assert make_shards.main([*argv, "--subset", "1", "3"]) == 0
    table = json.loads((tmp_path / "out/concepts.json").read_text())
    assert table["samples"] == 5 and table["most_common"][0] == ["dog.n.01", 4]
    dog = len(Concepts().word("dog"))
    assert dog > 5 and table["captions"]["total"] > 4 * dog  # every sense, as the paper counts
    assert not list((tmp_path / "out/.work/concepts").glob("*.int32"))
    assert table["negatives"]["unique"] < table["captions"]["unique"] < table["both"]["unique"]
    assert make_shards.main([*argv[:-2], str(tmp_path / "first"), "--quiet", "--senses", "first"]) == 0
    first = json.loads((tmp_path / "first/concepts.json").read_text())
    assert first["captions"]["total"] < table["captions"]["total"] and first["most_common"] == table["most_common"]
    assert [sum(1 for p in (tmp_path / f"out/subset-{n}").glob("*.tar") for _ in read_samples(p)) for n in (1, 3)] == [
        1,
        3,
    ]
    assert "unique" in capfd.readouterr().out
