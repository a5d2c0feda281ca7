"""Measure the TripletCLIP loss against the paper's pseudo-code and print one table.

    python tools/bench_loss.py                      # about 10 minutes on two quiet cores, 12 GB
    python tools/bench_loss.py --sizes 512 1024     # a quick look

Every figure is a ratio of runs of this command: peers take turns and the fastest round counts.
Results go to tools/results/bench_loss.{json,md}. Memory is read from /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WIDTH = 512
#: N x N products (multiply-adds N * N * D) of each form, forward and backward
PLAIN_PRODUCTS, FEWEST_PRODUCTS = 18, 12


# ---- time and memory --------------------------------------------------------------------------------


def plain_loss(x, y, x2, y2, scale):
    """The paper's pseudo-code (appendix B): six N x N products, two cross-entropies per term."""
    import torch
    import torch.nn.functional as F

    def negclip(images, captions):
        labels = torch.arange(len(images), device=images.device)
        per_image = scale * images @ captions.T
        per_text = scale * captions[: len(images)] @ images.T
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

    return negclip(x, torch.cat([y, y2])) + negclip(x2, torch.cat([y2, y]))


def product_only(x, y, x2, y2, scale):
    """The matrix products of the one-matrix form and nothing else; not a loss."""
    import torch

    queries, keys = torch.cat([x, x2]).detach(), torch.cat([y, y2]).detach()
    for start in range(0, len(queries), 2048):
        block = queries[start : start + 2048]
        logits = block @ keys.T
        logits @ keys
        logits.T @ block


def take_turns(forms, n: int, rounds: int, device: str = "cpu", dtype: str = "float32") -> dict[str, dict]:
    """Forward and backward of each form in turn, so that a disturbance hits none of them alone.

    The fastest round counts: seconds, seconds of processor time, and additional peak bytes.
    """
    import torch
    import torch.nn.functional as F

    from open_clip_triplet.losses import triplet_clip_loss

    losses = {"plain": plain_loss, "ours": triplet_clip_loss, "products": product_only}
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)

    def features(rows):
        unit = [F.normalize(torch.randn(rows, WIDTH, device=device), dim=1) for _ in range(4)]
        return [rows.to(getattr(torch, dtype)).requires_grad_() for rows in unit]

    def step(form, inputs):
        value = losses[form](*inputs, scale)
        if value is not None:
            torch.autograd.grad(value, (*inputs, scale))
        if device == "cuda":
            torch.cuda.synchronize()

    torch.manual_seed(0)
    inputs, best = features(n), {}
    for form in forms:
        step(form, features(64))  # costs of first use
    for form in list(forms) * rounds:
        forget_peak(device)
        before, wall, processor = memory(device), time.perf_counter(), time.process_time()
        step(form, inputs)
        run = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - processor,
            "peak_bytes": memory(device, peak=True) - before,
        }
        seen = best.setdefault(form, run)
        best[form] = {name: min(value, seen[name]) for name, value in run.items()}
        best[form]["peak_bytes"] = max(run["peak_bytes"], seen["peak_bytes"])
        times = f"{run['seconds']:.2f} s, processor {run['cpu_seconds']:.2f} s"
        say(f"{form}, N = {n}, {dtype}: {times}, {run['peak_bytes'] / 2**20:.0f} MiB")
    return best


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def forget_peak(device: str) -> None:
    """Forget the peak so far."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc holds back would hide a later peak
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: str, peak: bool = False) -> int:
    """Bytes of this process (resident) or of torch on the GPU, now or at the peak."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index(field) + 1])


# ---- bytes between ranks ----------------------------------------------------------------------------


def bytes_between_ranks(world_size: int, samples: int) -> dict:
    """Bytes one rank receives in a step, with ring algorithms: counted by stand-ins for the collectives.

    The stand-ins see the calls and sizes of a real step (rank 0 of ``world_size``, its neighbours
    played by copies of itself); compared with gathering four sets of features and scattering their
    gradients back, as OpenCLIP does with two.
    """
    from unittest import mock

    import torch
    import torch.nn.functional as F
    from torch import distributed as dist

    from open_clip_triplet.losses import TripletClipLoss

    received, others = 0, world_size - 1

    def all_gather(output, rows):
        nonlocal received
        received += others * rows.numel() * rows.element_size()
        output.copy_(rows.repeat(world_size, 1))

    def reduce_scatter(output, rows):
        nonlocal received
        received += others * output.numel() * output.element_size()
        output.copy_(rows[: len(output)])

    def all_reduce(tensor, operation=None):
        nonlocal received
        received += 2 * others / world_size * tensor.numel() * tensor.element_size()

    stand_ins = {
        "all_gather_into_tensor": all_gather,
        "reduce_scatter_tensor": reduce_scatter,
        "all_reduce": all_reduce,
    }
    with mock.patch.multiple(dist, **stand_ins):
        rows = [F.normalize(torch.randn(2 * samples, WIDTH), dim=1).requires_grad_() for _ in range(2)]
        TripletClipLoss(world_size=world_size)(*rows, torch.tensor(1.0)).backward()
    four_sets = 2 * 4 * samples * WIDTH * 4 * others
    return {"ranks": world_size, "samples": samples, "ours": received, "four_sets": four_sets}


# ---- rows that need a GPU ---------------------------------------------------------------------------


def gpu_loss_row() -> dict:
    """N = 32,768 in bfloat16: against the products alone, and against the plain form's memory."""
    n = 32768
    runs = take_turns(("ours", "products"), n, 5, device="cuda", dtype="bfloat16")
    products = runs["products"]
    rate = FEWEST_PRODUCTS * 2 * n * n * WIDTH / products["seconds"]
    return {"n": n, **runs, "rate_flops": rate, "plain_logits_bytes": PLAIN_PRODUCTS // 3 * n * n * 4}


def gpu_step_row() -> dict:
    """ViT-B/32, 1,024 samples, bfloat16 autocast: a TripletCLIP step over a CLIP step."""
    import open_clip
    import torch

    from open_clip_triplet.losses import ClipHnLoss, TripletClipLoss

    model = open_clip.create_model("ViT-B-32", device="cuda", output_dict=True)

    def seconds(loss, rows):
        images = torch.randn(rows, 3, 224, 224, device="cuda")
        texts = torch.randint(1, 40000, (rows, 77), device="cuda")
        best = float("inf")
        for _ in range(8):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                total = loss(**model(images, texts))
            total.backward()
            model.zero_grad()
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    return {"clip_seconds": seconds(ClipHnLoss(), 1024), "triplet_seconds": seconds(TripletClipLoss(), 2048)}


# ---- the table --------------------------------------------------------------------------------------


def surroundings() -> dict:
    """What the numbers depend on."""
    import torch

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "processor": f"{names[0]}, {os.cpu_count()} cores" if names else platform.processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def run(args) -> Iterator[dict]:
    """All measurements; the result so far is yielded after each, for a long run may be cut short."""
    config = {**vars(args), "out": args.out.name, "width": WIDTH}
    result = {"config": config, "surroundings": surroundings(), "growth": {}}
    result["command"] = " ".join(["python tools/bench_loss.py", *sys.argv[1:]])
    result["ranks"] = [bytes_between_ranks(ranks, args.rank_samples) for ranks in (2, 4, 8)]
    if result["surroundings"]["gpu"]:
        result["gpu_loss"], result["gpu_step"] = gpu_loss_row(), gpu_step_row()
    for n in args.sizes:
        peers = ("plain", "ours") if n in (args.compare_at, args.sizes[-1]) else ("ours",)
        result["growth"][n] = take_turns(peers, n, args.rounds if n <= args.compare_at else 1)
        result["surroundings"]["load_average_after"] = os.getloadavg()[0]
        yield result


def table(result: dict) -> str:
    """The result as markdown."""
    growth, around = result["growth"], result["surroundings"]
    rows = ["| | target | measured |", "|---|---|---|"]
    for n, runs in growth.items():
        if "plain" not in runs:
            continue
        ours, plain = runs["ours"], runs["plain"]
        time_ratio = ours["seconds"] / plain["seconds"]
        cpu_ratio = ours["cpu_seconds"] / plain["cpu_seconds"]
        memory_ratio = plain["peak_bytes"] / max(ours["peak_bytes"], 1)
        target = "≤ 0.55× time" if n == result["config"]["compare_at"] else "≤ 1.0× time, ≤ 1/8 memory"
        rows.append(
            f"| forward + backward, N = {n:,}, float32, CPU | {target} | {time_ratio:.2f}× time "
            f"({ours['seconds']:.2f} s / {plain['seconds']:.2f} s; {cpu_ratio:.2f}× processor time), "
            f"1/{memory_ratio:.1f} memory ({ours['peak_bytes'] / 2**20:,.0f} / "
            f"{plain['peak_bytes'] / 2**20:,.0f} MiB) |"
        )
    for n, runs in growth.items():
        ours = runs["ours"]
        rows.append(
            f"| growth, N = {n:,} | memory ∝ N, time ∝ N² | {ours['peak_bytes'] / n / 2**10:.1f} KiB per "
            f"sample, {ours['cpu_seconds'] / n**2 * 1e9:.0f} ns processor time per pair of samples |"
        )
    rows += gpu_rows(result)
    for row in result["ranks"]:
        rows.append(
            f"| {row['ranks']} ranks, {row['samples']} samples each | counted, against four feature sets "
            f"gathered | {row['ours'] / 2**20:.2f} / {row['four_sets'] / 2**20:.2f} MiB received per rank "
            f"({row['ours'] / row['four_sets']:.2f}×) |"
        )
    head = [
        "# The TripletCLIP loss, measured",
        "",
        f"`{result['command']}`, {around['date']}, commit {around['commit']}: {around['processor']}, "
        f"{result['config']['threads']} threads, torch {around['torch']}, D = {result['config']['width']}, "
        f"load average {around['load_average']:.1f} before and {around['load_average_after']:.1f} after. "
        "Baseline: the paper's pseudo-code (six N × N products, two cross-entropies per term). Processor "
        "time is what to compare where other work shared the machine.",
        "",
    ]
    return "\n".join(head + rows) + "\n"


def gpu_rows(result: dict) -> list[str]:
    names = (
        "| GPU, N = 32,768, bfloat16 | ≤ 1.1× the products alone, ≤ 1/16 memory |",
        "| GPU, ViT-B/32, bfloat16, 1,024 samples | TripletCLIP step ≤ 2.02× CLIP step |",
    )
    if "gpu_loss" not in result:
        return [f"{name} not measured: no GPU |" for name in names]
    loss, step = result["gpu_loss"], result["gpu_step"]
    ours, products = loss["ours"], loss["products"]
    return [
        f"{names[0]} {ours['seconds'] / products['seconds']:.2f}× ({ours['seconds'] * 1e3:.0f} ms; floor "
        f"{products['seconds'] * 1e3:.0f} ms at {loss['rate_flops'] / 1e12:.0f} TFLOP/s), 1/"
        f"{loss['plain_logits_bytes'] / ours['peak_bytes']:.0f} of the plain form's logits |",
        f"{names[1]} {step['triplet_seconds'] / step['clip_seconds']:.3f}×, "
        f"{1024 / step['triplet_seconds']:,.0f} samples/s |",
    ]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384], metavar="N")
    parser.add_argument("--compare-at", type=int, default=4096, metavar="N", help="besides the largest size")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each form up to --compare-at")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--rank-samples", type=int, default=128, help="samples per simulated rank")
    parser.add_argument("--out", type=Path, default=ROOT / "tools" / "results")
    args = parser.parse_args(argv)
    args.sizes.sort()
    import torch

    from open_clip_triplet.files import write_text_durably

    torch.set_num_threads(args.threads)
    for result in run(args):
        text = table(result)
        write_text_durably(args.out / "bench_loss.md", text)
        write_text_durably(args.out / "bench_loss.json", json.dumps(result, indent=1, default=str) + "\n")
    print(text)


if __name__ == "__main__":
    main()
