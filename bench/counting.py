"""What an engine computes and for whom, counted from outside: `Meter(engine)` stands between the engine and its runner.

A token is *computed* when it goes through the model: as part of a prompt that is read (with the tokens that spell a typed beginning), or as
the last token of a running candidate. The first token of a candidate is drawn from logits that stand there already, so n candidates of t tokens
take n * (t - 1) computed tokens besides their prompt, less those that are *shared*: another one after the same tokens is computed in the same pass, or
was in an earlier one of the session (a prompt's last token may be such a one too). A token that an earlier draw gave (recalled) is not computed.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from promptgen.generation.engine import Engine
from promptgen.generation.request import EngineStats
from promptgen.generation.scheduler import Plan, StepResult


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of prompts that were read and found; tokens fed by running candidates; how many of all were shared; first tokens drawn from what
    stood there; tokens recalled.

    `left` are the computed ones of requests that ended without their answer. `steps` and `step_s`: passes, and the time they took.
    """

    read: int
    found: int
    fed: int
    shared: int
    first: int
    recalled: int
    left: int
    steps: int
    step_s: float

    @property
    def computed(self) -> int:
        return self.read + self.fed - self.shared

    @property
    def drawn(self) -> int:
        return self.fed + self.first

    def figures(self, keystrokes: int) -> dict[str, float]:
        """By keystroke, and shares: of prompt tokens that were found, of candidates' tokens that were recalled, of work that no answer had."""
        by_key = {
            name: round(getattr(self, name) / keystrokes, 2)
            for name in ("computed", "read", "fed", "shared", "drawn", "steps")
        }
        return by_key | {
            "step_ms": round(1000 * self.step_s / keystrokes, 2),
            "found": _share(self.found, self.found + self.read),
            "recalled": _share(self.recalled, self.recalled + self.drawn),
            "wasted": _share(self.left, self.read + self.fed),
        }


class Meter:
    """Counts from its making, or the last `restart`, on. The engine is as before but for the time of counting."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._scheduler = engine, engine._scheduler
        self._run, self._cancel = engine._runner.run, engine.cancel
        setattr(engine._runner, "run", self._counted)  # noqa: B010
        setattr(engine, "cancel", self._cancelled)  # noqa: B010
        self.restart()

    def restart(self) -> None:
        """While the engine is idle."""
        self._before: EngineStats = self._engine.stats
        self._of: Counter[int] = Counter()  # computed tokens, by request
        self._left: set[int] = set()
        self._read = self._fed = self._first = self._steps = 0
        self._step_s = 0.0

    @property
    def counts(self) -> Counts:
        """While the engine is idle."""
        now = self._engine.stats
        return Counts(
            self._read,
            now.num_reused_tokens - self._before.num_reused_tokens,
            self._fed,
            now.num_shared_tokens - self._before.num_shared_tokens,
            self._first,
            now.num_recalled_tokens - self._before.num_recalled_tokens,
            sum(self._of[request_id] for request_id in self._left),
            self._steps,
            self._step_s,
        )

    def _counted(self, plan: Plan) -> StepResult:
        rows = self._scheduler.rows
        running = Counter(sequence.request_id for sequence in rows[: plan.num_continuing])
        owners = self._owners(plan)
        for stretch in plan.stretches:
            self._of[owners[stretch.slot]] += len(stretch.token_ids)
            self._read += len(stretch.token_ids)
        self._first += plan.num_rows - plan.num_continuing
        started = time.perf_counter()
        result = self._run(plan)
        self._step_s += time.perf_counter() - started
        num_steps = 1 + len(result.earlier)
        self._fed += plan.num_continuing * num_steps
        self._steps += num_steps
        self._of.update({request_id: number * num_steps for request_id, number in running.items()})
        return result

    def _owners(self, plan: Plan) -> dict[int, int]:
        """The request for which each slot is being read."""
        entries = (*self._scheduler._reading, *self._scheduler._joining)
        owners = {prompt.slot: entry.request_id for entry in entries for prompt in (entry.prompt, *entry.branches)}
        for join in plan.joins:
            request_id = self._scheduler.rows[join.first_row].request_id
            owners |= dict.fromkeys((join.slot, *join.branch_slots), request_id)
        return owners

    def _cancelled(self, request_id: int, sample: int | None = None) -> None:
        if sample is None:
            self._left.add(request_id)
        self._cancel(request_id, sample)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
