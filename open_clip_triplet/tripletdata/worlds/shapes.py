"""An embedded world of coloured shapes: paired shards that need no download and teach in minutes.

Writes ``OUTPUT/train/{00000..}.tar`` and ``OUTPUT/val/00000.tar``. Training scenes never show the
held-out combinations of colour and shape, and every validation scene shows one. The same options
give the same bytes. Each sample's json has all phrasings of the scene (``captions``), the negative
captions (``neg_captions``, one per category), the category of each (``neg_categories``) and of the
rendered one (``category``, ``changed``).

  triplet-shards shapes --output shapes --samples 20000
  triplet-shards shapes --output scenes --samples 100000 --world scenes --image-size 64
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.options import positive
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.worlds import glyphs, scenes
from open_clip_triplet.tripletdata.worlds.scenes import Scene, Thing

HELP = "an embedded world of coloured shapes, with hard negatives"

#: part of the configuration: raise it whenever the same options give other bytes
WORLD_VERSION = 2

_CENTRES = {  # of the region that a thing is drawn in, as shares of the image's width and height
    "left": [(0.29, 0.5)],
    "right": [(0.71, 0.5)],
    "top": [(0.5, 0.29)],
    "bottom": [(0.5, 0.71)],
    "to the left of": [(0.28, 0.5), (0.72, 0.5)],
    "to the right of": [(0.72, 0.5), (0.28, 0.5)],
    "above": [(0.5, 0.28), (0.5, 0.72)],
    "below": [(0.5, 0.72), (0.5, 0.28)],
}
_SCALE = {"small": 0.13, "large": 0.23}
_CELLS = {  # offsets of one to four alike shapes from the centre of their region
    1: [(0.0, 0.0)],
    2: [(-0.11, -0.11), (0.11, 0.11)],
    3: [(-0.11, -0.11), (0.11, -0.11), (0.0, 0.11)],
    4: [(-0.11, -0.11), (0.11, -0.11), (-0.11, 0.11), (0.11, 0.11)],
}


# --- rendering ------------------------------------------------------------------------------------


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape inside the unit circle, y downwards; the circle and the ring have none."""
    if shape == "star":
        turns = [(k * math.pi / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        return [(r * math.sin(a), -r * math.cos(a)) for a, r in turns]
    if shape == "heart":
        angles = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
            for t in angles
        ]
    w = 0.34
    outlines: dict[str, list[tuple[float, float]]] = {
        "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
        "triangle": [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
        "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
        "cross": [
            (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w),
            (-w, -w),
        ],
    }
    return outlines[shape]


def _draw_thing(draw, thing: Thing, x: float, y: float, r: float, wall: tuple[int, int, int]) -> None:
    """One shape of radius ``r`` at (x, y), in pixels of the drawing. Patterns let the wall show through."""
    colour = scenes.COLOURS[thing.colour]
    if thing.shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if thing.shape == "ring":
            draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=wall)
    else:
        draw.polygon([(x + r * u, y + r * v) for u, v in _outline(thing.shape)], fill=colour)
    if thing.pattern == "striped":
        for v in (-0.6, -0.1, 0.4):
            draw.rectangle((x - r, y + v * r, x + r, y + (v + 0.2) * r), fill=wall)
    elif thing.pattern == "dotted":
        for u in (-0.45, 0.0, 0.45):
            for v in (-0.45, 0.0, 0.45):
                d = r * 0.14
                draw.ellipse((x + u * r - d, y + v * r - d, x + u * r + d, y + v * r + d), fill=wall)


def render(scene: Scene, rng: random.Random, size: int) -> bytes:
    """The scene as a ``size`` × ``size`` JPEG, with a little jitter in place, radius and light."""
    from PIL import Image, ImageDraw

    big = size * (4 if size <= 64 else 2)  # drawn larger and reduced, for smooth edges
    light = rng.uniform(0.85, 1.0)
    red, green, blue = (int(light * c) for c in scenes.COLOURS[scene.wall])
    wall = red, green, blue
    image = Image.new("RGB", (big, big), wall)
    draw = ImageDraw.Draw(image)
    for thing, (cx, cy) in zip(scene.things, _CENTRES[scene.place]):
        cx, cy = cx + rng.uniform(-0.03, 0.03), cy + rng.uniform(-0.03, 0.03)
        radius = _SCALE[thing.size] * rng.uniform(0.92, 1.08) * (1.0 if thing.count == 1 else 0.46)
        for dx, dy in _CELLS[thing.count]:
            _draw_thing(draw, thing, (cx + dx) * big, (cy + dy) * big, radius * big, wall)
    if scene.frame:
        draw.rectangle((0, 0, big - 1, big - 1), outline=scenes.COLOURS[scene.frame], width=big // 16)
    buffer = io.BytesIO()
    # full colour resolution: at 32 pixels, subsampled colours bleed into each other
    image.reduce(big // size).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


# --- samples and shards ---------------------------------------------------------------------------


def make_sample(index: int, *, world: str, split: str, seed: int, image_size: int) -> dict:
    """Sample ``index`` of a split, ready for a ShardWriter. It depends on its arguments alone.

    The negative shares the positive's jitter, so that nothing differs but what its caption says.
    """
    if world == "glyphs":
        return glyphs.make_sample(index, split=split, seed=seed, image_size=image_size)
    rng = random.Random(f"{seed}/{world}/{split}/{index}")
    unseen = split == "val"
    negatives: list = []
    while not negatives:
        scene = scenes.draw_scene(rng, world)
        if scene.is_unseen == unseen:
            negatives = scenes.hard_negatives(rng, scene, world, 4, unseen=unseen)
    captions = scenes.describe(scene)
    phrasing = rng.randrange(len(captions))
    jitter = rng.random()
    category, changed, negative = negatives[0]
    neg_captions = [scenes.describe(other)[phrasing] for _, _, other in negatives]
    return {
        "__key__": f"{split}{index:08d}",
        "jpg": render(scene, random.Random(jitter), image_size),
        "neg.jpg": render(negative, random.Random(jitter), image_size),
        "txt": captions[phrasing],
        "neg.txt": neg_captions[0],
        "json": {
            "captions": [captions[phrasing], *captions[:phrasing], *captions[phrasing + 1 :]],
            "neg_captions": neg_captions,
            "neg_categories": [name for name, _, _ in negatives],
            "category": category,
            "changed": changed,
            "t2i": f"shapes/{world}",
            "seed": seed,
        },
    }


@dataclass
class Shapes(Stage):
    """Stage without input: task k writes the samples of its ``rows``. Settings are those of one split."""

    name: ClassVar[str] = "shapes"
    world: str = "single"
    split: str = "train"
    samples: int = 20_000
    shards: int = 16
    image_size: int = 32
    seed: int = 0
    version: int = WORLD_VERSION

    def tasks(self) -> list[ShardTask]:
        """Shard k of n holds samples k·N/n up to (k+1)·N/n."""
        edges = [k * self.samples // self.shards for k in range(self.shards + 1)]
        return [
            ShardTask(k, (), rows, source="{}[{}:{}]".format(self.split, *rows))
            for k, rows in enumerate(zip(edges, edges[1:]))
        ]

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        assert task.rows is not None
        indices = range(*task.rows)
        for number, index in enumerate(indices, 1):
            made = make_sample(
                index, world=self.world, split=self.split, seed=self.seed, image_size=self.image_size
            )
            stats.read += 1
            stats.report(number / len(indices))
            yield Sample(
                made["__key__"], made["txt"], made["jpg"], neg_text=made["neg.txt"],
                neg_image=made["neg.jpg"], meta=made["json"],
            )


def build(
    output: str | os.PathLike, *, samples: int, val_samples: int, shards: int, world: str, image_size: int,
    seed: int, workers: int,
) -> None:
    """Write both splits. Finished shards are kept; ``sizes.json`` comes last.

    Raises:
        PipelineError: the folder was made with other options, or holds shards of others.
    """
    for split, total, count in (("train", samples, shards), ("val", val_samples, 1)):
        stage = Shapes(world, split, total, count, image_size, seed)
        engine = Local(workers, cpu=True)
        run = run_stage(stage, stage.tasks(), files.join(output, split), engine)
        if run.failed:
            raise PipelineError("; ".join(run.failed.values()), 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="folder to write train/ and val/ into")
    parser.add_argument("--samples", type=positive, default=20_000, help="training samples (%(default)s)")
    parser.add_argument("--val-samples", type=positive, default=1_000, help="held-out samples (%(default)s)")
    parser.add_argument("--shards", type=positive, default=16, help="training shards (%(default)s)")
    parser.add_argument("--world", choices=scenes.WORLDS, default="single",
                        help="single: one shape on a wall (default). scenes: counts, and relations of two. "
                        "glyphs: four coloured signs, whose hard negatives exchange colours")
    parser.add_argument("--image-size", type=positive, default=32, help="pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=positive, default=2, help="processes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    shards = min(args.shards, args.samples)
    build(
        args.output, samples=args.samples, val_samples=args.val_samples, shards=shards, world=args.world,
        image_size=args.image_size, seed=args.seed, workers=args.workers,
    )
    print(f"{args.output}/train: {args.samples} samples in {shards} shards, no held-out combination")
    print(f"{args.output}/val: {args.val_samples} samples, each with a held-out combination")
    return 0
