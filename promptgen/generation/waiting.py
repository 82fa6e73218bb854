"""The line in which requests wait: callers take turns, and of each caller the oldest request comes first. Plain Python.

Whoever sends a thousand requests at once keeps the others waiting for one of them. What a running request asks for later (a candidate drawn
anew) stands where the request itself stood: ids grow as requests come, and lines are kept in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from promptgen.generation.request import GenerationRequest

Entry = tuple[int, GenerationRequest]  # on behalf of which request, and what


class WaitingLine:
    """A caller is known by the `salt` of its requests. `len` may be asked from another thread."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Entry]] = {}  # none empty; the first is that of the caller whose turn it is
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Entry]:
        """In the order in which they would leave."""
        lines = [iter(line) for line in self._lines.values()]
        while lines:
            for line in tuple(lines):
                entry = next(line, None)
                if entry is None:
                    lines.remove(line)
                else:
                    yield entry

    def append(self, request_id: int, request: GenerationRequest) -> None:
        line = self._lines.setdefault(request.salt, deque())
        place = len(line)
        while place and line[place - 1][0] > request_id:
            place -= 1
        line.insert(place, (request_id, request))
        self._num += 1

    def first(self) -> Entry:
        return next(iter(self._lines.values()))[0]

    def pop(self) -> Entry:
        """Takes the first; its caller goes to the end."""
        caller, line = next(iter(self._lines.items()))
        entry = line.popleft()
        del self._lines[caller]
        if line:
            self._lines[caller] = line
        self._num -= 1
        return entry

    def remove(self, request_id: int) -> None:
        """All entries of one request."""
        for caller, line in tuple(self._lines.items()):
            kept = deque(entry for entry in line if entry[0] != request_id)
            self._num -= len(line) - len(kept)
            if kept:
                self._lines[caller] = kept
            else:
                del self._lines[caller]
