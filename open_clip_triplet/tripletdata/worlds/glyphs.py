"""A world in which a bag of words is enough, until it is not: four coloured signs in a picture.

"a red anchor, a blue star, a green moon and a white house": the captions of a random batch differ in
many words, so that a model can tell them apart without knowing *which* sign is red. Its hard negatives
ask for that:

==============  ===============================================
swap_att        the colours of two signs are exchanged
replace_att     one sign has a colour that no other has
replace_obj     one sign is replaced by a sign that is not there
==============  ===============================================

A fifth of all pairs of signs never meet in a training picture; every held-out picture shows such a
pair. The signs are drawn from DejaVu Sans, the font that matplotlib ships.

Reference for the categories: Hsieh et al., SugarCrepe, NeurIPS 2023.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import random
import zlib
from pathlib import Path
from typing import NamedTuple

from open_clip_triplet.errors import PipelineError

#: name -> character. Words of one token each in OpenCLIP's tokenizer, silhouettes that differ at 13 pixels
GLYPHS = {
    "airplane": "✈", "anchor": "⚓", "arrow": "➔", "atom": "⚛", "castle": "♜", "circle": "●", "cloud": "☁",
    "clover": "♣", "coffee": "☕", "comet": "☄", "cross": "✖", "crown": "♛", "diamond": "♦", "dollar": "$",
    "envelope": "✉", "euro": "€", "face": "☺", "flag": "⚑", "flower": "✿", "gear": "⚙", "hammer": "⚒",
    "hand": "✌", "heart": "♥", "horse": "♞", "house": "⌂", "infinity": "∞", "keyboard": "⌨", "lightning": "⚡",
    "mars": "♂", "moon": "☾", "music": "♫", "omega": "Ω", "peace": "☮", "pencil": "✎", "phone": "☎",
    "question": "?", "scales": "⚖", "scissors": "✂", "skull": "☠", "snowflake": "❄", "snowman": "☃", "star": "★",
    "steam": "♨", "sun": "☀", "swords": "⚔", "tick": "✔", "triangle": "▲", "umbrella": "☂", "venus": "♀",
    "wheelchair": "♿",
}
COLOURS = {
    "red": (214, 34, 34), "green": (30, 150, 60), "blue": (48, 84, 230), "yellow": (248, 222, 44),
    "purple": (140, 50, 180), "cyan": (60, 208, 220), "orange": (246, 140, 22), "pink": (246, 140, 186),
    "white": (246, 246, 246),
}
CATEGORIES = ("swap_att", "replace_att", "replace_obj")
#: how often a negative of each category is the one that is drawn: exchanged colours are what is to be learned
DRAWN = (3, 1, 1)
#: signs in a picture, one in each quarter
THINGS = 4
#: width of a sign as a share of its quarter's
FILL = 0.82
_NAMES = list(GLYPHS)


class Thing(NamedTuple):
    """A sign and its colour, by name."""

    glyph: str
    colour: str

    def __str__(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.glyph}"


#: the things of a picture, in the order of its caption
Scene = tuple[Thing, ...]


def is_held_out(a: str, b: str) -> bool:
    """A fifth of the pairs of signs, in any order; by their names, so that adding a sign changes no other pair."""
    return zlib.crc32(" ".join(sorted((a, b))).encode()) % 5 == 0


def is_unseen(scene: Scene) -> bool:
    """Whether two of a picture's signs never meet in training."""
    names = [thing.glyph for thing in scene]
    return any(is_held_out(a, b) for at, a in enumerate(names) for b in names[:at])


def draw_scene(rng: random.Random) -> Scene:
    """Four different signs of four different colours."""
    return tuple(map(Thing, rng.sample(_NAMES, THINGS), rng.sample(list(COLOURS), THINGS)))


def describe(scene: Scene) -> str:
    """"a red anchor, a blue star, a green moon and a white house"."""
    *first, last = map(str, scene)
    return f"{', '.join(first)} and {last}"


def hard_negative(rng: random.Random, scene: Scene, category: str) -> tuple[Scene, str]:
    """The scene with one thing changed, and which word class changed (``colour`` or ``glyph``)."""
    things = list(scene)
    if category == "swap_att":
        a, b = rng.sample(range(THINGS), 2)
        things[a] = things[a]._replace(colour=scene[b].colour)
        things[b] = things[b]._replace(colour=scene[a].colour)
        return tuple(things), "colour"
    at = rng.randrange(THINGS)
    if category == "replace_att":
        used = {thing.colour for thing in scene}
        things[at] = things[at]._replace(colour=rng.choice([name for name in COLOURS if name not in used]))
        return tuple(things), "colour"
    used = {thing.glyph for thing in scene}
    things[at] = things[at]._replace(glyph=rng.choice([name for name in _NAMES if name not in used]))
    return tuple(things), "glyph"


def units(rng: random.Random, scene: Scene) -> list[dict[str, str]]:
    """Each thing in words, and its sign in the colour of another thing of the scene: ``--units`` reads them."""
    others = [rng.choice([other.colour for other in scene if other is not thing]) for thing in scene]
    return [
        {"text": str(thing), "neg_text": str(thing._replace(colour=colour))} for thing, colour in zip(scene, others)
    ]


def make_sample(index: int, *, split: str, seed: int, image_size: int) -> dict:
    """Sample ``index`` of a split, ready for a ShardWriter. It depends on its arguments alone.

    The first negative is drawn; it has the positive's places, light and word order, so that nothing
    differs but what its caption says. ``json`` has the caption in other orders, one negative caption
    of each category, and the parts of the caption (``units``), each beside its sign in another's colour.
    """
    rng = random.Random(f"{seed}/glyphs/{split}/{index}")
    unseen = split == "val"
    scene = draw_scene(rng)
    while is_unseen(scene) != unseen:
        scene = draw_scene(rng)
    negatives = []
    first = rng.choices(CATEGORIES, weights=DRAWN)[0]
    for category in (first, *(name for name in CATEGORIES if name != first)):
        other, changed = hard_negative(rng, scene, category)
        while is_unseen(other) != unseen:
            other, changed = hard_negative(rng, scene, category)
        negatives.append((category, changed, other))
    category, changed, negative = negatives[0]
    orders = [rng.sample(scene, THINGS) for _ in range(3)]
    jitter = rng.random()
    return {
        "__key__": f"{split}{index:08d}",
        "jpg": render(scene, random.Random(jitter), image_size),
        "neg.jpg": render(negative, random.Random(jitter), image_size),
        "txt": describe(scene),
        "neg.txt": describe(negative),
        "json": {
            "captions": [describe(scene), *(describe(tuple(order)) for order in orders)],
            "neg_captions": [describe(other) for _, _, other in negatives],
            "neg_categories": [name for name, _, _ in negatives],
            "units": units(random.Random(f"{seed}/glyphs/{split}/{index}/units"), scene),
            "category": category,
            "changed": changed,
            "t2i": "shapes/glyphs",
            "seed": seed,
        },
    }


def render(scene: Scene, rng: random.Random, size: int) -> bytes:
    """The scene as a ``size`` × ``size`` JPEG: signs in random quarters, with jitter in place and light."""
    from PIL import Image

    cell = size // 2
    width = max(1, round(FILL * cell))
    ground = rng.randrange(40)
    image = Image.new("RGB", (size, size), (ground,) * 3)
    for thing, quarter in zip(scene, rng.sample(range(THINGS), THINGS)):
        mask = _mask(GLYPHS[thing.glyph], width)
        light = rng.uniform(0.8, 1.0)
        colour = tuple(round(light * channel) for channel in COLOURS[thing.colour])
        left, top = (cell * k + rng.randint(0, cell - width) for k in (quarter % 2, quarter // 2))
        image.paste(colour, (left, top), mask)
    buffer = io.BytesIO()
    # full colour resolution: at this size subsampled colours bleed into each other
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


@functools.cache
def _mask(character: str, width: int):
    """The character's coverage as an L image of ``width`` × ``width``, centred, its longer side filled."""
    from PIL import Image, ImageDraw, ImageFont

    big = 8 * width
    drawn = Image.new("L", (2 * big, 2 * big))
    font = ImageFont.truetype(_font(), big)
    ImageDraw.Draw(drawn).text((big // 2, big // 4), character, font=font, fill=255)
    drawn = drawn.crop(drawn.getbbox())
    side = max(drawn.size)
    square = Image.new("L", (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((width, width), Image.Resampling.LANCZOS)


@functools.cache
def _font() -> str:
    """DejaVu Sans of the installed matplotlib, which need not be imported for it."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            return str(path)
    raise PipelineError("--world glyphs draws with the font that matplotlib ships: pip install matplotlib")
