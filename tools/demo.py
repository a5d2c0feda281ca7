#!/usr/bin/env python
"""Minutes on two cores: what does CLIP not learn from its own batches, and TripletCLIP from hard negatives?

Builds a world of coloured signs, trains clip, negclip and triplet from the same seed for the same
number of steps with the same model, and scores them on pictures in which signs meet that none of them
saw together. Downloads nothing. Writes OUTPUT/report.html, scores.png and results/*.json.

  python tools/demo.py --output demo
  python tools/demo.py --output demo --short        # a minute: shows that everything runs
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import shlex
import sys
import time
from pathlib import Path

import numpy as np

import world_runs
from open_clip_triplet.evaluation.metrics import wilson_interval
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import read_samples, rename_members
from open_clip_triplet.tripletdata.worlds import shapes
from world_runs import COMMON, SCORES, Run, difference, interval

METHODS = ("clip", "negclip", "triplet")
WORLD = "glyphs"
#: the kind of hard negative that a bag of words cannot tell from the positive
SWAP = "swap_att"


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    started = time.time()
    steps, samples, held_out = (20, 2_000, 200) if args.short else (1000, 64_000, 2_000)
    print(f"1. shards: {samples} training samples, {held_out} held out -> {args.output}/shards", flush=True)
    shapes.build(
        args.output / "shards", samples=samples, val_samples=held_out, shards=8, world=WORLD,
        image_size=32, seed=args.seed, workers=2,
    )
    print(f"2. training: {', '.join(METHODS)}; {steps} steps each from seed {args.seed}", flush=True)
    results = [
        world_runs.execute(Run(method, args.seed, steps, ("--loss", method)), args.output, COMMON[WORLD])
        for method in METHODS
    ]
    print("\n3. held-out scenes, percent [95% interval]\n")
    print(table(results))
    verdict = say(results, short=args.short)
    print(f"\n{verdict}\n")
    figure = plot(results)
    (args.output / "scores.png").write_bytes(figure)
    minutes = (time.time() - started) / 60
    page = report(results, figure, args.output / "shards" / "val" / "00000.tar", verdict, minutes)
    write_text_durably(args.output / "report.html", page)
    print(f"report: {args.output}/report.html ({minutes:.1f} minutes in all)")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo"),
                        help="folder for everything (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of training (%(default)s)")
    parser.add_argument("--short", action="store_true", help="20 steps: a check that it runs, not a result")
    args = parser.parse_args(argv)
    if args.short:  # beside the full demo, so that neither refuses the other's folder
        args.output = args.output / "short"
    return args


def shown_scores(result: dict) -> dict[str, tuple[float, float, float]]:
    """What the table and the plot show: {name: (value, low, high)}, each with its 95% interval."""
    swapped = result["category_correct"][SWAP]
    right = swapped.count("1")
    found = {"exchanged": (right / len(swapped), *wilson_interval(right, len(swapped)))}
    found |= {name: (result[name], *interval(result, name)) for name in SCORES}
    # a recall is over 2 x items questions, which share pictures and captions: its interval is that of the items
    return found | {"R@1": (result["r1"], *wilson_interval(round(result["r1"] * result["items"]), result["items"]))}


def table(results: list[dict]) -> str:
    """Scores as aligned text, one method a line."""
    names = shown_scores(results[0])
    lines = [f"{'method':10}" + "".join(f"{name:>20}" for name in names)]
    for result in results:
        cells = [
            f"{100 * value:9.1f} [{100 * low:.1f}-{100 * high:.1f}]".rjust(20)
            for value, low, high in shown_scores(result).values()
        ]
        lines.append(f"{result['label']:10}{''.join(cells)}")
    lines.append("exchanged: group score where two signs have exchanged colours. R@1: retrieval among all pictures.")
    return "\n".join(lines)


def say(results: list[dict], *, short: bool) -> str:
    """What was measured, in one sentence; it claims a lead only where the interval leaves out zero."""
    by_label = {result["label"]: result for result in results}
    lead, low, high = (100 * x for x in difference(by_label["triplet"], by_label["clip"], SWAP))
    verdict = "leads clip by" if low > 0 else "trails clip by" if high < 0 else "is within the interval of clip:"
    text = (
        f"Group score on exchanged colours after {results[0]['steps']} steps: triplet {verdict} {abs(lead):.1f} "
        f"points (95% interval of the lead {low:+.1f} to {high:+.1f}, "
        f"{len(results[0]['category_correct'][SWAP]):,} held-out samples, one seed)."
    )
    return text + " The short form is too short to learn from." if short else text


def plot(results: list[dict]) -> bytes:
    """Bars of the three scores with 95% intervals, and accuracy by kind of hard negative, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(METHODS, ("#8da0b3", "#e0a458", "#2a6f97")))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(5, 4))
    kinds = list(results[0]["categories"])
    for k, result in enumerate(results):
        label, shift, width = result["label"], (k - 1) * 0.27, 0.25
        values, low, high = (100 * np.array(part) for part in zip(*shown_scores(result).values()))
        left.bar(np.arange(len(values)) + shift, values, width, yerr=[values - low, high - values], capsize=2,
                 label=label, color=colours[label])
        rates = [100 * result["categories"][kind][0] / result["categories"][kind][1] for kind in kinds]
        right.bar([x + shift for x in range(len(kinds))], rates, width, color=colours[label])
    names = {"exchanged": "exchanged\ncolours", "R@1": "retrieval\nR@1"}
    scores = list(shown_scores(results[0]))
    left.set_xticks(range(len(scores)), [names.get(name, f"{name}\nscore") for name in scores])
    right.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds])
    left.set_title("Held-out pictures, 95% intervals", fontsize=10)
    right.set_title("Caption preferred to its hard negative, by what was changed", fontsize=10)
    right.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    for axis in (left, right):
        axis.set_ylim(0, 103)
        axis.set_ylabel("percent")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def report(results: list[dict], figure: bytes, val: Path, verdict: str, minutes: float) -> str:
    """The one page: what was measured, a picture, what a sample looks like, how to run it again."""
    import platform

    import open_clip
    import torch

    rows = "".join(
        f"<tr><td>{html.escape(r['label'])}</td>"
        + "".join(
            f"<td>{100 * value:.1f} <small>{100 * low:.1f}–{100 * high:.1f}</small></td>"
            for value, low, high in shown_scores(r).values()
        )
        + f"<td>{r.get('images_seen', 0):,}</td>"
        + f"<td>{r['training_seconds']:.0f} s</td></tr>"
        for r in results
    )
    commands = "\n".join(html.escape(shlex.join(["python", *r["command"]])) for r in results)
    versions = (
        f"open_clip {open_clip.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, {minutes:.1f} minutes, {time.strftime('%Y-%m-%d')}"
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>TripletCLIP on coloured signs</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem .2rem 0;text-align:left}}small{{color:#777}}
img{{max-width:100%}}.s{{display:flex;gap:1rem;margin:.5rem 0}}.s img{{width:72px;image-rendering:pixelated}}
.s div{{flex:1}}pre{{white-space:pre-wrap;background:#f4f4f4;padding:.8rem;font-size:.8rem}}</style>
<h1>TripletCLIP on a world of coloured signs</h1><p><b>{html.escape(verdict)}</b></p>
<p>The same tiny CLIP, the same seed, the same {results[0]['steps']} steps of 64 samples; only
<code>--loss</code> differs. Every picture that the models are scored on shows two signs that never met in training.
To retrieve a caption it is enough to know which signs and colours a picture has; where two signs have
exchanged their colours, it is not. Text: both images prefer their own caption. Image: both captions prefer
their own image. Group: all of it; exchanged: the group score of those samples alone. Ties are wrong.</p>
<table><tr><th>method</th><th>exchanged</th><th>text</th><th>image</th><th>group</th><th>R@1</th><th>images seen</th>
<th>training</th></tr>
{rows}</table>
<img alt="Scores by method, and accuracy by kind of hard negative"
src="data:image/png;base64,{_base64(figure)}">
<p>Equal steps are the paper's budget. A triplet step encodes twice the images and captions of a clip
step, and takes longer: the table says how much.</p>
<h2>What a held-out sample looks like</h2>{_examples(val, 6)}
<h2>Run it again</h2><pre>{commands}</pre><p><small>{html.escape(versions)}</small></p></html>
"""


def _examples(val: Path, count: int) -> str:
    parts = []
    for sample, _ in zip(map(rename_members, read_samples(val)), range(count)):
        sides = (("image", "text"), ("neg_image", "neg_text"))
        parts.append('<div class="s">' + "".join(
            f'<img alt="" src="data:image/jpeg;base64,{_base64(sample[image])}">'
            f"<div>{html.escape(sample[text].decode())}</div>"
            for image, text in sides
        ) + "</div>")
    return "".join(parts)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
