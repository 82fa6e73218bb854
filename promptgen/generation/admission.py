"""How much work is taken on: so many requests and so many tokens, and no more. Who is refused hears when there will be room.

A request counts as its characters and all tokens that it may have drawn, from when it is accepted until it has left. How fast accepted work
leaves is measured, over the last half minute or so of being busy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from promptgen.errors import Overloaded

MAX_RETRY_AFTER_S = 60
_FORGETS_S = 10.0  # what was measured so long ago counts a third


@dataclass(slots=True)
class Admission:
    max_requests: int
    max_tokens: int
    clock: Callable[[], float] = time.monotonic
    num_requests: int = 0
    num_tokens: int = 0
    num_refused: int = 0
    _done: float = 0.0
    _busy_s: float = 0.0
    _last: float = 0.0

    def enter(self, num_requests: int, num_tokens: int, *, is_promised: bool = False) -> None:
        """Raises Overloaded, unless this was promised before. Who finds nobody there is always let in: there is no better moment."""
        is_full = self.num_requests + num_requests > self.max_requests or self.num_tokens + num_tokens > self.max_tokens
        if self.num_requests and is_full and not is_promised:
            self.num_refused += 1
            raise Overloaded(
                f"{self.num_requests} requests are being answered already", retry_after_s=self.retry_after_s
            )
        self._pass_time()
        self.num_requests += num_requests
        self.num_tokens += num_tokens

    def leave(self, num_tokens: int) -> None:
        """One request less."""
        self._pass_time()
        self._done += num_tokens
        self.num_requests -= 1
        self.num_tokens -= num_tokens

    @property
    def retry_after_s(self) -> int:
        """How long what is accepted now will take, at the pace of late."""
        if not self._done or not self._busy_s:
            return 1
        seconds = self.num_tokens * self._busy_s / self._done
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(seconds)))

    def _pass_time(self) -> None:
        now = self.clock()
        if self.num_requests:
            passed = now - self._last
            kept = math.exp(-passed / _FORGETS_S)
            self._done *= kept
            self._busy_s = self._busy_s * kept + passed
        self._last = now
