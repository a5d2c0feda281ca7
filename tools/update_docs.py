#!/usr/bin/env python
"""Write the plugin's flags into docs/train.md between its markers; ``--check`` fails where they are stale.

python tools/update_docs.py
"""

import argparse
import re
import sys
from pathlib import Path

from open_clip_triplet.options import build_parser

PAGE = Path(__file__).parents[1] / "docs" / "train.md"
BLOCK = re.compile(r"(<!-- flags -->\n).*?(<!-- /flags -->)", re.DOTALL)


def flag_table() -> str:
    """Markdown table of every flag: spelling, default, help."""
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for group in build_parser()._action_groups:
        for action in group._group_actions:
            value = "" if action.metavar is None else f" {action.metavar}"
            if action.choices:
                value = f" {{{','.join(map(str, action.choices))}}}"
            default = "" if action.default in (None, False, [], argparse.SUPPRESS) else f"`{action.default}`"
            text = re.sub(r"\s*\(default[^()]*\)", "", action.help or "")
            text = text.replace("%%", "%").replace("|", "\\|")
            rows.append(f"| `{action.option_strings[-1]}{value}` | {default} | {text} |")
    return "\n".join(rows)


def updated(page: str) -> str:
    return BLOCK.sub(lambda match: f"{match[1]}{flag_table()}\n{match[2]}", page)


def main() -> int:
    before = PAGE.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("docs/train.md: the flag table is stale; run: python tools/update_docs.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
