"""Removes the endless repetitions that greedy decoding can fall into, by the official package's rules.

A run of more than 20 equal characters becomes one; a pattern of 1 to 20 characters that occurs 20 times or more in a row
becomes one copy.
"""

from __future__ import annotations

import re

THRESHOLD = 20
"""Repeats from which on a pattern counts as a loop; the official package's default."""

MAX_PATTERN = 20
"""Longest pattern looked for, in code points."""

_RUN = re.compile(rf"(.)\1{{{THRESHOLD},}}", re.DOTALL)
# Lazy group: the shortest pattern at the leftmost place, then all its repeats. The same order as trying every start and
# every length in turn, but at the speed of the regex engine.
_LOOP = re.compile(rf"(.{{1,{MAX_PATTERN}}}?)\1{{{THRESHOLD - 1},}}", re.DOTALL)


def fix_repetitions(text: str) -> str:
    """Collapses loops in `text`; text without loops is returned unchanged.

    A loop is only looked for while at least `2 * THRESHOLD` code points are left, as in the official package.
    """
    text = _RUN.sub(r"\1", text)
    last_start = len(text) - 2 * THRESHOLD
    pieces = []
    at = 0
    while (loop := _LOOP.search(text, at)) and loop.start() <= last_start:
        pieces += [text[at : loop.start()], loop.group(1)]
        at = loop.end()
    return "".join(pieces) + text[at:]
