"""A page to look through samples: offline, with filters, sorting and marks that a build can act on.

Positive and negative stand side by side, with the words that changed highlighted. Thumbnails go into a
folder beside the page (gallery_files/), or into the page itself with --single-file. Marks stay in the
browser; "Save marks" downloads marks.csv, which `triplet-shards filter --drop-list marks.csv` takes.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from open_clip_triplet.errors import UsageError
from open_clip_triplet.files import write_whole
from open_clip_triplet.inspect import page
from open_clip_triplet.inspect.diff import caption_diff
from open_clip_triplet.inspect.samples import (
    ViewSample,
    add_shard_arguments,
    check_sample,
    find_shards,
    read_view_samples,
    set_name,
)
from open_clip_triplet.inspect.thumbnails import Thumbnail, with_thumbnails

#: what the halves of a sample are called
LABELS = ("Positive", "Hard negative")
#: samples that a page shows without --sample
MOST = 10_000
#: samples up to which thumbnails are large; the sides in pixels of large ones, of small ones, and of small
#: ones inside the page: 10,000 samples stay below 150 MB
FEW, LARGE, SMALL, INSIDE = 1_000, 320, 192, 160
#: characters of a sample's json beyond which its details are cut; what is shown elsewhere
DETAILS, SHOWN = 4_000, ("captions", "neg_captions", "neg_categories", "category", "scores")

EXAMPLES = """examples:
  triplet-inspect gallery triplets/ --html gallery.html
  triplet-inspect gallery 'cc3m/{00000..00331}.tar' --sample 500 --seed 1 --html cc3m.html --single-file
  triplet-inspect gallery triplets/ --sample 24 --png sheet.png
  triplet-inspect gallery triplets/ --rejected --source cc3m/ --html rejected.html
"""


def add_arguments(parser) -> None:
    add_shard_arguments(parser)
    parser.add_argument("--html", metavar="FILE", help="the page to write")
    parser.add_argument("--png", metavar="FILE", help="a contact sheet (of 24 samples unless --sample)")
    parser.add_argument("--single-file", action="store_true", help="thumbnails inside the page")
    parser.add_argument(
        "--rejected", action="store_true",
        help="what was dropped instead, and why: SHARDS is the output folder of a build or of a stage",
    )
    parser.add_argument(
        "--source", nargs="+", metavar="INPUT", help="with --rejected: the build's --input, for captions and images"
    )
    parser.add_argument("--title", help="heading (default: the name of SHARDS)")
    parser.add_argument(
        "--thumbnail", type=int, metavar="PIXELS",
        help=f"longer side of thumbnails (default {LARGE}; beyond {FEW:,} samples {SMALL}, inside the page {INSIDE})",
    )


def run(args) -> int:
    check_sample(args)
    if not (args.html or args.png):
        raise UsageError("nothing to write; give --html FILE or --png FILE")
    if args.thumbnail is not None and not 16 <= args.thumbnail <= 2048:
        raise UsageError(f"--thumbnail {args.thumbnail}: must be 16 to 2048 pixels")
    if args.source and not args.rejected:
        raise UsageError("--source goes with --rejected")
    title = args.title or set_name(args.shards) + (": dropped" if args.rejected else "")
    if args.png:
        from open_clip_triplet.inspect.sheet import SHEET, write_sheet

        print(f"{args.png}: {write_sheet(_samples(args, SHEET), args.png, title)} samples", file=sys.stderr)
    if args.html:
        written = write_gallery(
            _samples(args, MOST), args.html, title=title, pixels=args.thumbnail, single_file=args.single_file,
            labels=("Source", "Refused answer") if args.rejected else LABELS,
        )
        print(f"{args.html}: {written:,} samples", file=sys.stderr)
        if written == MOST and not args.sample:
            print(f"  the first {MOST:,}; --sample N takes N at random of all", file=sys.stderr)
    return 0


def _samples(args, first: int) -> Iterator[ViewSample]:
    """The samples that the options ask for; without ``--sample`` the ``first`` ones."""
    if args.rejected:
        from open_clip_triplet.inspect.rejected import read_rejected

        return read_rejected(args.shards, args.source, sample=args.sample, first=first, seed=args.seed)
    shards = find_shards(args.shards)
    return read_view_samples(shards, sample=args.sample, first=None if args.sample else first, seed=args.seed)


def write_gallery(
    samples: Iterable[ViewSample], html: str | Path, *, title: str, pixels: int | None = None,
    single_file: bool = False, limit: int = MOST, labels: tuple[str, str] = LABELS,
    refresh: int | None = None,
) -> int:
    """Write the page and its thumbnails; returns the number of samples on it.

    Args:
        html: the page; thumbnails go to ``<stem>_files`` beside it unless ``single_file``.
        pixels: longer side of the thumbnails; None chooses by the number of samples.
        limit: samples beyond are left out.
        labels: what the left and the right half of a sample are called.
        refresh: seconds after which a browser loads the page again; None for a page that is final.

    Raises:
        OSError: not writable.
    """
    html = Path(html)
    samples = itertools.islice(samples, limit)
    if pixels is None:
        head = list(itertools.islice(samples, FEW + 1))
        pixels = LARGE if len(head) <= FEW else INSIDE if single_file else SMALL
        samples = itertools.chain(head, samples)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if single_file else html.with_name(f"{html.stem}_files")
        entries = []
        for number, (sample, *pair) in enumerate(with_thumbnails(samples, pixels)):
            entries.append(_entry(sample, *pair))
            for name, thumbnail in zip(names(number), pair):
                if thumbnail.webp:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(thumbnail.webp)
        if not single_file:
            _remove_stale(folder, len(entries))
        data = {
            "title": title, "labels": labels, "samples": entries,
            "folder": None if single_file else folder.name,
        }
        inside = _inside(folder, len(entries)) if single_file else ()
        with write_whole(html) as file:
            for part in page.render("gallery", title=title, data=data, inside=inside, refresh=refresh):
                file.write(part.encode("utf-8", "replace"))
    return len(entries)


def names(number: int) -> tuple[str, str]:
    """File names of a sample's two thumbnails, a thousand samples a folder. gallery.js knows them too.

    >>> names(1234)
    ('1/1234.webp', '1/1234n.webp')
    """
    return f"{number // 1000}/{number}.webp", f"{number // 1000}/{number}n.webp"


def _remove_stale(folder: Path, count: int) -> None:
    """Thumbnails that a larger gallery of the same name left."""
    for path in folder.glob("*/*.webp"):
        if (stem := path.stem.removesuffix("n")).isdigit() and int(stem) >= count:
            path.unlink()


def _inside(folder: Path, count: int) -> Iterator[tuple[int, list[bytes]]]:
    for number in range(count):
        paths = [folder / name for name in names(number)]
        yield number, [path.read_bytes() if path.exists() else b"" for path in paths]


def _entry(sample: ViewSample, image: Thumbnail, negative: Thumbnail) -> dict:
    """A sample as gallery.js reads it. Captions are lists of pieces, every second one changed."""
    first = sample.captions[0] if sample.captions else ""
    diffs = [caption_diff(first, text) for text in sample.neg_captions]
    entry = {
        "key": sample.key,
        "shard": sample.shard,
        "captions": [diffs[0][0] if diffs else [first], *([text] for text in sample.captions[1:])],
        "negatives": [theirs for _, theirs in diffs],
        "categories": sample.neg_categories,
        "facets": sample.facets,
        "scores": {name: round(value, 6) for name, value in sample.scores.items()},
        "notes": sample.notes,
        "similarities": {
            label: [[round(value, 4) for value in row] for row in rows] for label, rows in sample.similarities.items()
        },
        "images": [_image(image), _image(negative)],
        "details": page.shorten({k: v for k, v in sample.details.items() if k not in SHOWN}, DETAILS),
    }
    return {name: value for name, value in entry.items() if value}


def _image(thumbnail: Thumbnail) -> list | str | None:
    """[width, height] of an image that is shown, why it cannot be shown, or None for no image."""
    return list(thumbnail.size) if thumbnail.webp else thumbnail.fault or None
