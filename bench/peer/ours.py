"""promptgen itself: `python -m bench.peer.ours --model FOLDER --precision int8 --compiler auto --cache FOLDER`.

Text to text, as callers use it: tokenizing, detokenizing and the random draws are in the time. Each answer has a salt of its own, so no prompt
is found in the cache. With a compiler, timing begins when the compiled step has been taken up.
"""

from __future__ import annotations

from pathlib import Path

import promptgen
from bench.peer.task import BEGIN, GREEDY_TOKENS, NEW_TOKENS, PROMPT, TOP_K, Task, parser, task_of, time_answers
from bench.peer.weights import read_vocabulary
from promptgen.config import EngineSettings


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--precision", default="int8")
    options.add_argument("--compiler", default="auto")
    options.add_argument("--cache", type=Path, required=True, help="folder of compiled kernels")
    args = options.parse_args()
    task = task_of(args)
    settings = EngineSettings(
        model=task.model, precision=args.precision, compiler=args.compiler, threads=task.threads, cache=args.cache
    )
    generator = promptgen.Generator(settings)
    prompt = prompt_of(task)
    check_step(generator, prompt, "compiled" if args.compiler else "torch", args.precision)

    def answer(rows: int, seed: int) -> list[int]:
        request = promptgen.TextRequest(
            prompt,
            rows,
            NEW_TOKENS,
            promptgen.Sampling(top_k=TOP_K, seed=seed),
            ignore_end=True,
            salt=f"{rows} {seed}",
            heal=False,
            distinct=False,
            rank="none",
        )
        given = generator.generate(request)
        assert given.num_prompt_tokens == len(PROMPT)
        return [candidate.num_tokens for candidate in given.candidates]

    time_answers(task, answer, greedy(generator, task, prompt))


def prompt_of(task: Task) -> str:
    """The text whose ids are PROMPT; the begin token is added by promptgen."""
    words = read_vocabulary(task.model)
    assert words[PROMPT[0]] == BEGIN
    return " ".join(words[token_id] for token_id in PROMPT[1:])


def check_step(generator: promptgen.Generator, prompt: str, step: str, precision: str) -> None:
    """Waits for the step that will stay. Raises RuntimeError if it is not the one that is asked for."""
    generator.settle()
    generator.generate(promptgen.TextRequest(prompt, 1, 2, ignore_end=True))  # takes it up
    description = generator._engine.stats.steps
    if not (description.startswith(step) and precision in description):
        raise RuntimeError(f"the step is {description!r} instead of {step}, {precision}")


def greedy(generator: promptgen.Generator, task: Task, prompt: str) -> list[int]:
    ids = {word: number for number, word in enumerate(read_vocabulary(task.model))}
    sampling = promptgen.Sampling(temperature=0)
    given = generator.generate(promptgen.TextRequest(prompt, 1, GREEDY_TOKENS, sampling, ignore_end=True, heal=False))
    return [ids[word] for word in given.candidates[0].completion.split() if word in ids]


if __name__ == "__main__":
    main()
