"""What ``triplet-evaluate run`` prints: a line per benchmark as soon as it is scored, and a last one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec
from open_clip_triplet.evaluation.result_files import safe_name
from open_clip_triplet.evaluation.run import Evaluation

#: metrics shown of a subset, where a benchmark has no average
SHOWN = ("accuracy", "macro", "text", "image", "group", "i2t_r5", "t2i_r5", "top1")


def result_line(result: dict) -> str:
    """One line on one benchmark: its number, what it rests on, what is unusual about it."""
    overall = result["summary"].get("overall")
    if overall:
        text = f"{100 * overall['value']:.2f}"
        if overall["low"] is not None:
            text += f" [{100 * overall['low']:.2f}, {100 * overall['high']:.2f}]"
    elif result["summary"]:
        text = " ".join(f"{name} {100 * x['value']:.2f}" for name, x in result["summary"].items())
    else:
        text = "; ".join(_subset(result, name) for name, x in result["subsets"].items() if x["items"])
    return f"  {result['title']}: {', '.join([text, *_remarks(result)])}"


def _remarks(result: dict) -> Iterator[str]:
    if result["ties"]:
        yield f"{result['ties']} ties"
    if result["captions"].get("cut"):
        yield f"{result['captions']['cut']} of {result['captions']['unique']} captions cut at the context length"
    if result["limit"]:
        yield f"LIMITED to {result['limit']} items a subset"
    elif not result["complete"]:
        notes = dict.fromkeys(subset["note"] for subset in result["subsets"].values() if subset["note"])
        why = f" ({'; '.join(notes)})" if notes else ""
        yield f"PARTIAL: {result['items']} of {result['expected'] or '?'} items{why}"


def _subset(result: dict, name: str) -> str:
    subset = result["subsets"][name]
    metrics = subset["metrics"]
    numbers = " ".join(f"{m} {100 * metrics[m]['value']:.2f}" for m in SHOWN if m in metrics)
    partial = result["complete"] and not subset["complete"]  # else the line says so as a whole
    expected = f" (PARTIAL: {subset['items']} of {subset['expected'] or '?'})" if partial else ""
    return f"{numbers}{expected}" if name == result["benchmark"] else f"{name} {numbers}{expected}"


def show_start(label: str, spec: CheckpointSpec) -> None:
    print(f"{label} ({spec.model or spec.pretrained}, {spec.precision})", flush=True)


def show_result(result: dict) -> None:
    print(result_line(result), flush=True)


def show_end(label: str, evaluation: Evaluation, output: Path) -> None:
    """What was encoded, and where the results are."""
    encoded = evaluation.encoded
    stored = "" if any(encoded.values()) else " (nothing new)"
    print(
        f"{label}: encoded {encoded['images']} images and {encoded['texts']} captions{stored}; "
        f"results in {output / safe_name(label)}",
        flush=True,
    )


def show_skipped(skipped: dict[str, str]) -> None:
    """Which benchmarks had nothing to score, and why: those of one reason in one line."""
    names: dict[str, list[str]] = {}
    for name, why in skipped.items():
        reason = why.splitlines()[0].removesuffix(" Expected:").removeprefix(f"{name}: ").rstrip(".")
        names.setdefault(reason, []).append(name)
    for reason, group in names.items():
        print(f"skipped {', '.join(group)}: {reason}", file=sys.stderr)
