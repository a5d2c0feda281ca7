"""What changed between two captions, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

#: share of the longer caption's words that both must have, for a highlight to say more than the captions do
LEAST_SHARED = 1 / 3

_WORDS = re.compile(r"\s+|\w+(?:['’-]\w+)*|[^\w\s]")


def caption_diff(caption: str, negative: str) -> tuple[list[str], list[str]]:
    """Both captions cut in pieces that take turns: same, changed, same, changed ...

    The first piece is always one that both share (possibly empty), so odd places are what changed.
    Case does not count as a change; spaces between two changed words belong to the change. Captions that
    share less than a third of their words come back in one piece each: all of it is different.

    >>> caption_diff("A red dog runs", "A blue cat runs")
    (['A ', 'red dog', ' runs'], ['A ', 'blue cat', ' runs'])
    """
    mine, theirs = _WORDS.findall(caption), _WORDS.findall(negative)
    words = [[word.lower() for word in side if not word.isspace()] for side in (mine, theirs)]
    blocks = SequenceMatcher(None, words[0], words[1], autojunk=False).get_matching_blocks()
    if sum(block.size for block in blocks) < LEAST_SHARED * max(map(len, words), default=0):
        return [caption], [negative]
    same = [{n for block in blocks for n in range(block[side], block[side] + block.size)} for side in (0, 1)]
    return _pieces(mine, same[0]), _pieces(theirs, same[1])


def _pieces(tokens: list[str], same: set[int]) -> list[str]:
    pieces, number, pending = [""], 0, ""
    for token in tokens:
        if token.isspace():
            pending += token
            continue
        changed = number not in same
        number += 1
        inside = len(pieces) % 2 == 0  # the piece in the making is a change
        if changed and inside:
            pieces[-1] += pending + token
        elif changed:
            pieces[-1] += pending
            pieces.append(token)
        elif inside:
            pieces.append(pending + token)
        else:
            pieces[-1] += pending + token
        pending = ""
    if pending and len(pieces) % 2 == 0:
        pieces.append(pending)
    elif pending:
        pieces[-1] += pending
    return pieces
