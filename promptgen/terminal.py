"""Lines that a person types: what `promptgen generate` and `promptgen chat` share at a terminal."""

from __future__ import annotations

import os
import select
import sys

_LOOK_S = 0.5


def ask_line() -> str:
    """The next line of the input with its end, "" where the input ends. At a terminal a prompt stands before it, on stderr.

    Raises KeyboardInterrupt within half a second of Ctrl-C, even of one that comes just before the wait for a key begins:
    that one sets Python's flag, and a read that then blocks would not look at it until the next key. A terminal hands over a line at a time;
    one that was told not to (stty raw) may be asked for a key more.
    """
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
        while os.name == "posix" and not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            pass
    return sys.stdin.readline()
