"""Log lines on stderr, plain or as JSON. Writing one never raises and never waits: a reader that is gone, or reads nothing, costs lines and no answer.

Prompt text is never logged.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import select
import sys
import time

_EXTRA = ("status", "took_ms", "request_id", "code", "prompt_tokens", "tokens")  # what a request adds to its lines
_EXTRA_JSON = ("method", "route", *_EXTRA)
_AT_ONCE = select.PIPE_BUF  # bytes that a pipe which is ready takes without waiting


def start_logging(*, as_json: bool) -> None:
    """From now on logs go to stderr, as do the stacks of all threads when native code crashes."""
    handler: logging.Handler = logging.NullHandler()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        handler = StderrHandler()
        faulthandler.enable()
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and what a request adds."""

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        value |= {key: getattr(record, key) for key in _EXTRA_JSON if hasattr(record, key)}
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value, ensure_ascii=False)


class PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{key}={getattr(record, key)}" for key in _EXTRA if hasattr(record, key))
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname.lower():7} {record.getMessage()} {extra}".rstrip()
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class StderrHandler(logging.Handler):
    """Writes whole lines to the descriptor of stderr. Lines that nobody takes are counted, and told when somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptor = sys.stderr.fileno()
        self._ready = select.poll()
        self._ready.register(self._descriptor, select.POLLOUT)
        self._num_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lost = f"{self._num_lost} lines were lost: nobody read the log\n" if self._num_lost else ""
            self._write((lost + self.format(record) + "\n").encode("utf-8", "replace"))
            self._num_lost = 0
        except OSError:
            self._num_lost += 1
        except Exception:
            self.handleError(record)

    def _write(self, data: bytes) -> None:
        """Raises BlockingIOError rather than to wait."""
        for begin in range(0, len(data), _AT_ONCE):
            if not self._ready.poll(0):
                raise BlockingIOError
            os.write(self._descriptor, data[begin : begin + _AT_ONCE])
