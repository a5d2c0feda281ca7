"""WordNet 3.0: the words of captions that carry a concept, and the synsets of a word.

The paper counts every sense of every word (about 80 synsets a caption on CC3M): ``senses="all"``.
``"first"`` counts the first sense of each part of speech. What a word most likely *means* is its sense
with the most occurrences in WordNet's tagged texts: ``Concepts.primary``.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import needs

PARTS = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
DEBIAN = "/usr/share/wordnet"


def _lines(name: str) -> list[str]:
    path = resources.files("open_clip_triplet.tripletdata.stages").joinpath(name)
    return path.read_text(encoding="utf-8").split()


@functools.cache
def stopwords() -> frozenset[str]:
    """Words that WordNet lists with senses a caption does not mean ("a" as a vitamin, "in" as an inch)."""
    return frozenset(_lines("stopwords.txt"))


def words(caption: str) -> list[str]:
    """Lower-case words of a caption that can carry a concept.

    >>> words("A dog's red ball, 2018")
    ['dog', 'red', 'ball']
    """
    found = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"['’]s\b", "", caption.lower()))
    return [word for word in found if word not in stopwords() and len(word) > 1]


@functools.lru_cache(maxsize=1)
def load_wordnet(folder: str = ""):
    """NLTK's WordNet reader over ``folder``, NLTK's own data, or Debian's ``wordnet-base``.

    Raises:
        PipelineError: no WordNet there; the message says how to get it.
    """
    with needs("concepts needs NLTK"):
        from nltk import data
        from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            """No map to other versions: it serves other languages, and costs seconds."""

    candidates = [folder] if folder else [*(os.path.join(p, "corpora", "wordnet") for p in data.path), DEBIAN]
    root = next((path for path in candidates if os.path.exists(os.path.join(path, "data.noun"))), None)
    if root is None:
        raise PipelineError(
            f"no WordNet 3.0 in {folder or 'nltk_data or ' + DEBIAN}. Install Debian's wordnet-base, run "
            "python -m nltk.downloader wordnet, or give the folder of data.noun with --wordnet."
        )
    if not os.path.exists(os.path.join(root, "lexnames")):
        root = _with_lexnames(root)
    data.path.append(os.path.abspath(root))  # NLTK reads below the folders of its path alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # other languages are not needed
        return Reader(root, None)


def _with_lexnames(root: str) -> str:
    """A temporary copy of ``root`` (30 MB; NLTK follows no links) with the ``lexnames`` file it lacks."""
    folder = Path(tempfile.mkdtemp(prefix="wordnet-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in (*Path(root).glob("data.*"), *Path(root).glob("index.*"), *Path(root).glob("*.exc")):
        shutil.copy(path, folder)
    for path in Path(root).glob("cntlist.rev"):  # how often each sense occurs
        shutil.copy(path, folder)
    names = enumerate(_lines("lexnames.txt"))  # lexnames(5WN)
    rows = (f"{n:02d}\t{name}\t{PARTS.get(name.split('.')[0], '3')}\n" for n, name in names)
    (folder / "lexnames").write_text("".join(rows))
    return str(folder)


class Concepts:
    """Synset names of words, looked up once each.

    Args:
        folder: where WordNet is; empty looks in the usual places.
        senses: ``all`` senses of a word, or the ``first`` of each part of speech.
    """

    def __init__(self, folder: str = "", senses: str = "all"):
        self._wordnet, self._all = load_wordnet(folder), senses == "all"
        self._known: dict[str, tuple[str, ...]] = {}
        self._primary: dict[str, str] = {}

    def of(self, caption: str) -> set[str]:
        """Synset names of a caption, such as ``dog.n.01``."""
        return self.of_words(words(caption))

    def of_words(self, found: Iterable[str]) -> set[str]:
        """Synset names of words."""
        return {name for word in found for name in self.word(word)}

    def word(self, word: str) -> tuple[str, ...]:
        """Synset names of one word; empty where WordNet does not know it."""
        if word not in self._known:
            names: list[str] = []
            for part in "nvar":
                synsets = self._wordnet.synsets(word, pos=part)
                names += [synset.name() for synset in (synsets if self._all else synsets[:1])]
            self._known[word] = tuple(dict.fromkeys(names))
        return self._known[word]

    def primary(self, word: str) -> str:
        """The synset that a word most often stands for; empty where WordNet does not know it.

        Senses are compared by how often they occur in the tagged texts (``dog``: the animal, not to chase);
        of equals the noun, then the first in WordNet's order.
        """
        if word not in self._primary:
            best, most = "", -1
            for part in "nvar":
                forms = set(self._wordnet._morphy(word, part))  # as ``synsets`` looks a word up
                for synset in self._wordnet.synsets(word, pos=part):
                    lemmas = (lemma for lemma in synset.lemmas() if lemma.name().lower() in forms)
                    count = max((lemma.count() for lemma in lemmas), default=0)
                    if count > most:
                        best, most = synset.name(), count
            self._primary[word] = best
        return self._primary[word]
