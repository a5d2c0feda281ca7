#!/usr/bin/env python
"""Show what the stream promises, with real training runs on CPUs; no download.

    python tools/prove_stream.py                                     # elastic, kills: about 15 minutes on two cores
    python tools/prove_stream.py --parts faults --shards 'mined/*.tar'   # paired shards of real images

elastic: one run of --steps steps, global batch 32, 8 data streams, as 1 process x 1 worker, 1 x 4, 2 x 2 and
4 x 2, and begun on 1 process, continued on 4, ended on 2: the same samples and crops in every global batch, and
the same weights to float32 rounding.
kills: SIGKILL at ten random moments, start-up and saving included; resumed each time with --resume latest, the run ends
with the weights of one that was left alone.
faults: a truncated JPEG in every shard, a shard of 0 bytes, one that its server does not have (404), and a SIGTERM;
resumed on other workers. Every pass accounts for each of its samples.

Writes tools/results/stream.md (--page).
"""

from __future__ import annotations

import argparse
import functools
import glob
import hashlib
import http.server
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from open_clip_triplet.files import write_text_durably  # noqa: E402
from open_clip_triplet.shards import ShardWriter, read_samples, write_sizes  # noqa: E402

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
BATCH, STREAMS = 32, 8
TRAIN = [sys.executable, "-m", "open_clip_triplet.train"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("elastic", "kills", "faults"), default=["elastic", "kills"])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the elastic runs (default 60)")
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs (default 10)")
    parser.add_argument("--shards", nargs="+", default=[], help="paired shards for faults; folders and patterns too")
    parser.add_argument("--output", type=Path, default=Path("stream-proof"), help="working folder, made anew")
    parser.add_argument("--page", type=Path, default=ROOT / "tools/results/stream.md")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("train", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.record:
        return record(args.record, args.train)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    (args.output / "proof-model.json").write_text(json.dumps(MODEL))
    said = [{"elastic": elastic, "kills": kills, "faults": faults}[part](args) for part in args.parts]
    header = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {date.today()}; commit {commit()}"
    text = "\n\n".join(["# The stream, shown", f"`python tools/prove_stream.py`, {header}", *said])
    write_text_durably(args.page, text + "\n")
    print(text)
    return 0


# -- one run that is recorded --------------------------------------------------------------------


def record(folder: Path, argv: list[str]) -> int:
    """Train, and note the digest of every row of every batch that this rank gets."""
    from open_clip_triplet import train
    from open_clip_triplet.data.loader import PairedLoader

    plain = PairedLoader.__iter__

    def recorded(self):
        with open(folder / f"{int(os.environ.get('RANK', 0))}.jsonl", "a") as file:
            for images, texts in plain(self):
                rows = [hashlib.md5(row.numpy().tobytes()).hexdigest() for part in (images, texts) for row in part]
                file.write(json.dumps(rows) + "\n")
                file.flush()
                yield images, texts

    PairedLoader.__iter__ = recorded  # type: ignore[method-assign]
    return train.main(argv)


def run(args, name: str, processes: int = 1, **flags) -> list[list[str]]:
    """A training run; the digests of each of its global batches, images before captions."""
    folder = args.output / f"{name}-batches-{len(list(args.output.glob(f'{name}-batches-*')))}"
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    own = [str(Path(__file__).resolve()), "--record", str(folder), "--", *train_flags(args, name, **flags)]
    finish([*command, *own])
    ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.iterdir())]
    half = [len(rank[0]) // 2 for rank in ranks]
    return [
        [row for at in (slice(0, half[0]), slice(half[0], None)) for rank in ranks for row in rank[step][at]]
        for step in range(len(ranks[0]))
    ]


def train_flags(args, name: str, **flags) -> list[str]:
    """The command line of a run on the tiny model."""
    common = {
        "loss": "triplet", "model": "proof-model", "model-config": args.output / "proof-model.json",
        "image-decoder": "fast", "device": "cpu", "dist-backend": "gloo", "precision": "fp32", "lr": 1e-3, "warmup": 5,
        "logs": args.output, "name": name, "resume": "latest", "log-every-n-steps": 1, "seed": 1,
    }
    return [word for flag, value in {**common, **flags}.items() for word in (f"--{flag}", str(value))]


def finish(command: list[str]) -> None:
    """Run a command to its end, which must be a good one."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    check(done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def newest(args, name: str) -> dict:
    path = max((args.output / name / "checkpoints").glob("epoch_*.pt"), key=lambda path: path.stat().st_mtime)
    return torch.load(path, weights_only=True)


def weights(args, name: str) -> dict[str, torch.Tensor]:
    state = newest(args, name)["state_dict"]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in state.items():
        if key.endswith("attn.in_proj_bias"):  # keys' biases cancel in a softmax: Adam blows up their rounding
            value.view(3, -1)[1] = 0
    return state


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def drawn_shards(args) -> str:
    """Paired shards of the world of shapes."""
    folder = args.output / "shapes"
    if not folder.exists():
        command = [sys.executable, str(ROOT / "tools/make_shards.py"), "shapes", "--samples", "1000", "--shards", "7"]
        finish([*command, "--val-samples", "100", "--output", str(folder)])
    return str(folder / "train")


# -- the three parts -----------------------------------------------------------------------------


def elastic(args) -> str:
    """The same run on other numbers of processes and workers."""
    flags = {"train-data": drawn_shards(args), "data-streams": STREAMS, "total-steps": args.steps, "epochs": 3}
    layouts = ((1, 1), (1, 4), (2, 2), (4, 2))
    batches = {}
    for processes, workers in layouts:
        name = f"elastic-{processes}x{workers}"
        batches[name] = run(args, name, processes, **{**flags, "batch-size": BATCH // processes, "workers": workers})
        print(f"{name}: {len(batches[name])} global batches", file=sys.stderr)
    parts: list[list[str]] = []
    for epoch, (processes, workers) in enumerate(((1, 2), (4, 1), (2, 2)), 1):
        share = {**flags, "total-steps": args.steps * epoch // 3, "epochs": epoch}
        share |= {"batch-size": BATCH // processes, "workers": workers, "lr-scheduler": "const"}
        parts += run(args, "elastic-1-4-2", processes, **share)
    whole = run(args, "elastic-const", 1, **{**flags, "batch-size": BATCH, "workers": 1, "lr-scheduler": "const"})
    first = batches["elastic-1x1"]
    columns = ("processes x workers", "global batches as under 1 x 1", "largest difference of a weight")
    lines = ["## Elastic", f"{args.steps} steps, global batch {BATCH}, P = {STREAMS}.", ""]
    lines += [f"| {' | '.join(columns)} |", "|---|--:|--:|"]
    pairs = [(name[-3:].replace("x", " x "), batches[name], first, name, "elastic-1x1") for name in batches]
    pairs += [("begun on 1, continued on 4, ended on 2", parts, whole, "elastic-1-4-2", "elastic-const")]
    for shown, ours, others, name, other in pairs:
        same = sum(map(list.__eq__, ours, others))
        difference = largest_difference(weights(args, name), weights(args, other))
        check(same == args.steps == len(ours) and difference < 1e-3, f"{shown}: {same} equal, {difference:.1e}")
        positions = [newest(args, run)["triplet"]["stream"] for run in (name, other)]
        check(positions[0] == positions[1], f"{shown}: positions and counts are {positions[0]}, not {positions[1]}")
        lines.append(f"| {shown} | {same} of {args.steps} | {difference:.1e} |")
    return "\n".join([
        *lines, "", "A batch is equal when the digests of all its rows are: pixels of the crops, and tokens of the "
        "captions. Positions and counts in the checkpoints are equal too. The last row is compared with an "
        "undisturbed run of its schedule.",
    ])


def kills(args) -> str:
    """SIGKILL at random moments."""
    steps, epochs = 30 * args.kills, 10 * args.kills
    flags = {"train-data": drawn_shards(args), "data-streams": 4, "total-steps": steps, "epochs": epochs, "workers": 2,
             "batch-size": BATCH, "save-most-recent": "", "save-frequency": 0}
    argv = [word for word in train_flags(args, "calm", **flags) if word]
    begun = time.monotonic()
    finish([*TRAIN, *argv])
    seconds, moments, rng = time.monotonic() - begun, [], random.Random(0)
    log = args.output / "killed" / "out.log"
    argv = [word for word in train_flags(args, "killed", **flags) if word]
    for _ in range(args.kills):
        process = subprocess.Popen(
            [*TRAIN, *argv], env=environment(), start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if rng.random() > 0.2:  # most of them while it trains, the others while it starts
            lines = count(log)
            wait(lambda: count(log) > lines or process.poll() is not None)  # noqa: B023
        time.sleep(rng.uniform(0, seconds / args.kills))
        check(process.poll() is None, "the run was over before it could be killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moments.append(count(log))
        print(f"killed after {moments[-1]} lines of the log", file=sys.stderr)
    finish([*TRAIN, *argv])
    difference = largest_difference(weights(args, "killed"), weights(args, "calm"))
    check(difference == 0, f"after the kills weights differ by {difference}")
    return "\n".join([
        "## Kills", f"{steps} steps in {epochs} epochs of 3. SIGKILL to the whole process group at {args.kills} random "
        f"moments, when the log had {', '.join(map(str, moments))} lines of steps; resumed each time. "
        f"Largest difference of a weight to the run that was left alone: {difference:g}.",
    ])


def faults(args) -> str:
    """Everything wrong at once, on real images."""
    patterns = [os.path.join(spec, "*.tar") if os.path.isdir(spec) else spec for spec in args.shards]
    paths = sorted(path for pattern in patterns for path in glob.glob(pattern))
    check(len(paths) >= 4, "--shards: at least four paired shards")
    local, remote, sizes = args.output / "local", args.output / "remote", {}
    remote.mkdir()
    local.mkdir()
    for path in paths:
        samples = list(read_samples(path))
        sizes[os.path.basename(path)] = len(samples)
        samples[0]["jpg"] = samples[0]["jpg"][: len(samples[0]["jpg"]) // 2]
        with ShardWriter(local / os.path.basename(path)) as writer:
            for sample in samples:
                writer.write({key: value for key, value in sample.items() if key != "__url__"})
    names = list(sizes)
    (local / names[1]).write_bytes(b"")
    (local / names[2]).unlink()
    write_sizes(local, sizes)
    write_sizes(remote, sizes)
    handler = functools.partial(QuietHandler, directory=str(remote))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [str(local / name) for name in names]
    urls[2] = f"http://127.0.0.1:{server.server_port}/{names[2]}"
    total = sum(sizes.values())
    flags = {"train-data": "::".join(urls), "dataset-type": "webdataset", "batch-size": BATCH, "data-streams": 4}
    flags["epochs"] = 3
    log = args.output / "faults" / "out.log"
    process = subprocess.Popen([*TRAIN, *train_flags(args, "faults", **flags, workers=4)], env=environment(),
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(lambda: "Train Epoch: 1 " in read(log) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    check(process.wait() == 0, f"the run that was told to stop ended with {process.returncode}: see {log}")
    stopped = len(re.findall("Stopped by SIGTERM; saved", read(log)))
    finish([*TRAIN, *train_flags(args, "faults", **flags, workers=1)])
    lines = re.findall(r"Data, (pass \d+: [\d,]+ of .*)\.$", read(log), re.M)
    check(stopped == 1 and len(lines) >= 2, f"{stopped} stops, {len(lines)} passes: see {log}")
    for line in lines:
        seen, *dropped = line.split(": ")[1].split(", ")
        numbers = [int(text.split(" of ")[0].split()[-1].replace(",", "")) for text in (seen, *dropped)]
        check(sum(numbers) == total, f"{line}: that is {sum(numbers)} of {total}")
    return "\n".join([
        "## Faults", f"{total:,} paired samples in {len(names)} shards, `--image-decoder fast`: in every shard the "
        f"first JPEG cut in half, {names[1]} of 0 bytes, {names[2]} at a server that answers 404. SIGTERM in the "
        "second epoch with 4 workers: saved, exit status 0. Resumed with 1 worker to the end; each pass accounts "
        "for all samples:", "",
        *(f"- {line}" for line in lines),
    ])


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without a line for every request."""

    def log_message(self, *args) -> None:
        return


def check(true: bool, what: str) -> None:
    if not true:
        raise SystemExit(f"not shown: {what}")


def wait(condition: Callable[[], bool], timeout: float = 600) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        check(time.monotonic() < deadline, "nothing happened for ten minutes")
        time.sleep(0.02)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def count(log: Path) -> int:
    """Steps in a log."""
    return read(log).count("Train Epoch: ")


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
