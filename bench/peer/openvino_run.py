"""OpenVINO GenAI: `python -m bench.peer.openvino_run --model FOLDER --way continuous --property INFERENCE_PRECISION_HINT=bf16`.

Two ways: `continuous` (ContinuousBatchingPipeline, num_return_sequences=n) and `stateful` (LLMPipeline without paged attention, n copies of the
prompt, since it draws one candidate a prompt). Ids go in as a tensor, ids come out; prefix caching is off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

from bench.peer.task import GREEDY_TOKENS, NEW_TOKENS, PROMPT, TOP_K, parser, task_of, time_answers

Ask = Callable[[int, Any], list[list[int]]]  # candidates, configuration -> ids


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--way", default="continuous", choices=("continuous", "stateful"))
    options.add_argument(
        "--property", action="append", default=[], metavar="NAME=VALUE", help="of OpenVINO's CPU plugin"
    )
    args = options.parse_args()
    task = task_of(args)
    properties: dict[str, str] = {"INFERENCE_NUM_THREADS": str(task.threads), "PERFORMANCE_HINT": "LATENCY"}
    properties |= dict(text.split("=", 1) for text in args.property)
    ask = (continuous if args.way == "continuous" else stateful)(task.model, properties)

    def answer(rows: int, seed: int) -> list[int]:
        return list(map(len, ask(rows, sampling(rows if args.way == "continuous" else 1, seed))))

    time_answers(task, answer, ask(1, configure(GREEDY_TOKENS))[0])


def configure(tokens: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    config.apply_chat_template = False
    return config


def sampling(sequences: int, seed: int) -> Any:
    config = configure(NEW_TOKENS)
    config.do_sample, config.temperature, config.top_k = True, 1.0, TOP_K
    config.num_return_sequences, config.rng_seed = sequences, seed
    return config


def continuous(model: Path, properties: dict[str, str]) -> Ask:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = 1, False
    pipeline = genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
    prompt = openvino.Tensor(np.array([PROMPT], np.int64))

    def ask(rows: int, config: Any) -> list[list[int]]:
        (result,) = pipeline.generate([prompt], [config])
        return list(result.m_generation_ids)

    return ask


def stateful(model: Path, properties: dict[str, str]) -> Ask:
    pipeline = genai.LLMPipeline(str(model), "CPU", ATTENTION_BACKEND="SDPA", **properties)

    def ask(rows: int, config: Any) -> list[list[int]]:
        prompts = np.array([PROMPT] * rows, np.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(prompts), openvino.Tensor(np.ones_like(prompts)))
        return list(pipeline.generate(inputs, config).tokens)

    return ask


if __name__ == "__main__":
    main()
