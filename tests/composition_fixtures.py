"""Small data in the formats of the composition benchmarks beyond the paper, as their authors publish them."""

import csv
import json
from pathlib import Path

from evaluation_fixtures import jpeg, save_picture, write_json

RELATIONS = {
    "controlled_a": ("left_of", "right_of", "on", "under"),
    "controlled_b": ("left_of", "right_of", "in-front_of", "behind"),
}
WORDS = {"left_of": "to the left of", "right_of": "to the right of", "in-front_of": "in front of"}


def write_csv(path: Path, fields, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(fields)
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    """Hugging Face's Parquet: an image is a struct of bytes and path. Two row groups."""
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // 2))
    return path


def write_whatsup(root: Path, sets: int = 6, questions: int = 8) -> None:
    folder = root / "whatsup"
    files = {"controlled_a": "controlled_images", "controlled_b": "controlled_clevr"}
    for subset, name in files.items():
        content, relations = [], RELATIONS[subset]
        for i in range(sets):
            for relation in relations:
                image = f"mug-{i}_{relation}_plate.jpeg"
                save_picture(folder / name / image, len(content))
                others = [r for r in relations if r != relation]
                captions = [f"A mug {i} {WORDS.get(r, r)} a plate" for r in (relation, *others)]
                content.append({"image_path": f"data/{name}/{image}", "caption_options": captions})
        write_json(folder / f"{name}_dataset.json", content)
    for subset, images in (("coco", root / "coco" / "val2017"), ("vg", folder / "vg_images")):
        for number in ("one", "two"):
            content = []
            for i in range(questions):
                identity = 1000 * (number == "two") + i
                name = f"{identity:012d}.jpg" if subset == "coco" else f"{identity}.jpg"
                save_picture(images / name, 50 + i)
                content.append(
                    [identity, f"A {number} dog {i} on the left", f"A {number} dog {i} on the right"]
                )
            write_json(folder / f"{subset}_qa_{number}_obj.json", content)


def write_mmvp_vlm(root: Path, pairs: int = 135) -> None:
    """Questions in groups of 15 pairs; a group's images lie in a folder of its type's short name."""
    folder, rows = root / "mmvp_vlm", []
    types = (
        "Orientation",
        "Presence",
        "State",
        "Quantity",
        "Spatial",
        "Color",
        "Structural Character",
        "Text",
        "Camera Perspective",
    )
    for number in range(1, 2 * pairs + 1):
        kind = types[(number - 1) // 30]
        save_picture(folder / "MLLM_VLM Images" / kind / f"{number}.jpg", number % 7)
        rows.append([number, kind, f"a thing, number {number}"])
    write_csv(folder / "Questions.csv", ["Question ID", "Type", "Statement"], rows)


def write_colorswap(root: Path, items: int = 8) -> None:
    content = []
    for i in range(items):
        entry = {"id": 700 + i, "image_source": "midjourney", "caption_source": ("human", "gpt")[i % 2]}
        for side, colours in ((1, "a red cup on a blue table"), (2, "a blue cup on a red table")):
            entry[f"caption_{side}"] = f"{colours} {i}"
            entry[f"image_{side}"] = f"images/img_{i}_{side}.png"
            save_picture(root / "colorswap" / "images" / f"img_{i}_{side}.png", 2 * i + side)
        content.append(entry)
    write_json(root / "colorswap" / "test.json", content)


def write_crepe(root: Path, items: int = 3) -> None:
    for kind in ("atom", "swap", "negate"):
        for complexity in range(4, 13):
            rows = []
            for i in range(items):
                image = 100 * complexity + i
                save_picture(root / "visual_genome" / ("VG_100K", "VG_100K_2")[i % 2] / f"{image}.jpg", image)
                negatives = [f"{kind} {j} of {complexity} {i}, 'so' \"it\" is" for j in range(5)]
                rows.append([image, f"caption {complexity} {i}", repr(negatives), 2, 3, 20, 15 + i])
            write_csv(
                root
                / "crepe"
                / "prod_hard_negatives"
                / kind
                / f"prod_vg_hard_negs_{kind}_complexity_{complexity}.csv",
                ["image_id", "caption", "hard_negs", "x", "y", "width", "height"],
                rows,
            )


def write_half_truths(root: Path, items: int = 12) -> None:
    for subset in ("coco_qwen", "coco_mistral", "cc3m_qwen"):
        rows = [
            {
                "id": f"{subset}-{i}",
                "image": {"bytes": jpeg(i), "path": f"{i}.jpg"},
                "triplet_type": ("entity", "relation")[i % 2],
                "anchor": f"a dog {i}",
                "half_truth": f"a dog {i} on a skateboard",
                "full_truth": f"a dog {i} on a sofa",
            }
            for i in range(items)
        ]
        write_parquet(root / "half_truths" / "data" / f"{subset}.parquet", rows)


def write_vismin(root: Path, items: int = 12) -> None:
    rows = [
        {
            "id": i,
            "category": ("object", "attribute", "counting", "relation")[i % 4],
            "image_0": {"bytes": jpeg(2 * i), "path": None},
            "image_1": {"bytes": jpeg(2 * i + 1), "path": None},
            "text_0": f"{i} cats",
            "text_1": f"{i + 1} cats",
        }
        for i in range(items)
    ]
    write_parquet(root / "vismin" / "test.parquet", rows)


def write_spec(root: Path, items: int = 6) -> None:
    for subset in (
        "absolute_size",
        "relative_size",
        "absolute_spatial",
        "relative_spatial",
        "existence",
        "count",
    ):
        folder = root / "spec" / "data" / subset
        i2t, t2i = [], []
        for i in range(items):
            images, captions = [f"{i}/{k}.png" for k in range(3)], [f"{subset} {i}: {k}" for k in range(3)]
            for k, image in enumerate(images):
                save_picture(folder / image, 3 * i + k)
            i2t.append({"query": images[i % 3], "keys": captions, "label": i % 3})
            t2i.append({"query": captions[(i + 1) % 3], "keys": images, "label": (i + 1) % 3})
        write_json(folder / "image2text.json", i2t)
        write_json(folder / "text2image.json", t2i)


def write_svo_probes(root: Path, items: int = 12) -> None:
    rows = []
    for i in range(items):
        kinds = ["True" if i % 3 == k else "False" for k in range(3)]
        for side in (0, 1):
            save_picture(
                root / "svo_probes" / "images" / f"{2 * i + side}.{('jpg', 'png')[i % 2]}", 2 * i + side
            )
        url = "https://example.org/x.jpg"
        rows.append(
            [f"A girl {i} stands", "girl,stand,grass", "dog,stand,grass", url, url, 2 * i, 2 * i + 1, *kinds]
        )
    fields = ["sentence", "pos_triplet", "neg_triplet", "pos_url", "neg_url", "pos_image_id", "neg_image_id"]
    write_csv(root / "svo_probes" / "svo_probes.csv", [*fields, "subj_neg", "verb_neg", "obj_neg"], rows)


def write_vl_checklist(root: Path, items: int = 3) -> None:
    from open_clip_triplet.evaluation.benchmarks.vl_checklist import TYPES

    for kind, files in TYPES.items():
        for name, file in files.items():
            data, content = name.partition("_")[0], []
            folder = {"swig": "swig", "hake": "hake/vcoco"}.get(data, "vg/VG_100K")
            for i in range(items):
                path = f"{folder}/{len(kind) + i}.jpg"
                save_picture(root / "vl_checklist" / path, i)
                content.append(
                    [
                        path.partition("/")[2],
                        {"POS": [f"{kind} {name} {i}", "unused"], "NEG": [f"no {kind} {name} {i}"]},
                    ]
                )
            write_json(root / "vl_checklist" / "data" / file, content)


def write_eqben(root: Path, items: int = 6) -> None:
    content = []
    for subset in (
        "eqbenag",
        "eqbengebc",
        "eqbenkubric_loc",
        "eqbenkubric_attr",
        "eqbenkubric_cnt",
        "eqbensd",
    ):
        for i in range(items):
            images = [f"{subset}/video{i}/{side}.png" for side in (0, 1)]
            for side, image in enumerate(images):
                path = root / "eqben" / "images" / image
                save_picture(path.with_suffix(".jpg") if i % 2 else path, 2 * i + side)
            captions = [f"{subset} {i} {side}" for side in (0, 1)]
            if subset == "eqbenag":
                captions = [[caption, "another"] for caption in captions]
            entry = {
                "image0": images[0],
                "image1": images[1],
                "caption0": captions[0],
                "caption1": captions[1],
            }
            content.append(entry)
    content.append(
        {"image0": "eqbenyoucook2/a.npy", "image1": "eqbenyoucook2/b.npy", "caption0": "a", "caption1": "b"}
    )
    write_json(root / "eqben" / "all_select.json", content)


def write_long_retrieval(root: Path, items: int = 9) -> None:
    lines = []
    for i in range(items):
        save_picture(root / "docci" / "images" / f"test_{i:05d}.jpg", i)
        entry = {
            "split": "test",
            "image_file": f"test_{i:05d}.jpg",
            "description": f"A long story {i}. " * 30,
        }
        lines += [entry, {"split": "train", "image_file": f"train_{i}.jpg", "description": "unused"}]
        save_picture(root / "Urban1k" / "image" / f"{i + 1}.jpg", 20 + i)
        (root / "Urban1k" / "caption").mkdir(parents=True, exist_ok=True)
        (root / "Urban1k" / "caption" / f"{i + 1}.txt").write_text(
            f"A busy street {i}.\nunused", encoding="utf-8"
        )
    path = root / "docci" / "docci_descriptions.jsonlines"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")


WRITERS = {
    "whatsup": write_whatsup,
    "mmvp_vlm": write_mmvp_vlm,
    "colorswap": write_colorswap,
    "crepe": write_crepe,
    "half_truths": write_half_truths,
    "vismin": write_vismin,
    "spec": write_spec,
    "svo_probes": write_svo_probes,
    "vl_checklist": write_vl_checklist,
    "eqben": write_eqben,
    "long_retrieval": write_long_retrieval,
}
