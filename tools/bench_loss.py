"""Measure the TripletCLIP loss against the paper's pseudo-code, and a training step against CLIP's.

    python tools/bench_loss.py                     # about 10 minutes on two cores, 12 GB
    python tools/bench_loss.py --sizes 512 1024    # a quick look

Peers take turns in one run and the fastest round counts, so every figure is a ratio. Results go to
tools/results/bench_loss.{json,md}. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from open_clip_triplet.files import write_text_durably  # noqa: E402
from open_clip_triplet.losses import triplet_clip_loss  # noqa: E402

WIDTH = 512


def plain_loss(x, y, x2, y2, scale):
    """The paper's pseudo-code (appendix B): six N x N products, two cross-entropies per term."""

    def negclip(images, captions):
        labels = torch.arange(len(images), device=images.device)
        per_image = scale * images @ captions.T
        per_text = scale * captions[: len(images)] @ images.T
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

    return negclip(x, torch.cat([y, y2])) + negclip(x2, torch.cat([y2, y]))


def take_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, seconds of processor time and additional peak bytes of each step; the best of the rounds."""
    best: dict[str, dict[str, float]] = {}
    for name in list(steps) * rounds:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc holds back would hide a later peak
        Path("/proc/self/clear_refs").write_text("5")
        before, wall, processor = resident(), time.perf_counter(), time.process_time()
        steps[name]()
        run = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - processor,
            "peak_bytes": resident("VmHWM:") - before,
        }
        so_far = best.setdefault(name, run)
        best[name] = {figure: min(value, so_far[figure]) for figure, value in run.items()}
        best[name]["peak_bytes"] = max(run["peak_bytes"], so_far["peak_bytes"])
        print(f"  {name}: {run['seconds']:.2f} s, {run['peak_bytes'] / 2**20:.0f} MiB", file=sys.stderr)
    return best


def resident(field: str = "VmRSS:") -> int:
    """Bytes of this process in memory, now or (VmHWM) at the peak."""
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index(field) + 1])


def bench_loss(samples: int, rounds: int) -> dict[str, dict[str, float]]:
    """Forward and backward of both forms at N samples."""
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(samples, WIDTH), dim=1).requires_grad_() for _ in range(4)]
    inputs.append(torch.tensor(1 / 0.07, requires_grad=True))

    def step(loss):
        return lambda: torch.autograd.grad(loss(*inputs), inputs)

    return take_turns({"plain": step(plain_loss), "ours": step(triplet_clip_loss)}, rounds)


def bench_step(samples: int, rounds: int) -> dict[str, dict[str, float]]:
    """A step of ViT-B-32, its AdamW's too: CLIP and TripletCLIP on the same samples, CLIP on TripletCLIP's rows."""
    import open_clip

    from open_clip_triplet.losses import TripletClipLoss

    model = open_clip.create_model("ViT-B-32", output_dict=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

    def step(loss, rows):
        images, texts = torch.randn(rows, 3, 224, 224), torch.randint(1, 40000, (rows, 77))

        def run():
            optimizer.zero_grad()
            loss(**model(images, texts)).backward()
            optimizer.step()

        return run

    peers = {
        "clip": step(open_clip.loss.ClipLoss(), samples), "triplet": step(TripletClipLoss(), 2 * samples),
        "clip_twice": step(open_clip.loss.ClipLoss(), 2 * samples),
    }
    for run in peers.values():
        run()  # costs of first use
    return take_turns(peers, rounds)


def surroundings(threads: int) -> dict:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "command": " ".join(["python tools/bench_loss.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "processor": f"{names[0].split(':', 1)[1].strip()}, {threads} threads" if names else "unknown",
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def table(result: dict) -> str:
    """The result as markdown."""
    around = result["surroundings"]
    lines = [
        "# The TripletCLIP loss, measured",
        "",
        f"`{around['command']}`, {around['date']}, commit {around['commit']}: {around['processor']}, "
        f"torch {around['torch']}, D = {WIDTH}, float32, load average {around['load_average']:.1f} at the "
        "start. Peers take turns in one run; the fastest round counts.",
        "",
        "| forward + backward | target | time | additional peak memory |",
        "|---|---|---|---|",
    ]
    for samples, runs in result["losses"].items():
        ours, plain = runs["ours"], runs["plain"]
        lines.append(
            f"| triplet loss, N = {samples:,}, against the paper's pseudo-code | time ≤ 1×, memory ≤ 1/8 at "
            f"16,384 | {ours['seconds'] / plain['seconds']:.2f}× ({ours['seconds']:.2f} / "
            f"{plain['seconds']:.2f} s; {ours['cpu_seconds'] / plain['cpu_seconds']:.2f}× processor time) | "
            f"1/{plain['peak_bytes'] / max(ours['peak_bytes'], 1):.1f} "
            f"({ours['peak_bytes'] / 2**20:,.0f} / {plain['peak_bytes'] / 2**20:,.0f} MiB) |"
        )
    for samples, runs in result["steps"].items():
        ours, clip = runs["triplet"], runs["clip"]
        lines.append(
            f"| ViT-B-32 training step, {samples} samples, against OpenCLIP's CLIP | time ≤ 2.05× | "
            f"{ours['seconds'] / clip['seconds']:.2f}× ({ours['seconds']:.2f} / {clip['seconds']:.2f} s; "
            f"{ours['cpu_seconds'] / clip['cpu_seconds']:.2f}× processor time); "
            f"{ours['seconds'] / runs['clip_twice']['seconds']:.2f}× CLIP's on as many images and captions | |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 16384], metavar="N")
    parser.add_argument("--step-samples", type=int, nargs="*", default=[64], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each; 1 above N = 8,192")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--out", type=Path, default=ROOT / "tools" / "results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    result: dict = {"surroundings": surroundings(args.threads), "losses": {}, "steps": {}}
    bench_loss(64, 1)  # costs of first use
    jobs = [("losses", bench_loss, size) for size in args.sizes]
    for part, bench, size in [*jobs, *(("steps", bench_step, size) for size in args.step_samples)]:
        result[part][size] = bench(size, args.rounds if size <= 8192 else 1)
        write_text_durably(args.out / "bench_loss.md", table(result))
        write_text_durably(args.out / "bench_loss.json", json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
