"""What ``stats`` keeps of every sample: fingerprints of its images, normalised captions, counts of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from open_clip_triplet.inspect.diff import caption_diff
from open_clip_triplet.inspect.duplicates import NEAR, Fingerprint, fingerprint, normal_caption
from open_clip_triplet.inspect.samples import ViewSample
from open_clip_triplet.threads import map_ahead


@dataclass
class Looked:
    """What is kept of each sample: no image, no text but the counts of words."""

    places: list[tuple[str, str]] = field(default_factory=list)
    prints: dict[str, list[Fingerprint | None]] = field(default_factory=lambda: {"image": [], "negative image": []})
    captions: dict[str, list[str]] = field(default_factory=lambda: {"caption": [], "negative caption": []})
    words: dict[str, list[int]] = field(default_factory=lambda: {
        "caption words": [], "negative caption words": [], "words changed": []
    })
    negatives: list[int] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    categories: Counter = field(default_factory=Counter)
    synsets: dict[str, Counter] = field(default_factory=lambda: {"captions": Counter(), "negatives": Counter()})
    own: Counter = field(default_factory=Counter)


def look(samples: Iterable[ViewSample], concepts=None) -> Looked:
    """Look at every sample once. ``concepts``: caption -> synset names, or None."""
    looked = Looked()
    for sample, *prints in _with_fingerprints(samples):
        looked.places.append((sample.key, sample.shard))
        looked.positives.append(len(sample.captions))
        looked.negatives.append(len(sample.neg_captions))
        for name, found in zip(looked.prints, prints):
            looked.prints[name].append(found)
        for name, texts in zip(looked.captions, (sample.captions, sample.neg_captions)):
            looked.captions[name].append(normal_caption(texts[0]) if texts else "")
            looked.words[f"{name} words"] += [len(text.split()) for text in texts[:1]]
        if sample.neg_captions:
            looked.categories.update(sample.neg_categories or ["not given"])
            _compare_own(looked, sample, prints)
        if concepts:
            for name, texts in zip(looked.synsets, (sample.captions, sample.neg_captions)):
                looked.synsets[name].update(name for text in texts[:1] for name in concepts(text))
    return looked


def _compare_own(looked: Looked, sample: ViewSample, prints: Sequence[Fingerprint | None]) -> None:
    caption, negative = (sample.captions or [""])[0], sample.neg_captions[0]
    changed = caption_diff(caption, negative)
    whole = len(changed[1]) == 1 and caption.lower() != negative.lower() and changed[0] == [caption]
    pieces = [[side[0]] if whole else side[1::2] for side in changed]
    looked.words["words changed"].append(max(len(" ".join(side).split()) for side in pieces))
    looked.own["caption"] += normal_caption(caption) == normal_caption(negative)
    image, negative_image = prints
    if image and negative_image:
        looked.own["image, same bytes"] += image.digest == negative_image.digest
        if image.phash is not None and negative_image.phash is not None:
            looked.own["image, near"] += (image.phash ^ negative_image.phash).bit_count() <= NEAR


def _with_fingerprints(samples: Iterable[ViewSample]) -> Iterator[tuple]:
    def work(sample: ViewSample) -> tuple:
        prints = [fingerprint(data) if data is not None else None for data in (sample.image, sample.neg_image)]
        sample.image = sample.neg_image = None
        return sample, *prints

    return map_ahead(work, samples)
