"""Reads shards as a trainer would and reports what is missing or broken, shard by shard."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tqdm import tqdm

from open_clip_triplet.errors import ImageError, ShardError
from open_clip_triplet.files import join
from open_clip_triplet.shards import read_meta, read_samples, rename_members
from open_clip_triplet.tripletdata.run.command import DONE, FAILED_SHARDS
from open_clip_triplet.tripletdata.run.options import positive
from open_clip_triplet.tripletdata.run.pictures import decode
from open_clip_triplet.tripletdata.run.plan import plan_tasks, read_json

HELP = "check shards: missing members, broken images, repeated keys"

NEEDED = {
    "pair": ("image", "text"),
    "text": ("image", "text", "neg_text"),
    "image": ("image", "text", "neg_image"),
    "paired": ("image", "text", "neg_image", "neg_text"),
}


def check_shard(shard: str, need: tuple[str, ...]) -> dict:
    """``{"samples", "faults": {fault: count}, "first": {fault: key}, "keys": [...]}`` of one shard."""
    faults: Counter[str] = Counter()
    first: dict[str, str] = {}
    keys: list[str] = []
    found: dict = {"samples": 0, "faults": faults, "first": first, "keys": keys}
    try:
        for sample in read_samples(shard):
            found["samples"] += 1
            keys.append(sample["__key__"])
            for fault in sample_faults(rename_members(sample), need):
                faults[fault] += 1
                first.setdefault(fault, sample["__key__"])
    except (ShardError, OSError) as error:
        faults[f"unreadable ({error})"] += 1
    return found


def sample_faults(roles: dict, need: tuple[str, ...]) -> list[str]:
    """What is wrong with one sample, under role names."""
    faults = [f"no {role.replace('neg_', 'negative ')}" for role in need if role not in roles]
    for role in ("image", "neg_image"):
        try:
            if role in roles:
                decode(roles[role])
        except ImageError:
            faults.append(f"{role.replace('neg_', 'negative ')} cannot be decoded")
    for role in ("text", "neg_text"):
        if role in roles:
            try:
                if not roles[role].decode("utf-8").strip():
                    faults.append(f"empty {role.replace('neg_', 'negative ')}")
            except UnicodeDecodeError:
                faults.append(f"{role.replace('neg_', 'negative ')} is not UTF-8")
    if "text" in roles and roles["text"] == roles.get("neg_text"):
        faults.append("negative text equals text")
    if "meta" in roles and not read_meta(roles) and roles["meta"].strip() != b"{}":
        faults.append("json is not an object")
    return faults


def add_arguments(parser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, help="folder of shards or pattern a/{000..999}.tar"
    )
    parser.add_argument(
        "--need",
        choices=list(NEEDED),
        default="paired",
        help="negatives that each pair needs: pair none, text, image, paired both (default paired)",
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes (default 1)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args) -> int:
    shards = [task.inputs[0] for task in plan_tasks(args.input)]
    check = partial(check_shard, need=NEEDED[args.need])
    with ProcessPoolExecutor(args.workers) as pool:
        checked = pool.map(check, shards) if args.workers > 1 else map(check, shards)
        results = list(tqdm(checked, total=len(shards), desc="validate", disable=args.quiet, file=sys.stderr))
    return _report(dict(zip(shards, results)), args.json)


def _report(results: dict[str, dict], as_json: bool) -> int:
    seen: set[str] = set()
    sizes: dict[str, dict] = {}
    for shard, result in results.items():
        for key in result.pop("keys"):
            if key in seen:
                result["faults"]["repeated key"] += 1
                result["first"].setdefault("repeated key", key)
            seen.add(key)
        folder, name = os.path.split(shard)
        if folder not in sizes:
            sizes[folder] = read_json(join(folder, "sizes.json"))
        expected = sizes[folder].get(name)
        if sizes[folder] and expected is None:
            result["faults"]["not in sizes.json"] += 1
        elif expected is not None and expected != result["samples"]:
            result["faults"][f"sizes.json says {expected} samples"] += 1
    broken = {shard: result for shard, result in results.items() if result["faults"]}
    samples = sum(result["samples"] for result in results.values())
    if as_json:
        print(json.dumps({"samples": samples, "shards": results}, ensure_ascii=False))
    else:
        for shard, result in broken.items():
            for fault, count in result["faults"].most_common():
                key = f", first {result['first'][fault]}" if fault in result["first"] else ""
                print(f"{shard}: {fault}: {count}{key}")
        print(f"{samples:,} samples in {len(results):,} shards; {len(broken):,} shards with faults")
    return FAILED_SHARDS if broken else DONE
