"""What became of a request. Handlers fill it in; the outermost middleware tells the log, the metrics and the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from promptgen.generation.request import Answer

CLIENT_LEFT = 499  # in the log and the metrics; nobody is there to be sent it


@dataclass(slots=True)
class Outcome:
    """`code` is that of the error, if there was one. `left` says that the caller hung up, or was cut off, before the end."""

    answer: Answer | None = None
    code: str | None = None
    left: bool = False


# What the door writes on a request for those behind it.
ID = web.RequestKey("id", str)
CALLER = web.RequestKey("caller", str)  # a name for the key that was sent
OUTCOME = web.RequestKey("outcome", Outcome)
EXPECTED = web.RequestKey("expected", str)  # what the header Expect said


def route_of(request: web.Request) -> str:
    """The template of the route: never the path that was sent, which anyone can make up."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def combined(answers: Sequence[Answer]) -> Answer | None:
    """Several answers of one request as one: what became of it, for the log and the metrics."""
    if not answers:
        return None
    return Answer(
        tuple(candidate for answer in answers for candidate in answer.candidates),
        sum(answer.num_prompt_tokens for answer in answers),
        max(answer.queue_s for answer in answers),
        max(answer.prefill_s for answer in answers),
        max(answer.decode_s for answer in answers),
        num_unknown_tokens=sum(answer.num_unknown_tokens for answer in answers),
    )


def server_timing(answer: Answer, total_s: float) -> str:
    """The Server-Timing header: where the time went, in milliseconds."""
    parts = {
        "queue": answer.queue_s,
        "prefill": answer.prefill_s,
        "decode": answer.decode_s,
        "total": total_s,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts.items())
