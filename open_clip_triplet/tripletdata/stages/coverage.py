"""Greedy concept coverage of any number of captions in bounded memory.

Captions are kept on disk as word numbers; in memory are, for each caption, how many words it has (1 byte)
and at most how many new concepts it can still add (2 bytes): 300 MB for 100 million.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

#: captions looked at together; a word has tens of concepts at most
CHUNK = 1 << 16


class Captions:
    """Captions as word numbers, appended once and then read in chunks.

    Args:
        path: file of the word numbers (int32), written anew.
        chunk_size: captions that are read together.
    """

    def __init__(self, path: Path, chunk_size: int = CHUNK):
        self.path, self.chunk_size = path, chunk_size
        self._file = open(path, "wb")
        self._lengths: list[np.ndarray] = []

    def append(self, captions: Iterable[list[int]]) -> None:
        """Add captions, each a list of word numbers (at most 255 are kept)."""
        captions = [numbers[:255] for numbers in captions]
        self._lengths.append(np.array([len(numbers) for numbers in captions], np.uint8))
        np.array([n for numbers in captions for n in numbers], np.int32).tofile(self._file)

    def close(self) -> None:
        """No caption will be added."""
        self._file.close()
        self.lengths = np.concatenate([*self._lengths, np.empty(0, np.uint8)])
        sums = [int(self.lengths[part].sum(dtype=np.int64)) for part in self.chunks()]
        self._starts = np.concatenate([[0], np.cumsum(sums, dtype=np.int64)]) if sums else np.zeros(1, int)

    def __len__(self) -> int:
        return len(self.lengths)

    def chunks(self) -> list[slice]:
        """Which captions are in each chunk."""
        return [slice(i, min(i + self.chunk_size, len(self))) for i in range(0, len(self), self.chunk_size)]

    def chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Word numbers of chunk ``number``, and where each of its captions starts in them [captions + 1]."""
        start, end = self._starts[number : number + 2]
        numbers = np.fromfile(self.path, np.int32, int(end - start), offset=4 * int(start))
        lengths = self.lengths[number * self.chunk_size : (number + 1) * self.chunk_size]
        return numbers, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class Vocabulary:
    """Words with their concepts, as numbers: ``concepts[starts[w]:starts[w + 1]]`` are those of word w."""

    def __init__(self, concepts_of_words: list[Iterable[str]]):
        names: dict[str, int] = {}
        rows = [[names.setdefault(name, len(names)) for name in row] for row in concepts_of_words]
        self.starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(int)
        self.concepts = np.array([n for row in rows for n in row], np.int32)
        self.size = len(names)

    def of(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Concepts of words one after another, and for each the position of its word in ``words``."""
        lengths = self.starts[words + 1] - self.starts[words]
        owners = np.repeat(np.arange(len(words)), lengths)
        first = np.repeat(self.starts[words] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return self.concepts[first + np.arange(len(owners))], owners


def coverage_order(captions: Captions, vocabulary: Vocabulary) -> Iterator[int]:
    """Caption numbers, each the one that adds most concepts to those before it; ties in caption order.

    Lazy greedy, one level of gain after another: what a caption would add only shrinks, so that at level g
    only captions whose bound is g need to be looked at, in order, and none can come to that level later.
    """
    bounds = _first_bounds(captions, vocabulary)
    taken = np.zeros(len(captions), bool)
    covered = np.zeros(vocabulary.size, bool)
    for gain in range(int(bounds.max(initial=0)), 0, -1):
        for number, part in enumerate(captions.chunks()):
            rows = np.flatnonzero(bounds[part] == gain)
            if not len(rows):
                continue
            chunk = _Chunk(*captions.chunk(number), vocabulary, covered)
            fresh = chunk.gains(rows)
            bounds[part][rows] = fresh
            for row in rows[fresh == gain].tolist():
                new = chunk.new(row)
                bounds[part.start + row] = len(new)
                if len(new) == gain:
                    covered[new] = True
                    bounds[part.start + row], taken[part.start + row] = 0, True
                    yield part.start + row
    for part in captions.chunks():
        yield from (part.start + np.flatnonzero(~taken[part])).tolist()


def _first_bounds(captions: Captions, vocabulary: Vocabulary) -> np.ndarray:
    """For each caption the concepts of its words, those that two words share counted twice."""
    bounds = np.empty(len(captions), np.uint16)
    sizes = np.diff(vocabulary.starts)
    for number, part in enumerate(captions.chunks()):
        words, starts = captions.chunk(number)
        sums = np.concatenate([[0], np.cumsum(sizes[words])])
        bounds[part] = np.minimum(sums[starts[1:]] - sums[starts[:-1]], 65535)
    return bounds


class _Chunk:
    """What the captions of one chunk would add to the concepts ``covered`` (which changes meanwhile)."""

    def __init__(self, words, starts, vocabulary: Vocabulary, covered: np.ndarray):
        self.words, self.starts, self.vocabulary, self.covered = words, starts, vocabulary, covered

    def gains(self, rows: np.ndarray) -> np.ndarray:
        lengths = self.starts[rows + 1] - self.starts[rows]
        owners = np.repeat(np.arange(len(rows)), lengths)
        first = np.repeat(self.starts[rows] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        concepts, places = self.vocabulary.of(self.words[first + np.arange(len(owners))])
        open_ = ~self.covered[concepts]
        pairs = np.unique(owners[places[open_]] * self.vocabulary.size + concepts[open_])
        return np.bincount(pairs // max(self.vocabulary.size, 1), minlength=len(rows))

    def new(self, row: int) -> np.ndarray:
        concepts, _ = self.vocabulary.of(self.words[self.starts[row] : self.starts[row + 1]])
        return np.unique(concepts[~self.covered[concepts]])
