"""A contact sheet: samples as one PNG, each a positive and its hard negative with their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from open_clip_triplet.errors import ImageError
from open_clip_triplet.files import write_whole
from open_clip_triplet.inspect.samples import ViewSample
from open_clip_triplet.tripletdata.run.pictures import decode

#: samples on a sheet by default; pixels of an image, of the space around it, of a line of text
SHEET, SIDE, GAP, LINE = 24, 200, 12, 15
#: lines of a caption and characters of a line; samples side by side
LINES, CHARACTERS, COLUMNS = 4, 30, 3
PAPER, INK, SOFT, NEGATIVE = "#ffffff", "#1c1e21", "#5a6068", "#b3261e"


def draw_sheet(samples: Iterable[ViewSample], title: str = "", columns: int = COLUMNS):
    """The sheet as a ``PIL.Image`` in RGB; None for no samples."""
    from PIL import Image, ImageDraw

    samples = list(samples)
    if not samples:
        return None
    columns = min(columns, len(samples))
    width, height = 2 * SIDE + 3 * GAP, SIDE + LINES * LINE + 2 * LINE + 2 * GAP
    top = 2 * GAP + LINE if title else GAP
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * width, top + rows * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), title, INK, _font(14))
    for number, sample in enumerate(samples):
        x, y = (number % columns) * width + GAP, top + (number // columns) * height
        _half(sheet, draw, x, y, sample.image, sample.captions, INK)
        _half(sheet, draw, x + SIDE + GAP, y, sample.neg_image, sample.neg_captions, NEGATIVE)
        facts = [sample.category, *(f"{name} {value:.3f}" for name, value in sample.scores.items())]
        line = " · ".join(filter(None, [*facts, sample.key]))
        draw.text((x, y + SIDE + LINES * LINE + LINE // 2), _fit(line, 64), SOFT, _font(11))
    return sheet


def write_sheet(samples: Iterable[ViewSample], path: str | Path, title: str = "") -> int:
    """Write the sheet as PNG; returns the number of samples on it."""
    samples = list(samples)
    sheet = draw_sheet(samples, title)
    with write_whole(path) as file:
        sheet.save(file, "PNG", optimize=True)
    return len(samples)


def _half(sheet, draw, x: int, y: int, data: bytes | None, captions: list[str], ink: str) -> None:
    from PIL import ImageOps

    if data is not None:
        try:
            picture = ImageOps.contain(decode(data, SIDE).rgb, (SIDE, SIDE))  # small ones are enlarged
            sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        except ImageError:
            draw.text((x + 4, y + SIDE // 2), "cannot be decoded", SOFT, _font(11))
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="#dcdcd8")
    text = _fit(captions[0] if captions else "no caption", CHARACTERS * LINES)
    for number, line in enumerate(textwrap.wrap(text, CHARACTERS)[:LINES]):
        draw.text((x, y + SIDE + 3 + number * LINE), line, ink, _font(11))


def _fit(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _font(size: int):
    """matplotlib's DejaVu Sans, which has many scripts, where it is installed; else Pillow's own."""
    from PIL import ImageFont

    try:
        import matplotlib

        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)
