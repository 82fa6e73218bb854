"""llama.cpp through its C API, while someone types: `python -m bench.peer.typing_llama --model FILE.gguf --task FILE.json`.

Sequence 0 holds the prompt from one keystroke to the next: what the new one shares with it stays, the rest is read. The candidates begin with it
(llama_memory_seq_cp) and run in one batch a step; one that has ended leaves the batch. Sampling is llama.cpp's own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as api  # type: ignore[import-not-found]

from bench.peer.llama import as_array
from bench.peer.typing_task import Key, TypingTask, parser, read_task, time_keystrokes

_silence = api.llama_log_callback(lambda level, text, user_data: None)


def main() -> None:
    args = parser(__doc__).parse_args()
    task = read_task(args.task)
    api.llama_log_set(_silence, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(args.model).encode(), api.llama_model_default_params())
    assert model, f"{args.model} cannot be loaded"
    time_keystrokes(args.engine, task, Typist(model, task).answer)


class Typist:
    """A context whose sequence 0 is what was typed."""

    def __init__(self, model: Any, task: TypingTask) -> None:
        params = api.llama_context_default_params()
        params.n_ctx = -(-(task.longest + task.samples * task.tokens) // 256) * 256
        params.n_batch = params.n_ubatch = max(64, task.longest)
        params.n_seq_max = task.samples + 1
        params.n_threads = params.n_threads_batch = task.threads
        params.flash_attn_type, params.kv_unified = 1, True
        self._context = api.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = api.llama_get_memory(self._context)
        self._task = task
        self._typed: tuple[int, ...] = ()
        self._batch = api.llama_batch_init(task.longest, 0, 1)
        self._tokens = as_array(self._batch.token, task.longest)
        self._positions = as_array(self._batch.pos, task.longest)

    def answer(self, key: Key, seed: int) -> list[int]:
        """Tokens of each candidate."""
        task = self._task
        samplers = [_make_sampler(task, seed * 64 + row) for row in range(task.samples)]
        last = self._read(key.ids)
        tokens = [api.llama_sampler_sample(sampler, self._context, last) for sampler in samplers]
        lengths = [0] * task.samples
        running = list(range(task.samples))
        for position in range(len(key.ids), len(key.ids) + task.tokens):
            running = [row for row in running if tokens[row] != task.end_id]
            for row in running:
                lengths[row] += 1
            if not running or position == len(key.ids) + task.tokens - 1:
                break
            if position == len(key.ids):
                for row in running:
                    api.llama_memory_seq_cp(self._memory, 0, row + 1, -1, -1)
            self._decode([tokens[row] for row in running], [position] * len(running), [row + 1 for row in running])
            for place, row in enumerate(running):
                tokens[row] = api.llama_sampler_sample(samplers[row], self._context, place)
        for row, sampler in enumerate(samplers):
            api.llama_memory_seq_rm(self._memory, row + 1, -1, -1)
            api.llama_sampler_free(sampler)
        return lengths

    def _read(self, ids: tuple[int, ...]) -> int:
        """Reads what sequence 0 lacks of a prompt. Returns the place of the last token's logits in the batch."""
        pairs = enumerate(zip(self._typed, ids, strict=False))
        shared = next((n for n, (old, new) in pairs if old != new), min(len(self._typed), len(ids)))
        shared = min(shared, len(ids) - 1)  # the last one is read again for its logits
        api.llama_memory_seq_rm(self._memory, 0, shared, -1)
        self._typed = ids
        self._decode(ids[shared:], range(shared, len(ids)), [0] * (len(ids) - shared))
        return len(ids) - shared - 1

    def _decode(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Logits for the last token of each sequence."""
        batch, number = self._batch, len(tokens)
        batch.n_tokens = number
        self._tokens[:number], self._positions[:number] = tokens, positions
        for place, sequence in enumerate(sequences):
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = place + 1 == number or sequences[place + 1] != sequence
        status = api.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"


def _make_sampler(task: TypingTask, seed: int) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if task.top_k:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(task.top_k))
    if 0 < task.top_p < 1:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(task.top_p, 1))
    if task.temperature != 1:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(task.temperature))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(seed))
    return chain


if __name__ == "__main__":
    main()
