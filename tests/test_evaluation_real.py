"""The suite on the real annotations and images of ``TRIPLET_TEST_DATA``, fixtures where images are lacking."""

from pathlib import Path

import pytest

from evaluation_fixtures import SUGARCREPE_SUBSETS, jpeg, tiny_clip, write_paired_shard, write_pairs
from open_clip_triplet.evaluation import evaluate
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, get


def fill_in_images(root: Path) -> None:
    """One of a few JPEGs under every image name that VALSE and Cola ask for and that is not there."""
    few = [jpeg(seed) for seed in range(900, 920)]
    for name in ("valse", "cola"):
        refs = {ref.path for task in get(name).load(root).values() for ref in task.images()}
        for number, path in enumerate(sorted(refs)):
            if not Path(path).exists():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(few[number % len(few)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    import os

    source = os.environ.get("TRIPLET_TEST_DATA")
    if not source:
        pytest.skip("TRIPLET_TEST_DATA is not set: no real data to run on")
    root = tmp_path_factory.mktemp("real")
    for name in ("sugar-crepe", "flickr8k", "cifar10"):
        (root / name).symlink_to(Path(source) / name)
    (root / "coco" / "val2017").mkdir(parents=True)
    for path in (Path(source) / "coco" / "val2017").iterdir():
        (root / "coco" / "val2017" / path.name).symlink_to(path)
    (root / "coco" / "captions_val2017_subset.json").symlink_to(
        Path(source) / "coco" / "captions_val2017_subset.json"
    )
    write_pairs(root, items=2)
    for name, folders in {
        "valse": ["visual7w/images", "swig/images_512", "visdial", "coco/val2014"],
        "cola": ["cola/vg_gqa_images"],
    }.items():
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / name).mkdir(exist_ok=True)
        for path in (Path(source) / name).glob("*.json"):
            (root / name / path.name).unlink(missing_ok=True)
            (root / name / path.name).symlink_to(path)
    write_paired_shard(root / "tripletdata" / "0.tar", range(5))
    return root


def test_suite_on_real_data(root):
    model, preprocess, tokenizer = tiny_clip()
    before = evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=["sugarcrepe"],
        data_root=root,
        allow_partial=True,
    )
    items = before.results["sugarcrepe"]
    assert items["items"] == 305 and items["expected"] == 7511 and items["images"]["unique"] == 50
    fill_in_images(root)
    found = evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=PAPER_SUITE,
        data_root=root,
        allow_partial=True,
    )
    assert not found.skipped
    assert found.results["valse"]["complete"] and found.results["valse"]["items"] == 7702
    assert found.results["cola"]["complete"] and found.results["cola"]["items"] == 210
    retrieval = found.results["retrieval"]["subsets"]
    assert retrieval["mscoco"]["items"] == 50 and retrieval["flickr8k"]["items"] == 247
    assert found.results["zeroshot"]["subsets"]["cifar10"]["items"] == 400
    counts = {name: found.results["sugarcrepe"]["subsets"][name]["items"] for name in SUGARCREPE_SUBSETS}
    assert sum(counts.values()) >= 305  # VALSE's COCO images stand in for some of SugarCrepe's
    assert "valse/overall" in found and "sugarcrepe-partial/overall" in found
