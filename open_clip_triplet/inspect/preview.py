"""A small gallery of the newest samples of a build, written again and again while it runs."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from open_clip_triplet.errors import TripletError
from open_clip_triplet.inspect import page
from open_clip_triplet.inspect.gallery import write_gallery
from open_clip_triplet.inspect.samples import ViewSample, read_some, view_sample

#: samples shown; seconds between two looks, and between two loads of the page in a browser
NEWEST, EVERY = 24, 10.0


class Preview:
    """Watches a build's local output folder from a thread: ``with Preview(output, html, sources): ...``

    Shards that are still being written are read as far as they go, so that samples show up as they are made.
    On leaving, the page is written once more and no longer reloads itself.

    Args:
        output: the build's folder; the stages' side shards are under its ``.work``.
        html: the page; its thumbnails are inside.
        sources: input shard of each output shard (``00017`` -> path or url), for images that a stage does
            not carry along.
        every: seconds between two looks.

    Raises:
        UsageError: Jinja2 is not installed.
    """

    def __init__(
        self, output: str | os.PathLike, html: str | os.PathLike,
        sources: Mapping[str, str] | None = None, every: float = EVERY,
    ):
        self.output, self.html, self.sources, self.every = Path(output), Path(html), dict(sources or {}), every
        page.environment()  # what is missing is told now, not in the log of a thread
        self._shown: object = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="preview")

    def __enter__(self) -> Preview:
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._leaving.set()
        self._thread.join()
        self.refresh(final=True)

    def _watch(self) -> None:
        while not self._leaving.wait(self.every):
            self.refresh()

    def refresh(self, final: bool = False) -> int:
        """Write the page if there is something new; returns the number of samples on it.

        A build is never stopped by its preview: what goes wrong here is logged.
        """
        try:
            files = newest_shards(self.output)
            seen = [(path, path.stat().st_size) for path in files[:1]]
            if not files or (seen == self._shown and not final):
                return 0
            self._shown = seen
            samples = list(newest_samples(files, self.sources))
            title = f"{self.output.absolute().name}: the newest of {samples[0].facets['stage']}" if samples else ""
            return 0 if not samples else write_gallery(
                samples, self.html, title=title, single_file=True, refresh=None if final else round(self.every),
            )
        except (TripletError, OSError, ValueError) as error:
            logging.warning("No preview: %s", error)
            return 0


def newest_shards(output: Path) -> list[Path]:
    """Shards of a build and of its stages, also those being written, the one last written to first."""
    found = {}
    for folder in (output, *(output / ".work").glob("*")):
        for path in (*folder.glob("*.tar"), *folder.glob(".*.tar.*.tmp")):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # renamed or removed just now
    return sorted(found, key=lambda path: -found[path])


def newest_samples(files: list[Path], sources: Mapping[str, str], most: int = NEWEST) -> Iterator[ViewSample]:
    """The last samples of the newest shard, last first, with a stage's name and the source's images."""
    for path in files:
        count = sum(1 for _ in read_some(str(path), frozenset(), quiet=True))
        wanted = range(max(0, count - most), count)
        samples = [
            view_sample(sample)
            for number, sample in enumerate(read_some(str(path), wanted, quiet=True)) if number in wanted
        ]
        if not samples:
            continue  # nothing whole in it yet
        _add_images(samples, sources)
        for sample in reversed(samples):
            sample.facets["stage"] = path.parent.name if path.parent.parent.name == ".work" else "pack"
            sample.shard = re.sub(r"^\.(.*\.tar)\..*\.tmp$", r"\1", path.name)
            yield sample
        return


def _add_images(samples: list[ViewSample], sources: Mapping[str, str]) -> None:
    """Images of the source, where a stage leaves them out: an output key ends in the source sample's number."""
    missing: dict[str, dict[int, ViewSample]] = {}
    for sample in samples:
        shard, _, number = sample.key.rpartition("_")
        if sample.image is None and shard in sources and number.isdigit():
            missing.setdefault(sources[shard], {})[int(number)] = sample
    for url, wanted in missing.items():
        for place, found in enumerate(read_some(url, wanted, quiet=True)):
            if place in wanted:
                source = view_sample(found)
                wanted[place].image = source.image
                wanted[place].captions = wanted[place].captions or source.captions
            if place >= max(wanted):
                break
