"""`promptgen generate --input FILE --output FILE.jsonl`: a context a line in, a JSON record a line out.

Records stand in the order of the input. An interrupted run is continued: the whole records that are there are kept, a half-written last
line is cut off. A line that cannot be answered becomes an error record, and the run goes on. With --seed, line i is
drawn with seed + i, so that a continued run gives the same file.

    {"index": 0, "context": "...", "result": ["...", ...], "seed": 7}
    {"index": 1, "context": "...", "error": {"message": "...", "code": "..."}}
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from promptgen.config import GenerateSettings
from promptgen.errors import FileFault, RequestError
from promptgen.generation.local import Generator
from promptgen.generation.request import Answer, TextRequest
from promptgen.repl import text_request


def run(generator: Generator, settings: GenerateSettings, source: Path, target: Path) -> int:
    """Answers every line of `source` into `target`. Raises FileFault for files that cannot be read or belong to another input."""
    contexts = _read_contexts(source)
    if target.exists() and target.samefile(source):
        raise FileFault(target, "is the input; name another --output")
    done = _repair(target, contexts)
    base_seed = secrets.randbits(53) if settings.seed is None else settings.seed
    requests = [
        text_request(dataclasses.replace(settings, seed=base_seed + index), generator.info.sampling, context)
        for index, context in enumerate(contexts)
    ]
    bar = tqdm(total=len(contexts), initial=done, unit=" contexts", desc="generate", disable=None)
    with target.open("a", encoding="utf-8", newline="\n") as file, bar:
        for record in _records(generator, requests, contexts, done):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    return 0


def _read_contexts(source: Path) -> list[str]:
    try:
        data = source.read_bytes()
    except OSError as fault:
        raise FileFault(source, f"cannot be read: {fault.strerror}") from fault
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return [line.rstrip("\r") for line in data.decode(encoding).removesuffix("\n").split("\n")] if data else []
        except UnicodeDecodeError:
            continue
    raise FileFault(source, "is neither UTF-8 nor GB18030; convert it, for example with iconv -t UTF-8")


def _repair(target: Path, contexts: list[str]) -> int:
    """The number of whole records in `target`, which is cut after the last of them. Raises FileFault for a file with anything else in it."""
    if not target.exists():
        return 0
    whole = num_records = 0
    with target.open("rb+") as file:
        for index, line in enumerate(file):
            is_whole = line.endswith(b"\n")
            if index >= len(contexts) or not _is_record(line, is_whole, index, contexts[index]):
                raise FileFault(
                    target,
                    f"line {index + 1} is not the record of line {index + 1} of the input; name another --output",
                )
            if not is_whole:
                break
            whole += len(line)
            num_records += 1
        file.truncate(whole)
        file.flush()
        os.fsync(file.fileno())
    return num_records


def _is_record(line: bytes, is_whole: bool, index: int, context: str) -> bool:
    """Whether this is the record of a context, or the beginning of it."""
    begin = json.dumps({"index": index, "context": context}, ensure_ascii=False)[:-1].encode()
    if not is_whole:
        return line.startswith(begin) or begin.startswith(line)
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.startswith(begin)


def _records(
    generator: Generator, requests: list[TextRequest], contexts: list[str], done: int
) -> Iterator[dict[str, Any]]:
    """Records from `done` on, in order; those that complete early wait for their turn."""
    asked = [index for index in range(done, len(contexts)) if contexts[index].strip()]
    ready: dict[int, dict[str, Any]] = {
        index: {"index": index, "context": contexts[index], "result": []}
        for index in range(done, len(contexts))
        if not contexts[index].strip()
    }
    next_index = done
    while next_index in ready:
        yield ready.pop(next_index)
        next_index += 1
    for position, answer in generator.generate_many(requests[index] for index in asked):
        index = asked[position]
        ready[index] = _record(index, contexts[index], requests[index], answer)
        while next_index in ready:
            yield ready.pop(next_index)
            next_index += 1


def _record(index: int, context: str, request: TextRequest, answer: Answer | RequestError) -> dict[str, Any]:
    if isinstance(answer, RequestError):
        return {"index": index, "context": context, "error": {"message": str(answer), "code": answer.code}}
    return {
        "index": index,
        "context": context,
        "result": [context + c.completion for c in answer.candidates],
        "seed": request.sampling.seed,
    }
