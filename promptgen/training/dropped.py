"""What was left out of a corpus: how much for which reason, and where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_MAX_NUMBERS = 20  # kept for each file and reason
_MAX_NUMBERS_SHOWN = 5
_MAX_FILES_SHOWN = 3


@dataclass(slots=True)
class Places:
    """How often in one file, and the first lines (or items of a list), counted from 1."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)


class Dropped:
    """Counts by reason and file. Nothing is left out of a corpus without being noted here."""

    def __init__(self) -> None:
        self._reasons: dict[str, dict[str, Places]] = {}

    def add(self, reason: str, path: Path, number: int) -> None:
        places = self._reasons.setdefault(reason, {}).setdefault(path.as_posix(), Places())
        places.count += 1
        if len(places.numbers) < _MAX_NUMBERS and places.numbers[-1:] != [number]:
            places.numbers.append(number)

    def counts(self) -> Counter[str]:
        """How many by reason."""
        return Counter(
            {reason: sum(places.count for places in files.values()) for reason, files in self._reasons.items()}
        )

    def of(self, path: Path) -> Dropped:
        """What was left out of one file."""
        own = Dropped()
        own._reasons = {
            reason: {path.as_posix(): files[path.as_posix()]}
            for reason, files in self._reasons.items()
            if path.as_posix() in files
        }
        return own

    def examples(self) -> dict[str, dict[str, list[int]]]:
        """The first places by reason and file."""
        return {
            reason: {name: places.numbers for name, places in files.items()} for reason, files in self._reasons.items()
        }

    def summary(self) -> str:
        """One line, such as `10 duplicate (a.txt: 7, 9, ...); 1 not JSON (b.jsonl: 3)`, or `nothing`."""
        parts = []
        for reason, count in self.counts().most_common():
            files = [
                f"{name}: {_first(places.numbers, _MAX_NUMBERS_SHOWN, places.count)}"
                for name, places in list(self._reasons[reason].items())[:_MAX_FILES_SHOWN]
            ]
            parts.append(f"{count} {reason} ({_first(files, _MAX_FILES_SHOWN, len(self._reasons[reason]), '; ')})")
        return "; ".join(parts) or "nothing"


def _first(items: list[int] | list[str], limit: int, num_in_all: int, mark: str = ", ") -> str:
    shown = [str(item) for item in items[:limit]]
    return mark.join(shown + ["..."] * (num_in_all > len(shown)))
