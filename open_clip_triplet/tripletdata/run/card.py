"""The data card: a README.md beside the shards that says what they are, with 8 samples to look at."""

from __future__ import annotations

import html
import json
import re
from itertools import islice
from pathlib import Path

from open_clip_triplet.files import join, list_files, write_text_durably, write_whole
from open_clip_triplet.shards import read_meta, read_samples, rename_members

SAMPLES = 8


def write_card(output: str, title: str, summary: dict) -> str:
    """Write ``README.md`` and the pictures of its samples (``card/``) into a folder or url; its path.

    Args:
        summary: as build writes it: ``stages`` with ``config``, ``read``, ``kept``, ``dropped``.
    """
    shards = [name for name in list_files(output) if name.endswith(".tar")]
    lines = [f"# {cell(title)}", "", *_facts(summary), "", *_stages(summary), "", *_dropped(summary), *_edits(summary)]
    if shards:
        lines += ["", *_samples(output, shards)]
    lines += ["", *_prompts(summary), "", *_use(summary, shards)]
    path = join(output, "README.md")
    write_text_durably(path, "\n".join(lines).rstrip() + "\n")
    return path


def cell(text: str, width: int = 200) -> str:
    """Untrusted text for one cell of a Markdown table: no markup, no line break.

    >>> cell("a | <b>\\n*c*")
    'a &#124; &lt;b&gt; &#42;c&#42;'
    """
    text = " ".join(text.split())
    text = text if len(text) <= width else text[: width - 1] + "…"
    return re.sub(r"[|*_`\[\]\\#~!]", lambda m: f"&#{ord(m[0])};", html.escape(text, quote=False))


def _facts(summary: dict) -> list[str]:
    return [
        f"{summary['kept']:,} samples in {summary['shards']:,} shards, from {summary['read']:,} pairs read. "
        "Each sample is an image and its caption (`jpg`, `txt`) with a hard negative caption and, where "
        "one was drawn, its image (`neg.txt`, `neg.jpg`); `json` holds every caption and the origin of each.",
        "",
        "Negatives are made by models: they may be wrong, and they carry the models' biases. "
        "The terms of the source images and of the models apply.",
        *_licences(summary),
    ]


def _licences(summary: dict) -> list[str]:
    """Data sets that were imported, and their licences."""
    configs = [stage["config"] for stage in summary["stages"].values() if stage["config"].get("licence")]
    return [line for c in configs for line in ("", f"Licence of {cell(c['source'])}: {cell(c['licence'])}.")]


def _stages(summary: dict) -> list[str]:
    rows = ["| stage | model | settings | read | kept |", "|---|---|---|---:|---:|"]
    for name, stage in summary["stages"].items():
        config = dict(stage["config"])
        model = config.pop("model", None)
        settings = {**config, **model} if isinstance(model, dict) else config
        settings.pop("prompt", None)
        shown = settings.pop("model", None) or (model if isinstance(model, str) else settings.get("backend"))
        text = ", ".join(f"{k} {json.dumps(v)}" for k, v in sorted(settings.items()) if v not in ("", None, {}))
        shown = Path(shown).name if shown and Path(shown).is_absolute() else shown or "none"
        rows.append(f"| {name} | {cell(shown)} | {cell(text, 400)} | {stage['read']:,} | {stage['kept']:,} |")
    return rows


def _dropped(summary: dict) -> list[str]:
    rows = [
        f"| {name} | {cell(reason)} | {count:,} |"
        for name, stage in summary["stages"].items()
        for kind in ("dropped", "left_out")
        for reason, count in sorted(stage[kind].items(), key=lambda item: (-item[1], item[0]))
    ]
    if summary["failed"]:
        failed = summary["failed"]
        rows.append(f"| input | shards not read: {cell(', '.join(failed))} | {len(failed)} shards |")
    return (
        ["## Dropped", "", "| stage | reason | samples |", "|---|---|---:|", *rows]
        if rows
        else ["Nothing was dropped."]
    )


def _edits(summary: dict) -> list[str]:
    """What the negative captions change, as far as their stage counted it."""
    counts = summary["stages"].get("captions", {}).get("counts", {})
    edits = {name[len("edit: ") :]: count for name, count in counts.items() if name.startswith("edit: ")}
    if not edits:
        return []
    rows = [
        f"| {cell(name)} | {count:,} | {count / sum(edits.values()):.1%} |"
        for name, count in sorted(edits.items(), key=lambda item: (-item[1], item[0]))
    ]
    return ["", "## What the negative captions change", "", "| edit | captions | share |", "|---|---:|---:|", *rows]


def _samples(output: str, shards: list[str]) -> list[str]:
    """Samples from the first shards, with their pictures as files of their own."""
    folder = join(output, "card")
    rows = ["## Samples", "", "| image | caption | negative caption | negative image |", "|---|---|---|---|"]
    found = (sample for shard in shards for sample in read_samples(join(output, shard)))
    for number, sample in enumerate(islice(found, SAMPLES)):
        roles = rename_members(sample)
        negatives = read_meta(roles).get("neg_captions") or [
            roles.get("neg_text", b"").decode("utf-8", "replace")
        ]
        pictures = [
            _picture(folder, f"{number}{end}", roles.get(role))
            for role, end in (("image", ""), ("neg_image", "-neg"))
        ]
        caption = cell(roles.get("text", b"").decode("utf-8", "replace"))
        negative = "<br>".join(cell(str(text)) for text in negatives)
        rows.append(f"| {pictures[0]} | {caption} | {negative} | {pictures[1]} |")
    return rows


def _picture(folder: str, name: str, data: bytes | None) -> str:
    if data is None:
        return ""
    with write_whole(join(folder, f"{name}.jpg")) as file:
        file.write(data)
    return f'<img src="card/{name}.jpg" width="128">'


def _prompts(summary: dict) -> list[str]:
    lines = []
    for name, stage in summary["stages"].items():
        model = stage["config"].get("model")
        if isinstance(model, dict) and model.get("prompt"):
            fence = "`" * (max(map(len, re.findall("`+", model["prompt"])), default=2) + 1)
            lines += [f"## Prompt of {name}", "", fence, model["prompt"], fence, ""]
    return lines


def _use(summary: dict, shards: list[str]) -> list[str]:
    loss = "triplet" if {"images", "import"} & set(summary["stages"]) else "negclip"
    return [
        "## Use",
        "",
        "```",
        f"triplet-train --loss {loss} --train-data '{shard_pattern(shards, 'THIS_FOLDER/')}'",
        "```",
    ]


def shard_pattern(names: list[str], folder: str = "") -> str:
    """Shards as ``--train-data`` takes them: a range for each run of numbers without a gap.

    >>> shard_pattern(["00000.tar", "00001.tar", "00003.tar"], "data/")
    'data/<00000..00001>.tar::data/00003.tar'
    """
    runs: list[list[int]] = []
    for number in sorted(int(name.removesuffix(".tar")) for name in names if name[:-4].isdigit()):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    spans = (f"<{first:05d}..{last:05d}>" if first < last else f"{first:05d}" for first, last in runs)
    return "::".join(f"{folder}{span}.tar" for span in spans)
