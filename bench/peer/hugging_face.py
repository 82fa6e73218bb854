"""transformers' generate, float32: `python -m bench.peer.hugging_face --model FOLDER`. Runs in promptgen's own environment."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2LMHeadModel

from bench.peer.task import GREEDY_TOKENS, NEW_TOKENS, PROMPT, TOP_K, parser, task_of, time_answers


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    args = options.parse_args()
    task = task_of(args)
    torch.set_num_threads(task.threads)
    model: Any = GPT2LMHeadModel.from_pretrained(task.model, dtype=torch.float32, attn_implementation=args.attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompt = torch.tensor([PROMPT])
    mask = torch.ones_like(prompt)

    @torch.inference_mode()
    def answer(rows: int, seed: int) -> list[int]:
        torch.manual_seed(seed)
        ids = model.generate(
            prompt,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=TOP_K,
            num_return_sequences=rows,
            max_new_tokens=NEW_TOKENS,
        )
        return [len(row) - len(PROMPT) for row in ids.tolist()]

    with torch.inference_mode():
        likeliest = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=GREEDY_TOKENS)
    time_answers(task, answer, likeliest[0, len(PROMPT) :].tolist())


if __name__ == "__main__":
    main()
