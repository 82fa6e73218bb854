"""Turns SIGINT and SIGTERM into a wish that a loop looks at between steps. A second signal acts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """`signum` is the signal that came, or None."""

    def __init__(self) -> None:
        self.signum: int | None = None


@contextlib.contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Catches the first signal while the context lasts. Outside the main thread, which alone may, it catches none."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def note(signum: int, _frame: FrameType | None) -> None:
        wish.signum = signum
        for one, handler in before.items():
            signal.signal(one, handler)

    for signum in SIGNALS:
        signal.signal(signum, note)
    try:
        yield wish
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
