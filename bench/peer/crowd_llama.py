"""llama.cpp under many callers, through its C API: `python -m bench.peer.crowd_llama --model FILE.gguf`.

One batch a step, as llama-server makes it: a token of every running sequence and the prompts of those who are new. A prompt is read once for its
candidates, which share it by llama_memory_seq_cp.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp as api  # type: ignore[import-not-found]

from bench.peer.crowd_task import PROMPT_TOKENS, SAMPLES, TOKENS, TOP_K, Task, drive, parser, task_of
from bench.peer.llama import as_array, make_sampler

MAX_SEQUENCES = 250  # llama.cpp takes at most 256
assert TOP_K == 30, "bench.peer.llama's samplers keep 30"
_silence = api.llama_log_callback(lambda level, text, user_data: None)


def main() -> None:
    args = parser(__doc__).parse_args()
    task = task_of(args)
    api.llama_log_set(_silence, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(task.model).encode(), api.llama_model_default_params())
    assert model, f"{task.model} cannot be loaded"
    for callers in task.callers:
        drive(task, callers, Batches(model, task, callers))


@dataclass(slots=True)
class Asked:
    caller: int
    prompt: tuple[int, ...]
    sequences: range
    samplers: list[Any]
    last: list[int] = field(default_factory=list)
    length: int = 0


class Batches:
    def __init__(self, model: Any, task: Task, callers: int) -> None:
        places = min(callers, MAX_SEQUENCES // SAMPLES)
        tokens = places * max(SAMPLES, PROMPT_TOKENS)
        params = api.llama_context_default_params()
        params.n_ctx = -(-places * (PROMPT_TOKENS + SAMPLES * TOKENS) // 256) * 256
        params.n_batch = params.n_ubatch = max(64, tokens)
        params.n_seq_max = places * SAMPLES
        params.n_threads = params.n_threads_batch = task.threads
        params.flash_attn_type, params.kv_unified = 1, True
        self._context = api.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(tokens, 0, 1)
        self._tokens, self._positions = as_array(self._batch.token, tokens), as_array(self._batch.pos, tokens)
        self._free = [range(place * SAMPLES, (place + 1) * SAMPLES) for place in range(places)]
        self._waiting: deque[tuple[int, tuple[int, ...], int]] = deque()
        self._running: list[Asked] = []

    def ask(self, caller: int, prompt: Sequence[int], seed: int) -> None:
        self._waiting.append((caller, tuple(prompt), seed))

    def step(self) -> list[int]:
        while self._waiting and self._free:
            caller, prompt, seed = self._waiting.popleft()
            samplers = [make_sampler(seed * 64 + row) for row in range(SAMPLES)]
            self._running.append(Asked(caller, prompt, self._free.pop(), samplers))
        places = self._decode()
        for asked, place in zip(self._running, places, strict=True):
            self._draw(asked, place)
        done = [asked for asked in self._running if asked.length == TOKENS]
        self._running = [asked for asked in self._running if asked.length < TOKENS]
        for asked in done:
            self._leave(asked)
        return [asked.caller for asked in done]

    def _decode(self) -> list[int]:
        """Gives where each request's first logits stand in the batch."""
        count, places = 0, list[int]()
        for asked in self._running:
            if not asked.length:
                for position, token in enumerate(asked.prompt):
                    is_last = position == PROMPT_TOKENS - 1
                    count = self._lay(count, token, position, asked.sequences[0], wants_logits=is_last)
                places.append(count - 1)
            else:
                places.append(count)
                for sequence, token in zip(asked.sequences, asked.last, strict=True):
                    position = PROMPT_TOKENS + asked.length - 1
                    count = self._lay(count, token, position, sequence, wants_logits=True)
        self._batch.n_tokens = count
        status = api.llama_decode(self._context, self._batch)
        assert status == 0, f"llama_decode returned {status}"
        return places

    def _lay(self, index: int, token: int, position: int, sequence: int, *, wants_logits: bool) -> int:
        self._tokens[index], self._positions[index] = token, position
        self._batch.n_seq_id[index], self._batch.seq_id[index][0] = 1, sequence
        self._batch.logits[index] = wants_logits
        return index + 1

    def _draw(self, asked: Asked, place: int) -> None:
        """A prompt's logits give the first token of all its candidates."""
        is_new = not asked.length
        asked.last = [
            api.llama_sampler_sample(sampler, self._context, place if is_new else place + row)
            for row, sampler in enumerate(asked.samplers)
        ]
        asked.length += 1
        if is_new:
            first, *others = asked.sequences
            for sequence in others:
                api.llama_memory_seq_cp(self._memory, first, sequence, -1, -1)

    def _leave(self, asked: Asked) -> None:
        for sequence, sampler in zip(asked.sequences, asked.samplers, strict=True):
            api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            api.llama_sampler_free(sampler)
        self._free.append(asked.sequences)


if __name__ == "__main__":
    main()
