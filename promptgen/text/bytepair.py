"""GPT-2's byte-level BPE, read by the `tokenizers` library from tokenizer.json, or from vocab.json and merges.txt."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from promptgen.errors import FileFault

_BULK_CHUNK = 2000  # texts the library takes at a time


class BytePairTokenizer:
    """GPT-2's byte-level BPE, read by the `tokenizers` library. Its one special token begins and ends documents."""

    def __init__(self, folder: Path) -> None:
        whole = folder / "tokenizer.json"
        self._inner = (
            _load_tokenizer_json(whole)
            if whole.exists()
            else _load_bpe_pair(folder / "vocab.json", folder / "merges.txt")
        )
        end = next(
            (
                i
                for name in ("<|endoftext|>", "</s>", "<|end_of_text|>")
                if (i := self._inner.token_to_id(name)) is not None
            ),
            None,
        )
        if end is None:
            raise FileFault(folder, "the BPE vocabulary has no <|endoftext|> token to end a document")
        self.begin_id = self.end_id = end
        added: dict[int, tokenizers.AddedToken] = self._inner.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.banned_ids: tuple[int, ...] = tuple(sorted(self._special_ids - {end}))

    @property
    def size(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        # Half a surrogate pair is no character; the library takes none.
        whole = text.encode("utf-8", "ignore").decode("utf-8")
        return list(self._inner.encode(whole, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """`encode` of each text, in order; the library uses all cores."""
        for begin in range(0, len(texts), _BULK_CHUNK):
            for encoding in self._inner.encode_batch(
                list(texts[begin : begin + _BULK_CHUNK]), add_special_tokens=False
            ):
                yield list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def detokenizer(self, prompt: str) -> _ByteDetokenizer:
        return _ByteDetokenizer(self._inner, self._special_ids)


class _ByteDetokenizer:
    """Gives out whole characters only: a token may end within one."""

    def __init__(self, inner: tokenizers.Tokenizer, special_ids: frozenset[int]) -> None:
        self._inner = inner
        self._special_ids = special_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def fork(self) -> _ByteDetokenizer:
        other = _ByteDetokenizer(self._inner, self._special_ids)
        other._utf8.setstate(self._utf8.getstate())
        return other

    def push(self, token_id: int) -> str:
        token = "" if token_id in self._special_ids else self._inner.id_to_token(token_id) or ""
        return self._utf8.decode(bytes(_BYTE_OF[c] for c in token if c in _BYTE_OF))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _bytes_of_gpt2() -> dict[str, int]:
    """GPT-2's reversible map of bytes to printable characters (encoder.py of openai/gpt-2), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


_BYTE_OF = _bytes_of_gpt2()


def _load_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as fault:  # the library raises bare Exception
        raise FileFault(path, f"is not a tokenizer.json: {fault}") from fault
    if not isinstance(inner.decoder, tokenizers.decoders.ByteLevel):
        raise FileFault(path, "is not byte-level BPE; other kinds are not served yet")
    # A tokenizer.json may bring a habit of cutting and padding; prompts are to come whole.
    inner.no_truncation()
    inner.no_padding()
    return inner


def _load_bpe_pair(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    try:
        ids = json.loads(vocab.read_text(encoding="utf-8"))
        lines = [
            line for line in merges.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#version")
        ]
        pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
        inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=pairs))
    except OSError as fault:
        raise FileFault(fault.filename, f"cannot be read: {fault.strerror}") from fault
    except Exception as fault:  # bad JSON, bad pairs, or the library's bare Exception
        raise FileFault(vocab.parent, f"vocab.json and merges.txt are not a byte-level BPE: {fault}") from fault
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return inner
