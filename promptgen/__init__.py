"""promptgen: several ways a prompt could go on, in tens of milliseconds, from a small GPT-2 of your own.

The public names; each is loaded when it is first used, so that `import promptgen` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptgen.generation.local import Generator, generate_text
    from promptgen.generation.reference import fast_sample_sequence
    from promptgen.generation.request import Answer, Candidate, Sampling, TextRequest
    from promptgen.text.detokenize import TextJoiner, join_text
    from promptgen.text.tokenizer import BertWordTokenizer, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BertWordTokenizer",
    "Candidate",
    "Generator",
    "Sampling",
    "TextJoiner",
    "TextRequest",
    "fast_sample_sequence",
    "generate_text",
    "join_text",
    "load_tokenizer",
]

_HOMES = {
    "Answer": "generation.request",
    "BertWordTokenizer": "text.tokenizer",
    "Candidate": "generation.request",
    "Generator": "generation.local",
    "Sampling": "generation.request",
    "TextJoiner": "text.detokenize",
    "TextRequest": "generation.request",
    "fast_sample_sequence": "generation.reference",
    "generate_text": "generation.local",
    "join_text": "text.detokenize",
    "load_tokenizer": "text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
