"""promptgen itself, while someone types: `python -m bench.peer.typing_ours --model FOLDER --task FILE.json --reuse session`.

Text to text, healed, different, ranked: as callers use it. `--way http` asks a server process over a connection that stays open.
"""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack

import promptgen
from bench.latency import server
from bench.peer.typing_task import Key, parser, read_task, time_keystrokes
from promptgen.config import EngineSettings
from promptgen.generation.request import Sampling


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--reuse", default="session", choices=("nothing", "prefix", "session"))
    options.add_argument("--way", default="process", choices=("process", "http"))
    args = options.parse_args()
    task = read_task(args.task)
    session = "typist" if args.reuse == "session" else ""
    with ExitStack() as stack:
        if args.way == "process":
            settings = EngineSettings(model=args.model, threads=task.threads)
            generator = promptgen.Generator(settings)
            generator.settle()

            def answer(key: Key, seed: int) -> list[int]:
                sampling = Sampling(task.temperature, task.top_k, task.top_p, seed=task.seed)
                salt = str(seed) if args.reuse == "nothing" else ""
                asked = promptgen.TextRequest(key.text, task.samples, task.tokens, sampling, salt=salt, session=session)
                return [candidate.num_tokens for candidate in generator.generate(asked).candidates]

        else:
            connection = http.client.HTTPConnection("127.0.0.1", stack.enter_context(server(args.model)))

            def answer(key: Key, seed: int) -> list[int]:
                body = {"context": key.text, "samples": task.samples, "maxlength": task.tokens, "seed": task.seed}
                body |= {
                    "temperature": task.temperature,
                    "top_k": task.top_k,
                    "top_p": task.top_p,
                    "repetition_penalty": 1.0,
                }
                body |= {"details": True}
                body |= {"session": session} if session else {}
                connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
                told = json.loads(connection.getresponse().read())
                return [candidate["num_tokens"] for candidate in told["candidates"]]

        time_keystrokes(args.engine, task, answer)


if __name__ == "__main__":
    main()
