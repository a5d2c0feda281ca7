"""A tiny CLIP of real OpenCLIP parts, and small format-faithful data, for the evaluation tests."""

import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_config(folder: Path, name: str = "tiny-eval", **changes) -> Path:
    """A model config file as ``--model-config`` takes; its stem is the model's name."""
    path = Path(folder) / f"{name}.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return path


@lru_cache(maxsize=4)
def tiny_clip(seed: int = 0):
    """(model, preprocess, tokenizer): OpenCLIP's own CLIP, random weights, 32-pixel images."""
    import open_clip
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(**TINY).eval()
    return model, open_clip.image_transform(32, is_train=False), open_clip.SimpleTokenizer()


def picture(seed: int, size=(48, 40), mode: str = "RGB") -> Image.Image:
    """Coloured noise in big blocks, so that JPEG keeps it and every seed differs."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)


def jpeg(seed: int, **kwargs) -> bytes:
    stream = io.BytesIO()
    picture(seed, **kwargs).save(stream, "JPEG")
    return stream.getvalue()


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def save_picture(path: Path, seed: int, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **kwargs).save(path)
    return path


def write_sugarcrepe(root: Path, sizes: dict, images: int = 12) -> None:
    """SugarCrepe's layout with items over a few images; complete where ``sizes`` are the real ones."""
    for seed in range(images):
        save_picture(root / "coco" / "val2017" / f"{seed:012d}.jpg", seed)
    for subset, size in sizes.items():
        items = {
            str(i): {
                "filename": f"{i % images:012d}.jpg",
                "caption": f"a {subset} thing number {i % 40}",
                "negative_caption": f"not a thing {i % 37} of {subset}",
            }
            for i in range(size)
        }
        write_json(root / "sugar-crepe" / f"{subset}.json", items)


def write_pairs(root: Path, items: int = 6) -> None:
    """Winoground and Cola in their authors' formats."""
    folder = root / "winoground" / "data"
    lines = []
    for i in range(items):
        for side in (0, 1):
            save_picture(folder / "images" / f"ex_{i}_img_{side}.png", 100 + 2 * i + side)
        lines.append(
            {
                "id": i,
                "caption_0": f"a dog on {i} cats",
                "caption_1": f"{i} cats on a dog",
                "image_0": f"ex_{i}_img_0",
                "image_1": f"ex_{i}_img_1",
                "tag": "Object",
            }
        )
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    cola = []
    for i in range(items):
        urls = [f"https://example.org/vg_gqa_images/{1000 + 2 * i + side}.jpg" for side in (0, 1)]
        for side in (0, 1):
            save_picture(root / "cola" / "vg_gqa_images" / f"{1000 + 2 * i + side}.jpg", 200 + 2 * i + side)
        cola.append([urls[0], f"red ball {i}", urls[1], f"blue ball {i}"])
    write_json(root / "cola" / "COLA_multiobjects_matching_benchmark.json", cola)


def write_valse(root: Path, items: int = 4) -> None:
    """VALSE's eleven files; one item of each lacks the votes."""
    from open_clip_triplet.evaluation.benchmarks.valse import SIZES

    sources = {
        "existence": "visual7w",
        "foil-it": "FOIL dataset",
        "plurals": "coco2017",
        "relations": "coco_2017",
    }
    folders = {
        "visual7w": "visual7w/images",
        "SWiG": "swig/images_512",
        "VisDial_v1.0": "visdial",
        "FOIL dataset": "coco/val2014",
        "coco2017": "coco/val2017",
        "coco_2017": "coco/val2017",
    }
    for number, subset in enumerate(SIZES):
        default = {"c": "visual7w", "a": "SWiG"}[subset[0]] if subset[0] in "ca" else ""
        source = "VisDial_v1.0" if subset.startswith("coref") else sources.get(subset, default)
        content = {}
        for i in range(items):
            name = f"{subset}_{i}.jpg"
            save_picture(root / folders[source] / name, 300 + 10 * number + i)
            content[f"{subset}_{7 * i}"] = {
                "dataset": source,
                "image_file": name,
                "caption": f"there are {i} {subset}",
                "foil": f"there are {i + 1} {subset}",
                "mturk": {"foil": 0, "caption": 1 if i == 0 else 3, "other": 0},
            }
        write_json(root / "valse" / f"{subset}.json", content)


def write_retrieval(root: Path, images: int = 8) -> None:
    """COCO's and Flickr30k's Karpathy files in clip_benchmark's layout."""
    names = [f"COCO_val2014_{i:012d}.jpg" for i in range(images)]
    for seed, name in enumerate(names):
        save_picture(root / "mscoco_captions" / "val2014" / name, 500 + seed)
    captions = [
        {"image_id": i, "id": 10 * i + j, "caption": f"coco {i} words {j}"}
        for i in range(images)
        for j in range(5 - i % 2)
    ]
    write_json(
        root / "mscoco_captions" / "coco_test_karpathy.json",
        {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)], "annotations": captions},
    )
    lines = ["image,caption"]
    for i in range(images):
        save_picture(root / "flickr30k" / f"{i}.jpg", 600 + i)
        lines += [f"{i}.jpg,A caption, with commas, {i} {j}" for j in range(5)]
    (root / "flickr30k" / "flickr30k_test_karpathy.txt").write_text("\n".join(lines) + "\n")


def write_zeroshot(
    root: Path, name: str = "wds_vtab-eurosat", classes=("forest", "river", "sea"), images: int = 9
):
    """A clip_benchmark webdataset export of two shards, and one plain folder set."""
    import tarfile

    folder = root / "zeroshot" / name
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("2")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "a photo of {c}.\na satellite photo of {c}."
    )
    for shard in (0, 1):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard, images, 2):
                for suffix, data in (("cls", str(i % len(classes)).encode()), ("webp", _webp(700 + i))):
                    info = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for label in ("airplane", "bird"):
        for i in range(2):
            save_picture(root / "cifar10" / label / f"{i}.jpg", 800 + i)


def _webp(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "WEBP")
    return stream.getvalue()


def write_suite(root: Path) -> Path:
    """A little of every benchmark of the paper."""
    write_sugarcrepe(root, {name: 9 for name in SUGARCREPE_SUBSETS})
    write_pairs(root)
    write_valse(root)
    write_retrieval(root)
    write_zeroshot(root)
    write_paired_shard(root / "tripletdata" / "00000.tar", range(7))
    write_json(root / "tripletdata" / "sizes.json", {"00000.tar": 7})
    return root


SUGARCREPE_SUBSETS = (
    "replace_obj",
    "replace_att",
    "replace_rel",
    "swap_obj",
    "swap_att",
    "add_obj",
    "add_att",
)


def write_paired_shard(path: Path, seeds, **changes) -> None:
    """A paired shard; ``s3={"neg.jpg": None}`` changes sample 3 and leaves a member out."""
    from open_clip_triplet.shards import ShardWriter

    with ShardWriter(path) as writer:
        for seed in seeds:
            sample = {
                "__key__": f"{seed:04d}",
                "jpg": jpeg(seed),
                "txt": f"a thing number {seed}",
                "neg.jpg": jpeg(seed + 1000),
                "neg.txt": f"another thing {seed + 7}",
                "json": {},
            }
            sample.update(changes.get(f"s{seed}", {}))
            writer.write({k: v for k, v in sample.items() if v is not None})
