"""CTranslate2: `python -m bench.peer.ct2 --model FOLDER --type int8 --way hypotheses`.

Two ways to ask for n candidates: `hypotheses` (num_hypotheses=n) and `batch` (n copies of the prompt). CT2_USE_MKL comes from the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2  # type: ignore[import-not-found]

from bench.peer.task import GREEDY_TOKENS, NEW_TOKENS, PROMPT, TOP_K, parser, task_of, time_answers
from bench.peer.weights import read_vocabulary


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--type", default="float32", help="type computed in")
    options.add_argument("--way", default="hypotheses", choices=("hypotheses", "batch"))
    options.add_argument("--vocabulary", type=Path, required=True, help="folder with vocab.txt")
    args = options.parse_args()
    task = task_of(args)
    generator = ctranslate2.Generator(
        str(task.model), device="cpu", compute_type=args.type, inter_threads=1, intra_threads=task.threads
    )
    words = read_vocabulary(args.vocabulary)
    prompt = [words[token_id] for token_id in PROMPT]

    def ask(prompts: int, hypotheses: int, tokens: int, top_k: int) -> list[list[int]]:
        results: list[Any] = generator.generate_batch(
            [prompt] * prompts,
            beam_size=1,
            num_hypotheses=hypotheses,
            sampling_topk=top_k,
            sampling_temperature=1.0,
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
        )
        return [ids for result in results for ids in result.sequences_ids]

    def answer(rows: int, seed: int) -> list[int]:
        ctranslate2.set_random_seed(seed)
        many = (rows, 1) if args.way == "batch" else (1, rows)
        return list(map(len, ask(*many, NEW_TOKENS, TOP_K)))

    time_answers(task, answer, ask(1, 1, GREEDY_TOKENS, 1)[0])


if __name__ == "__main__":
    main()
