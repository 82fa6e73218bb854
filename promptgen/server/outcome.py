"""What became of a request. Handlers fill it in; the outermost middleware tells the log, the metrics and the trace."""

from __future__ import annotations

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


def route_of(request: web.Request) -> str:
    """The template of the route: never the path that was sent, which anyone can make up."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def server_timing(answer: Answer, total_s: float) -> str:
    """The Server-Timing header: where the time went, in milliseconds."""
    parts = {
        "queue": answer.queue_s,
        "prefill": answer.prefill_s,
        "decode": answer.decode_s,
        "total": total_s,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts.items())
