"""Scenes of the embedded shape world: what may be in one, how it is described, how it is minimally changed.

A hard negative changes one thing of a scene. The changes carry SugarCrepe's names:

==============  =========================================================================
replace_obj     another shape
replace_att     another colour, size or count
replace_rel     another place on the wall, or another relation between two things
swap_att        two colours exchanged: of thing and wall, or of two things
swap_obj        two shapes exchanged (scenes of two things only)
add_att         a plain thing becomes striped or dotted
add_obj         a frame appears around the wall
==============  =========================================================================

Reference for the categories: Hsieh et al., SugarCrepe, NeurIPS 2023.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

COLOURS = {
    "red": (214, 34, 34), "orange": (246, 140, 22), "yellow": (248, 222, 44), "green": (30, 150, 60),
    "cyan": (60, 208, 220), "blue": (32, 66, 206), "purple": (126, 40, 162), "pink": (246, 140, 186),
    "white": (246, 246, 246), "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
PATTERNS = ("striped", "dotted")
COUNTS = ("", "a", "two", "three", "four")
PLACES = ("left", "right", "top", "bottom")
RELATIONS = ("to the left of", "to the right of", "above", "below")
WORLDS = ("single", "scenes", "glyphs")

#: share of things with a pattern, and of walls with a frame, in a positive scene
EXTRA = 0.25


@dataclass(frozen=True)
class Thing:
    """One to four alike shapes: ``two small red stars``. ``pattern`` is empty for a plain thing."""

    shape: str
    colour: str
    size: str
    count: int = 1
    pattern: str = ""

    def __str__(self) -> str:
        plural = "" if self.count == 1 else "es" if self.shape == "cross" else "s"
        # "a" is right before every word that can come next: small, large
        words = (COUNTS[self.count], self.size, self.pattern, self.colour, self.shape + plural)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Scene:
    """One thing at a ``place`` of a coloured wall, or two things with a relation as their ``place``."""

    things: tuple[Thing, ...]
    place: str
    wall: str
    frame: str = ""

    @property
    def is_unseen(self) -> bool:
        """Whether some thing has one of the combinations of colour and shape kept out of training."""
        return any(is_held_out(thing.colour, thing.shape) for thing in self.things)


def is_held_out(colour: str, shape: str) -> bool:
    """A fifth of the 80 combinations, spread so that every colour and shape is seen in others."""
    return (list(COLOURS).index(colour) + 2 * SHAPES.index(shape)) % 5 == 0


def draw_scene(rng: random.Random, world: str) -> Scene:
    """A random scene. ``single`` has one thing; ``scenes`` has one or two, and counts up to four."""
    two = world == "scenes" and rng.random() < 0.5
    wall, *colours = rng.sample(list(COLOURS), 3)
    shapes = rng.sample(SHAPES, 2)
    things = tuple(
        Thing(
            shape=shapes[i],
            colour=colours[i],
            size=rng.choice(SIZES),
            count=rng.randint(1, 4) if world == "scenes" else 1,
            pattern=rng.choice(PATTERNS) if rng.random() < EXTRA else "",
        )
        for i in range(2 if two else 1)
    )
    frame = rng.choice([c for c in COLOURS if c != wall]) if rng.random() < EXTRA else ""
    return Scene(things, rng.choice(RELATIONS if two else PLACES), wall, frame)


# --- descriptions ---------------------------------------------------------------------------------


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe(scene: Scene) -> list[str]:
    """Every phrasing of a scene, in a fixed order: phrasing k of two scenes differs only in what differs."""
    wall = _a(f"{scene.wall} wall") + (f" with {_a(scene.frame)} frame" if scene.frame else "")
    if len(scene.things) == 1:
        thing, where = str(scene.things[0]), f"at the {scene.place}"
        return [
            f"{thing} {where} of {wall}",
            f"{wall} showing {thing} {where}",
            f"{where} of {wall} there is {thing}",
            f"a picture of {thing} painted {where} of {wall}",
        ]
    first, second = map(str, scene.things)
    return [
        f"{first} {scene.place} {second} on {wall}",
        f"{wall} showing {first} {scene.place} {second}",
        f"on {wall} there is {first} {scene.place} {second}",
        f"a picture of {first} painted {scene.place} {second} on {wall}",
    ]


# --- hard negatives -------------------------------------------------------------------------------


def _other(rng: random.Random, values, *present: str | int):
    return rng.choice([value for value in values if value not in present])


def _with_thing(scene: Scene, index: int, **changes) -> Scene:
    things = list(scene.things)
    things[index] = replace(things[index], **changes)
    return replace(scene, things=tuple(things))


def _replace_obj(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str]:
    shape = _other(rng, SHAPES, *(thing.shape for thing in scene.things))
    return _with_thing(scene, rng.randrange(len(scene.things)), shape=shape), "shape"


def _replace_att(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str]:
    index = rng.randrange(len(scene.things))
    value: str | int
    what = rng.choice(("colour", "size", "count") if world == "scenes" else ("colour", "size"))
    if what == "colour":
        value = _other(rng, COLOURS, scene.wall, *(thing.colour for thing in scene.things))
    elif what == "size":
        value = _other(rng, SIZES, scene.things[index].size)
    else:
        value = _other(rng, range(1, 5), scene.things[index].count)
    return _with_thing(scene, index, **{what: value}), what


def _replace_rel(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str]:
    places = PLACES if len(scene.things) == 1 else RELATIONS
    return replace(scene, place=_other(rng, places, scene.place)), "place"


def _swap_att(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str] | None:
    if len(scene.things) == 1:
        if scene.frame == scene.things[0].colour:
            return None  # the wall would take its frame's colour, and the frame would vanish
        swapped = _with_thing(scene, 0, colour=scene.wall)
        return replace(swapped, wall=scene.things[0].colour), "colour"
    first, second = scene.things
    return _with_thing(_with_thing(scene, 0, colour=second.colour), 1, colour=first.colour), "colour"


def _swap_obj(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str] | None:
    if len(scene.things) == 1:
        return None
    first, second = scene.things
    return _with_thing(_with_thing(scene, 0, shape=second.shape), 1, shape=first.shape), "shape"


def _add_att(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str] | None:
    plain = [i for i, thing in enumerate(scene.things) if not thing.pattern]
    if not plain:
        return None
    return _with_thing(scene, rng.choice(plain), pattern=rng.choice(PATTERNS)), "pattern"


def _add_obj(rng: random.Random, scene: Scene, world: str) -> tuple[Scene, str] | None:
    if scene.frame:
        return None
    return replace(scene, frame=_other(rng, COLOURS, scene.wall)), "frame"


_EDITS: dict[str, Callable[..., tuple[Scene, str] | None]] = {
    "replace_obj": _replace_obj,
    "replace_att": _replace_att,
    "replace_rel": _replace_rel,
    "swap_att": _swap_att,
    "swap_obj": _swap_obj,
    "add_att": _add_att,
    "add_obj": _add_obj,
}
CATEGORIES = tuple(_EDITS)


def hard_negatives(
    rng: random.Random, scene: Scene, world: str, count: int, *, unseen: bool
) -> list[tuple[str, str, Scene]]:
    """Up to ``count`` minimal changes of a scene as (category, what changed, scene), no category twice.

    Categories come in random order, so the first is spread over those that the scene admits.
    With ``unseen`` False, changes that would show a held-out combination are tried again and then
    left out; ``unseen`` True admits any.
    """
    found: list[tuple[str, str, Scene]] = []
    for category in rng.sample(CATEGORIES, len(CATEGORIES)):
        for _ in range(4):
            edit = _EDITS[category](rng, scene, world)
            if edit is None or unseen or not edit[0].is_unseen:
                break
        if edit is not None and (unseen or not edit[0].is_unseen):
            found.append((category, edit[1], edit[0]))
        if len(found) == count:
            break
    return found
