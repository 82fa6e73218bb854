"""OpenVINO GenAI, while someone types: `python -m bench.peer.typing_openvino --model FOLDER --task FILE.json --property INFERENCE_PRECISION_HINT=bf16`.

ContinuousBatchingPipeline with prefix caching, num_return_sequences candidates. Its cache is shared by whole blocks of tokens (32 on a CPU), which few
prompts fill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

from bench.peer.typing_task import Key, TypingTask, parser, read_task, time_keystrokes


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    args = options.parse_args()
    task = read_task(args.task)
    properties: dict[str, str] = {"INFERENCE_NUM_THREADS": str(task.threads), "PERFORMANCE_HINT": "LATENCY"}
    properties |= dict(text.split("=", 1) for text in args.property)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = 1, True
    pipeline = genai.ContinuousBatchingPipeline(str(args.model), scheduler, "CPU", properties)

    def answer(key: Key, seed: int) -> list[int]:
        prompt = openvino.Tensor(np.array([key.ids], np.int64))
        (result,) = pipeline.generate([prompt], [sampling(task, seed)])
        return [len(ids) - (ids[-1] == task.end_id) for ids in result.m_generation_ids]

    time_keystrokes(args.engine, task, answer)


def sampling(task: TypingTask, seed: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.num_return_sequences = task.tokens, task.samples
    config.do_sample, config.temperature, config.top_k = True, task.temperature, task.top_k
    config.top_p, config.rng_seed = task.top_p or 1.0, seed
    config.eos_token_id, config.stop_token_ids = task.end_id, {task.end_id}
    config.apply_chat_template = False
    return config


if __name__ == "__main__":
    main()
