"""Every error this package raises on purpose, in one tree.

    PromptgenError
    ├── UsageError           the caller asked for something impossible          exit 2
    ├── FileFault            a model, vocabulary, config or corpus is unusable  exit 3
    ├── NumericalFailure     training diverged                                  exit 4
    ├── DiskFault            a file could not be written                        exit 5
    ├── Stopped              a signal ended a long run, whose work is kept      exit 130 or 143
    └── RequestError         one request cannot be answered                     an HTTP status, see server/faults.py
        ├── InvalidRequest          a field is wrong; `param` names it
        │   └── ContextLengthExceeded   prompt + new tokens do not fit the window
        │       └── QuestionTooLong         likewise, of a dialogue without its history
        ├── Overloaded              no room now; ask again after `retry_after_s`
        ├── UnknownModel            no such model is served
        ├── Superseded              a newer request of its session took its place
        ├── DeadlineExceeded        no token came before the deadline
        └── EngineFailure           the engine failed on this request

The exit codes are the command line's promise; `exit_code` carries them.
"""

from __future__ import annotations


class PromptgenError(Exception):
    """Base of all errors that promptgen raises on purpose."""

    exit_code: int = 70


class UsageError(PromptgenError):
    exit_code = 2


class FileFault(PromptgenError):
    """A file cannot be used. The message names the file and the fault in one line."""

    exit_code = 3

    def __init__(self, path: object, fault: str) -> None:
        super().__init__(f"{path}: {fault}")
        self.path = str(path)
        self.fault = fault


class NumericalFailure(PromptgenError):
    exit_code = 4


class DiskFault(PromptgenError):
    exit_code = 5


class Stopped(PromptgenError):
    """A signal ended a long run. What was done is on disk; the same command goes on from there."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"{message}; run the same command again to go on")
        self.exit_code = 128 + signum


class RequestError(PromptgenError):
    """One request cannot be answered.

    `code` is a stable machine-readable word, `param` the request field at fault (wire name) or None.
    """

    code: str = "request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """`index` is that of the request among several that were sent together."""

    exit_code = 2
    code = "invalid_value"
    index: int = 0


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, num_prompt_tokens: int, num_new_tokens: int, max_window: int) -> None:
        super().__init__(
            f"the context takes {num_prompt_tokens} tokens and maxlength asks for {num_new_tokens} more, "
            f"but this model's window holds {max_window}; shorten the context or lower maxlength",
            param="context",
        )
        self.num_prompt_tokens, self.num_new_tokens, self.window = num_prompt_tokens, num_new_tokens, max_window


class ChoiceTooLong(ContextLengthExceeded):
    def __init__(self, index: int, num_tokens: int, max_window: int) -> None:
        InvalidRequest.__init__(
            self,
            f"choice {index} and the context take {num_tokens} tokens, but this model's window holds {max_window}; shorten them",
            param="choices",
        )
        self.num_prompt_tokens, self.num_new_tokens, self.window = num_tokens, 0, max_window


class QuestionTooLong(ContextLengthExceeded):
    def __init__(self, num_prompt_tokens: int, num_new_tokens: int, max_window: int) -> None:
        InvalidRequest.__init__(
            self,
            f"the question takes {num_prompt_tokens} tokens and max_new_tokens asks for {num_new_tokens} more, "
            f"but this model's window holds {max_window}; shorten the question or lower max_new_tokens",
            param="question",
        )
        self.num_prompt_tokens, self.num_new_tokens, self.window = num_prompt_tokens, num_new_tokens, max_window


class Overloaded(RequestError):
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownModel(RequestError):
    code = "unknown_model"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class Superseded(RequestError):
    code = "superseded"

    def __init__(self) -> None:
        super().__init__("a newer request of this session took its place")


class DeadlineExceeded(RequestError):
    code = "deadline_exceeded"


class EngineFailure(RequestError):
    code = "engine_failure"
