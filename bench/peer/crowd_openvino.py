"""OpenVINO GenAI's continuous batching under many callers: `python -m bench.peer.crowd_openvino --model FOLDER --property NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

from bench.peer.crowd_task import SAMPLES, TOKENS, TOP_K, Task, drive, parser, task_of

CACHE_GB = 4
MAX_SEQUENCES = 1024  # more than are ever asked for: nobody waits for room


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--property", action="append", default=[], metavar="NAME=VALUE", help="of OpenVINO's CPU plugin"
    )
    args = options.parse_args()
    task = task_of(args)
    properties = {"INFERENCE_NUM_THREADS": str(task.threads)} | dict(text.split("=", 1) for text in args.property)
    for callers in task.callers:
        drive(task, callers, Pipeline(task, properties))


class Pipeline:
    def __init__(self, task: Task, properties: dict[str, str]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GB, False
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = MAX_SEQUENCES, 2 * MAX_SEQUENCES
        self._pipeline = genai.ContinuousBatchingPipeline(str(task.model), scheduler, "CPU", properties)
        self._handles: dict[int, Any] = {}
        self._number = 0

    def ask(self, caller: int, prompt: Sequence[int], seed: int) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = TOKENS, True, True
        config.temperature, config.top_k, config.num_return_sequences, config.rng_seed = 1.0, TOP_K, SAMPLES, seed
        config.apply_chat_template = False
        self._number += 1
        tensor = openvino.Tensor(np.array([prompt], np.int64))
        self._handles[caller] = self._pipeline.add_request(self._number, tensor, config)

    def step(self) -> list[int]:
        self._pipeline.step()
        finished = genai.GenerationStatus.FINISHED
        done = [caller for caller, handle in self._handles.items() if handle.get_status() == finished]
        for caller in done:
            candidates = self._handles.pop(caller).read_all()
            lengths = [len(candidate.generated_ids) for candidate in candidates]
            assert lengths == [TOKENS] * SAMPLES, f"asked for {SAMPLES} x {TOKENS} tokens, got {lengths}"
        return done


if __name__ == "__main__":
    main()
