#!/usr/bin/env python
"""Everything that needs a GPU, measured by one command in about ten minutes on one card. Downloads nothing.

Six parts, each a process of its own whose result is kept, so that the command goes on where it was
stopped and a part that fails leaves the others standing:

  loss     forward and backward at N = 1k to 64k in bf16: the plain form, OpenCLIP's ClipLoss, Inf-CL
           (pip install inf-cl) and MemoryEfficientCLIP (pip install memeff) where they are installed
  step     a training step of ViT-B-32: triplet beside clip; samples/s, memory, share of the loss
  data     images/s of whole training runs with 1 and 16 workers, beside what the GPU takes
  images   an SDXL-Turbo-shaped pipeline with random weights: images/s with and without overlap
  captions vLLM on a random-weight model of 7B shape, where it is installed
  tests    every test marked gpu

  python tools/gpu_report.py --output gpu_report              # OUT/gpu_report.md and .json
  python tools/gpu_report.py --output gpu_report --parts loss step
  python tools/gpu_report.py --output tiny --tiny             # small shapes, for a machine without a GPU
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from open_clip_triplet.files import write_text_durably  # noqa: E402

WIDTH = 512
#: seconds after which a part is given up, so that the others get their turn
PART_SECONDS = 240
NOTE = "not installed"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(run: Callable[[], Any], rounds: int = 5) -> dict[str, float] | str:
    """Median seconds of a round and peak bytes above what was there before; a string where it does not fit."""
    try:
        run()
        synchronize()
        gc.collect()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            run()
            synchronize()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    result = {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}
    if torch.cuda.is_available():
        result["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return result


# --- loss -----------------------------------------------------------------------------------------


def part_loss(tiny: bool) -> dict:
    """Forward and backward: TripletCLIP on N samples; the ``clip`` columns are the CLIP loss on N pairs."""


    sizes = (64, 256) if tiny else (1024, 4096, 16384, 65536)
    dtype = torch.float32 if device() == "cpu" else torch.bfloat16
    found: dict[str, dict] = {}
    for n in sizes:
        found[str(n)] = {}
        for name, run in _loss_peers(n, dtype).items():
            try:
                found[str(n)][name] = measure(run)
            except Exception as error:  # a peer's own fault must not end the part
                found[str(n)][name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return {"dtype": str(dtype).removeprefix("torch."), "width": WIDTH, "sizes": found}


def _loss_peers(n: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """{peer: forward and backward of n samples}."""
    from open_clip.loss import ClipLoss

    from bench_loss import plain_loss
    from open_clip_triplet.losses import clip_loss, triplet_clip_loss

    torch.manual_seed(0)
    x, y, x2, y2 = (
        F.normalize(torch.randn(n, WIDTH, device=device()), dim=1).to(dtype).requires_grad_() for _ in range(4)
    )
    scale = torch.tensor(1 / 0.07, device=device(), requires_grad=True)
    peers: dict[str, tuple] = {
        "triplet, plain form": (plain_loss, x, y, x2, y2, scale),
        "triplet, ours": (triplet_clip_loss, x, y, x2, y2, scale),
        "clip, OpenCLIP": (ClipLoss(), x, y, scale),
        "clip, ours": (clip_loss, x, y, scale),
    }
    if torch.cuda.is_available():  # these need Triton
        with contextlib.suppress(ImportError):
            from inf_cl import cal_inf_loss

            peers["clip, Inf-CL"] = (lambda x, y, scale: cal_inf_loss(x, y, scale=scale), x, y, scale)
        with contextlib.suppress(ImportError):
            from memeff import MemoryEfficientCLIPLoss

            # its temperature is a number, so the scale gets no gradient
            fused = MemoryEfficientCLIPLoss(temperature=0.07, normalized_inputs=True, stable=False)
            peers["clip, MemoryEfficientCLIP"] = (fused, x, y)
    return {
        name: lambda loss=loss, inputs=inputs: torch.autograd.grad(loss(*inputs), inputs)
        for name, (loss, *inputs) in peers.items()
    }


# --- step -----------------------------------------------------------------------------------------


def part_step(tiny: bool) -> dict:
    """A whole optimizer step on random input: triplet on the same samples as clip."""
    import open_clip

    from open_clip_triplet.losses import TripletClipLoss

    model_name, samples = ("shapes-tiny", 16) if tiny else ("ViT-B-32", 512)
    open_clip.add_model_config(str(ROOT / "examples" / "configs"))
    model = open_clip.create_model(model_name, output_dict=True).to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    size, length = model.visual.image_size, model.context_length
    size = size if isinstance(size, int) else size[0]
    found: dict[str, Any] = {"model": model_name, "samples": samples}
    losses = {"clip": (open_clip.loss.ClipLoss(), 1), "triplet": (TripletClipLoss(), 2)}
    for name, (loss, group) in losses.items():
        images = torch.randn(samples * group, 3, size, size, device=device())
        texts = torch.randint(1, 40000, (samples * group, length), device=device())

        def step(loss=loss, images=images, texts=texts) -> None:
            with torch.autocast(device(), dtype=torch.bfloat16):
                total = sum(loss(**model(images, texts), output_dict=True).values())
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

        found[name] = measure(step)
        features = [
            F.normalize(torch.randn(samples * group, model.text_projection.shape[1], device=device()), dim=1)
            .requires_grad_() for _ in range(2)
        ]
        scale = torch.tensor(14.3, device=device(), requires_grad=True)

        def alone(loss=loss, features=features, scale=scale) -> None:
            with torch.autocast(device(), dtype=torch.bfloat16):
                total = sum(loss(*features, scale, output_dict=True).values())
            torch.autograd.grad(total, (*features, scale))

        found[f"{name} loss alone"] = measure(alone)
    return found


# --- data -----------------------------------------------------------------------------------------


def part_data(tiny: bool) -> dict:
    """Whole training runs on photographs' worth of JPEGs; samples/s from the trainer's own log."""
    import numpy as np
    from PIL import Image

    from open_clip_triplet.shards import ShardWriter, write_sizes

    width, height, samples, batch, workers = (64, 48, 512, 16, (1, 2)) if tiny else (512, 384, 20_480, 256, (1, 16))
    model = "shapes-tiny" if tiny else "ViT-B-32"
    found: dict[str, Any] = {"image": f"{width}x{height}", "batch_size": batch, "model": model}
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        pictures = []
        for _ in range(64):  # a few hundred kinds of smooth noise compress about as photographs do
            noise = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            noise.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            pictures.append(buffer.getvalue())
        sizes = {}
        for shard in range(32):
            name = f"{shard:05d}.tar"
            with ShardWriter(Path(folder) / name) as writer:
                for number in range(samples // 32):
                    picture = pictures[(shard + number) % 64]
                    writer.write({"__key__": f"{shard:05d}{number:05d}", "jpg": picture, "neg.jpg": picture,
                                  "txt": f"a picture {number}", "neg.txt": f"no picture {number}"})
            sizes[name] = samples // 32
        write_sizes(folder, sizes)
        for count in workers:
            for loss in ("clip", "triplet"):
                found[f"{loss}, {count} workers"] = _trained(folder, loss, count, model, batch, tiny)
    return found


def _trained(folder: str, loss: str, workers: int, model: str, batch: int, tiny: bool) -> dict:
    """Median seconds of a batch, of which waiting for data, over the log lines after the first."""
    steps = 12 if tiny else 60
    command = [
        sys.executable, "-m", "open_clip_triplet.train", "--loss", loss, "--model", model,
        "--model-config", str(ROOT / "examples" / "configs"), "--train-data", f"{folder}/<00000..00031>.tar",
        "--batch-size", str(batch), "--total-steps", str(steps), "--workers", str(workers),
        "--image-decoder", "fast", "--precision", "amp_bf16" if device() == "cuda" else "fp32", "--warmup", "4",
        "--log-every-n-steps", "4", "--logs", f"{folder}/logs", "--name", f"{loss}{workers}", "--save-frequency", "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = re.findall(r"Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+)", done.stdout + done.stderr)[2:]
    if done.returncode or not lines:
        return {"failed": (done.stdout + done.stderr).strip().splitlines()[-3:]}
    seconds = statistics.median(float(line[1]) for line in lines)
    images = batch * (2 if loss == "triplet" else 1)
    waiting = statistics.median(float(line[0]) for line in lines)
    return {"seconds": seconds, "waiting_for_data": waiting, "images_per_second": images / seconds}


# --- images ---------------------------------------------------------------------------------------


def part_images(tiny: bool) -> dict:
    """One step, no guidance, 512 px: images/s drawn alone, drawn and written in turn, and overlapped."""
    from open_clip_triplet.threads import map_ahead
    from open_clip_triplet.tripletdata.run.overlap import ahead
    from open_clip_triplet.tripletdata.run.pictures import encode

    pipe, size, batch, count = _sdxl(tiny)
    captions = [f"a photograph of {n} red dogs on a green table" for n in range(count)]

    def draw():
        for start in range(0, count, batch):
            generators = [torch.Generator("cpu").manual_seed(n) for n in range(start, start + batch)]
            with torch.inference_mode():
                yield from pipe(
                    captions[start : start + batch], generator=generators, num_inference_steps=1,
                    guidance_scale=0.0, height=size, width=size,
                ).images

    def write(image) -> bytes:
        return encode(image, size // 2, 95)

    ways = {
        "drawn alone": lambda: [None for _ in draw()],
        "drawn and encoded in turn": lambda: [write(image) for image in draw()],
        "overlapped": lambda: list(map_ahead(write, ahead(draw(), 4 * batch), 2, 8)),
    }
    found: dict[str, Any] = {"size": size, "batch": batch, "images": count}
    for name, run in ways.items():
        one = measure(run, rounds=1 if tiny else 2)
        found[name] = {**one, "images_per_second": count / one["seconds"]} if isinstance(one, dict) else one
    return found


def _sdxl(tiny: bool):
    """A pipeline with SDXL's (or tiny) shapes and random weights, its size, batch and number of images."""
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    dtype = torch.float32 if device() == "cpu" else torch.float16

    def text(kind, width: int, layers: int, heads: int, projection: int, act: str = "quick_gelu"):
        return kind(CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
            projection_dim=projection, hidden_act=act, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
        ))

    with torch.device(device()):
        if tiny:
            first, second = text(CLIPTextModel, 32, 2, 4, 32), text(CLIPTextModelWithProjection, 32, 2, 4, 32)
            channels, depth, cross, heads, projection = (32, 64), (1, 1), 64, (2, 4), 80
            down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
            vae_channels: tuple[int, ...] = (32, 64)
        else:  # stabilityai/sdxl-turbo's config.json files
            first = text(CLIPTextModel, 768, 12, 12, 768)
            second = text(CLIPTextModelWithProjection, 1280, 32, 20, 1280, "gelu")
            channels, depth, cross, heads, projection = (320, 640, 1280), (1, 2, 10), 2048, (5, 10, 20), 2816
            down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
            up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
            vae_channels = (128, 256, 512, 512)
        unet = UNet2DConditionModel(
            block_out_channels=channels, layers_per_block=1 if tiny else 2, sample_size=64,
            attention_head_dim=heads, down_block_types=down, up_block_types=up, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8 if tiny else 256,
            transformer_layers_per_block=depth, cross_attention_dim=cross,
            projection_class_embeddings_input_dim=projection,
        )
        vae = AutoencoderKL(
            block_out_channels=vae_channels, latent_channels=4, layers_per_block=1 if tiny else 2,
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels), sample_size=512,
        )
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(), unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"), force_zeros_for_empty_prompt=True,
    ).to(device(), dtype)
    pipe.set_progress_bar_config(disable=True)
    return (pipe, 64, 4, 8) if tiny else (pipe, 512, 16, 256)


def _clip_tokenizer():
    """transformers' CLIP tokenizer over the byte-pair table that OpenCLIP ships."""
    import gzip

    import open_clip.tokenizer as bundled
    from transformers import CLIPTokenizer

    merges = gzip.open(bundled.default_bpe()).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bundled.bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters]
    words += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


# --- captions -------------------------------------------------------------------------------------


def part_captions(tiny: bool) -> dict:
    """Captions/s of vLLM with dummy weights of Mistral-7B's shape, prompts that share their beginning."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError:
        return {"vllm": NOTE}
    from transformers import LlamaConfig

    shape = (64, 128, 2, 4, 4) if tiny else (4096, 14336, 32, 32, 8)
    hidden, inner, layers, heads, kv_heads = shape
    count = 16 if tiny else 2000
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, vocab_size=49408, architectures=["LlamaForCausalLM"],
        ).save_pretrained(folder)
        _clip_tokenizer().save_pretrained(folder)
        llm = LLM(folder, load_format="dummy", max_model_len=512, enable_prefix_caching=True)
        prompt = "Rewrite the caption so that it means something else. " * 12
        prompts = [f"{prompt} Caption {n}: a red dog on a table." for n in range(count)]
        sampling = SamplingParams(max_tokens=24, ignore_eos=True)
        started = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
    return {"captions": count, "tokens_each": 24, "seconds": seconds, "captions_per_second": count / seconds}


# --- tests ----------------------------------------------------------------------------------------


def part_tests(tiny: bool) -> dict:
    """The tests marked gpu; where there is no GPU they say so and skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    return {"status": done.returncode, "summary": lines[-1] if lines else done.stderr.strip()[-300:]}


PARTS = {
    "loss": part_loss, "step": part_step, "data": part_data, "images": part_images, "captions": part_captions,
    "tests": part_tests,
}


# --- the report -----------------------------------------------------------------------------------


def surroundings() -> dict:
    """Card, driver, versions, commit and date."""
    import open_clip

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        except OSError:
            return ""

    query = "--query-gpu=name,driver_version,memory.total"
    card = output("nvidia-smi", query, "--format=csv,noheader") if torch.cuda.is_available() else ""
    return {
        "card": card or f"no GPU: {platform.machine()}, {os.cpu_count()} cores",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "commit": output("git", "describe", "--always", "--dirty") or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }


def show(value: Any) -> str:
    """A measurement as a cell."""
    if not isinstance(value, dict):
        return str(value)
    if "failed" in value:
        return "failed: " + " ".join(value["failed"])[:120]
    words = [f"{1000 * value['seconds']:.2f} ms"] if "seconds" in value else []
    if "peak_bytes" in value:
        words.append(f"{value['peak_bytes'] / 2**20:,.0f} MiB")
    if "images_per_second" in value:
        words.append(f"{value['images_per_second']:,.0f} images/s")
    if "waiting_for_data" in value:
        words.append(f"{value['waiting_for_data'] / max(value['seconds'], 1e-9):.0%} waiting for data")
    return ", ".join(words)


def markdown(report: dict) -> str:
    around, parts = report["surroundings"], report["parts"]
    lines = [
        "# The GPU report's small form: that it runs, not a result" if report["tiny"] else "# Measured on a GPU",
        "",
        f"{around['card']}; {around['cores']} cores; torch {around['torch']}, open_clip {around['open_clip']}; "
        f"commit {around['commit']}; {around['date']}. `{report['command']}`",
        "",
    ]
    for name, content in parts.items():
        lines += [f"## {name}", "", (PARTS[name].__doc__ or "").strip().splitlines()[0], ""]
        if "sizes" in content:
            peers = list(next(iter(content["sizes"].values())))
            lines += [f"{content['dtype']}, D = {content['width']}; median of 5.", ""]
            lines += [f"| N | {' | '.join(peers)} |", "|---|" + "---|" * len(peers)]
            for n, row in content["sizes"].items():
                lines.append(f"| {int(n):,} | {' | '.join(show(row.get(peer, '')) for peer in peers)} |")
        else:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {key} | {show(value)} |" for key, value in content.items()]
        if "triplet loss alone" in content and isinstance(content["triplet"], dict):
            share = content["triplet loss alone"]["seconds"] / content["triplet"]["seconds"]
            ratio = content["triplet"]["seconds"] / content["clip"]["seconds"]
            lines += ["", f"The loss is {share:.1%} of triplet's step; triplet's step is {ratio:.2f} of clip's."]
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the report and its parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts (all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes: shows that it runs, on a CPU too")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(PARTS[args.one](args.tiny)))
        return 0
    if not torch.cuda.is_available() and not args.tiny:
        print("no GPU can be seen here; --tiny runs small shapes on a CPU", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.parts if not _part(name, args)]
    parts = {name: json.loads(path.read_text()) for name in PARTS if (path := args.output / f"{name}.json").exists()}
    report = {
        "command": f"python tools/gpu_report.py{' --tiny' if args.tiny else ''}", "tiny": args.tiny,
        "surroundings": surroundings(), "parts": parts,
    }
    write_text_durably(args.output / "gpu_report.json", json.dumps(report, indent=1) + "\n")
    write_text_durably(args.output / "gpu_report.md", markdown(report))
    print(f"{args.output}/gpu_report.md: {len(parts)} of {len(PARTS)} parts")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _part(name: str, args) -> bool:
    """Run one part in a process of its own, or keep what is there."""
    path = args.output / f"{name}.json"
    if path.exists():
        print(f"{name}: done before", flush=True)
        return True
    started = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), "--output", str(args.output), "--one", name]
    try:
        done = subprocess.run(
            command + ["--tiny"] * args.tiny, stdout=subprocess.PIPE, text=True, timeout=PART_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {PART_SECONDS} s", file=sys.stderr)
        return False
    seconds = time.perf_counter() - started
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        print(f"{name}: failed after {seconds:.0f} s", file=sys.stderr)
        return False
    content = json.loads(lines[-1])
    write_text_durably(path, json.dumps(content, indent=1) + "\n")
    print(f"{name}: {seconds:.0f} s", flush=True)
    return not content.get("status")


if __name__ == "__main__":
    sys.exit(main())
