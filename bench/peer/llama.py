"""llama.cpp through its C API: `python -m bench.peer.llama --model FILE.gguf`.

The prompt is read once and shared by llama_memory_seq_cp; then one batch of n sequences a step, and llama.cpp's own sampler chain (top_k, dist)
for each sequence.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as api  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from bench.peer.task import GREEDY_TOKENS, NEW_TOKENS, PROMPT, TOP_K, Task, parser, task_of, time_answers

_silence = api.llama_log_callback(lambda level, text, user_data: None)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--flash", type=int, default=-1, help="flash attention: 1 on, 0 off, -1 llama.cpp's choice")
    options.add_argument("--unified", type=int, default=1, help="1: all sequences in one cache, 0: one for each")
    args = options.parse_args()
    task = task_of(args)
    api.llama_log_set(_silence, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(task.model).encode(), api.llama_model_default_params())
    assert model, f"{task.model} cannot be loaded"
    contexts = {rows: Context(model, task, rows, args.flash, args.unified) for rows in (1, *task.rows)}

    def answer(rows: int, seed: int) -> list[int]:
        return list(map(len, contexts[rows].generate(NEW_TOKENS, seed)))

    time_answers(task, answer, contexts[1].generate(GREEDY_TOKENS, None)[0])


class Context:
    """A context for a number of sequences, and the batch that feeds it."""

    def __init__(self, model: Any, task: Task, rows: int, flash: int, unified: int) -> None:
        params = api.llama_context_default_params()
        length = len(PROMPT) + NEW_TOKENS
        params.n_ctx = -(-(len(PROMPT) + rows * NEW_TOKENS) // 256) * 256 if unified else rows * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = max(64, rows)
        params.n_seq_max = rows
        params.n_threads = params.n_threads_batch = task.threads
        params.flash_attn_type = flash
        params.kv_unified = bool(unified)
        self._context = api.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = api.llama_get_memory(self._context)
        self._rows = rows
        self._batch = api.llama_batch_init(max(rows, len(PROMPT)), 0, 1)
        self._tokens = as_array(self._batch.token, max(rows, len(PROMPT)))
        self._positions = as_array(self._batch.pos, max(rows, len(PROMPT)))

    def generate(self, num_tokens: int, seed: int | None) -> list[list[int]]:
        """Token ids of each sequence; the likeliest ones without a seed."""
        samplers = [make_sampler(None if seed is None else seed * 64 + row) for row in range(self._rows)]
        self._read_prompt()
        first = len(PROMPT) - 1
        tokens = [api.llama_sampler_sample(sampler, self._context, first) for sampler in samplers]
        texts = [[token] for token in tokens]
        self._lay_rows()
        for position in range(len(PROMPT), len(PROMPT) + num_tokens - 1):
            self._tokens[: self._rows] = tokens
            self._positions[: self._rows] = position
            self._decode()
            tokens = [api.llama_sampler_sample(sampler, self._context, row) for row, sampler in enumerate(samplers)]
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
        for sampler in samplers:
            api.llama_sampler_free(sampler)
        return texts

    def _read_prompt(self) -> None:
        """The prompt as sequence 0, then every other sequence begins with it."""
        api.llama_memory_clear(self._memory, False)
        batch = self._batch
        batch.n_tokens = len(PROMPT)
        self._tokens[: len(PROMPT)] = PROMPT
        self._positions[: len(PROMPT)] = range(len(PROMPT))
        for index in range(len(PROMPT)):
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index == len(PROMPT) - 1
        self._decode()
        for row in range(1, self._rows):
            api.llama_memory_seq_cp(self._memory, 0, row, -1, -1)

    def _lay_rows(self) -> None:
        batch = self._batch
        batch.n_tokens = self._rows
        for row in range(self._rows):
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, row, 1

    def _decode(self) -> None:
        status = api.llama_decode(self._context, self._batch)
        assert status == 0, f"llama_decode returned {status}"


def as_array(pointer: Any, length: int) -> NDArray[np.int32]:
    """The C array as numpy's, without a copy."""
    array: NDArray[np.int32] = np.ctypeslib.as_array(pointer, (length,))
    return array


def make_sampler(seed: int | None) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if seed is None:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
    else:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(TOP_K))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(seed))
    return chain


if __name__ == "__main__":
    main()
