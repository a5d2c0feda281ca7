"""What a run prints: a line per benchmark."""

from __future__ import annotations

from pathlib import Path

from open_clip_triplet.evaluation.run import Evaluation


def brief(label: str, evaluation: Evaluation, output: Path) -> str:
    encoded = evaluation.encoded
    lines = [
        f"{label}: encoded {encoded['images']} images and {encoded['texts']} captions"
        f" ({'nothing new' if not any(encoded.values()) else 'the rest was stored'})"
    ]
    for result in evaluation.results.values():
        lines.append("  " + _line(result))
    lines.append(f"  results in {output}")
    return "\n".join(lines)


def _line(result: dict) -> str:
    share = "" if result["complete"] else f"  PARTIAL: {result['items']} of {result['expected'] or '?'} items"
    overall = result["summary"].get("overall")
    if overall:
        text = f"{100 * overall['value']:.2f} [{100 * overall['low']:.2f}, {100 * overall['high']:.2f}]"
    else:
        text = "; ".join(
            _subset_text(name, subset) for name, subset in result["subsets"].items() if subset["items"]
        )
    ties = f", {result['ties']} ties" if result["ties"] else ""
    return f"{result['title']}: {text}{ties}{share}"


def _subset_text(name: str, subset: dict) -> str:
    metrics = subset["metrics"]
    chosen = [m for m in ("accuracy", "text", "image", "group", "i2t_r5", "t2i_r5", "top1") if m in metrics]
    return f"{name} " + " ".join(f"{m} {100 * metrics[m]['value']:.2f}" for m in chosen)
