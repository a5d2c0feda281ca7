"""Embedding spaces to look for neighbours in: captions, a sentence model, an OpenCLIP model.

An embedder turns the pairs of one shard, given as their captions (all of a pair's, the main one first)
and their image files, into unit rows. A row of NaN marks a pair that cannot be embedded, such as one of an
image that cannot be decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from open_clip_triplet.errors import ImageError, PipelineError
from open_clip_triplet.tripletdata.backends.language import loading
from open_clip_triplet.tripletdata.backends.openclip import load_openclip
from open_clip_triplet.tripletdata.run.pictures import decode, refused
from open_clip_triplet.tripletdata.run.stage import needs

BATCH = 256
#: dimensions that TF-IDF is reduced to
WIDTH = 256


class CaptionEmbedder:
    """Latent semantic analysis: TF-IDF of a pair's captions, reduced to ``WIDTH`` dimensions.

    Needs no weights. Words are weighted over ``captions``, of the collection being mined: the space belongs to it.
    """

    reads_images = False

    def __init__(self, captions: Iterable[list[str]]):
        with needs("--embedder captions needs scikit-learn"):
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfVectorizer
        self._words = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2, dtype=np.float32)
        try:
            words = self._words.fit_transform(map(" ".join, captions))
        except ValueError as error:  # scikit-learn's words for "no word occurs twice"
            raise PipelineError(f"these captions have too little in common to be compared: {error}", 2) from error
        width = min(WIDTH, min(words.shape) - 1)
        self._space = TruncatedSVD(width, random_state=0).fit(words) if width >= 2 else None

    def __call__(self, captions: Sequence[list[str]], images: Sequence[bytes]) -> np.ndarray:
        words = self._words.transform(map(" ".join, captions))
        return _unit(self._space.transform(words) if self._space else words.toarray())


class SentenceEmbedder:
    """A transformers sentence model from a local folder: the mean of its token states, caption by caption."""

    reads_images = False

    def __init__(self, folder: str, device: str):
        with needs("a sentence model needs transformers"):
            from transformers import AutoModel, AutoTokenizer
        self._device = device
        with loading(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder).to(device).eval()

    def __call__(self, captions: Sequence[list[str]], images: Sequence[bytes]) -> np.ndarray:
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(captions), BATCH):
                texts = [c[0] for c in captions[start : start + BATCH]]
                tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
                tokens = tokens.to(self._device)
                states = self._model(**tokens).last_hidden_state
                mask = tokens["attention_mask"][..., None]
                rows.append(((states * mask).sum(1) / mask.sum(1)).float().cpu().numpy())
        return _unit(np.concatenate(rows))


class OpenClipEmbedder:
    """Any OpenCLIP model: a row is the unit image feature beside the unit caption feature.

    So the similarity of two pairs is the mean of image-image and caption-caption similarity.
    """

    reads_images = True

    def __init__(self, model: str, pretrained: str | None, device: str):
        self._device = device
        self._model, self._preprocess, self._tokenizer = load_openclip(model, pretrained, device)

    def __call__(self, captions: Sequence[list[str]], images: Sequence[bytes]) -> np.ndarray:
        import torch

        rows = []
        with torch.inference_mode(), ThreadPoolExecutor() as pool:
            for start in range(0, len(captions), BATCH):
                pixels = list(pool.map(self._decode, images[start : start + BATCH]))
                bad = np.array([image is None for image in pixels])
                blank = next((torch.zeros_like(image) for image in pixels if image is not None), None)
                if blank is None:
                    rows.append(np.full((len(pixels), 1), np.nan))
                    continue
                batch = torch.stack([blank if image is None else image for image in pixels])
                tokens = self._tokenizer([c[0] for c in captions[start : start + BATCH]]).to(self._device)
                image_rows = _unit(self._model.encode_image(batch.to(self._device)).float().cpu().numpy())
                text_rows = _unit(self._model.encode_text(tokens).float().cpu().numpy())
                joined = np.concatenate([image_rows, text_rows], axis=1) / np.sqrt(2)
                joined[bad] = np.nan
                rows.append(joined)
        width = max(block.shape[1] for block in rows)
        return np.concatenate([np.broadcast_to(b, (len(b), width)) for b in rows]).astype(np.float32)

    def _decode(self, data: bytes):
        try:
            with refused():
                return self._preprocess(decode(data).rgb)
        except ImageError:  # the row says NaN and is counted
            return None


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n, d] at unit length; a row of zeros (no known word) becomes NaN."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-8, rows / np.maximum(norm, 1e-8), np.nan).astype(np.float32)
