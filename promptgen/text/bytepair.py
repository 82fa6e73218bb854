"""GPT-2's byte-level BPE, read by the `tokenizers` library from tokenizer.json, or from vocab.json and merges.txt."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

from promptgen.errors import FileFault

END_TOKEN = "<|endoftext|>"
SEPARATOR_TOKEN = "<|sep|>"  # ends a line or a turn, as [SEP] does in word vocabularies
_END_NAMES = (END_TOKEN, "</s>", "<|end_of_text|>")
_NEWLINE = "\u010a"  # the token of the byte 0x0A
_BULK_CHUNK = 2000  # texts the library takes at a time


class BytePairTokenizer:
    """GPT-2's byte-level BPE, read by the `tokenizers` library.

    `begin_id` and `end_id` are one token, <|endoftext|>: it stands between documents. `separator_id` ends a line or a turn: <|sep|>, else
    the newline, else `end_id`. There is no unknown token: bytes spell everything. <|sep|> becomes one line break in text, other special
    tokens nothing.
    """

    def __init__(self, folder: Path) -> None:
        whole = folder / "tokenizer.json"
        self._inner = (
            _load_tokenizer_json(whole)
            if whole.exists()
            else _load_bpe_pair(folder / "vocab.json", folder / "merges.txt")
        )
        end_token = next((name for name in _END_NAMES if self._inner.token_to_id(name) is not None), None)
        if end_token is None:
            raise FileFault(folder, f"the BPE vocabulary has no {END_TOKEN} token to end a document")
        separator: int | None = self._inner.token_to_id(SEPARATOR_TOKEN)
        # Only what is there: with one token more the vocabulary would not fit the model.
        self._inner.add_special_tokens([end_token] if separator is None else [end_token, SEPARATOR_TOKEN])
        end: int = self._inner.get_vocab(with_added_tokens=True)[end_token]
        self.begin_id = self.end_id = end
        newline: int | None = self._inner.token_to_id(_NEWLINE)
        self.separator_id = next(i for i in (separator, newline, self.end_id) if i is not None)
        self.unknown_id: int | None = None
        added: dict[int, tokenizers.AddedToken] = self._inner.get_added_tokens_decoder()
        special_ids = {i for i, token in added.items() if token.special}
        self.banned_ids: tuple[int, ...] = tuple(sorted(special_ids - {self.end_id, self.separator_id}))
        self.special_tokens: tuple[str, ...] = tuple(added[i].content for i in sorted(special_ids))
        self._shown_as = {i: "\n" if i == separator else "" for i in special_ids}

    @property
    def size(self) -> int:
        return int(self._inner.get_vocab_size())

    def id_of(self, token: str) -> int | None:
        found: int | None = self._inner.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(_whole(text), add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """`encode` of each text, in order; the library uses all cores."""
        for begin in range(0, len(texts), _BULK_CHUNK):
            chunk = [_whole(text) for text in texts[begin : begin + _BULK_CHUNK]]
            for encoding in self._inner.encode_batch(chunk, add_special_tokens=False):
                yield list(encoding.ids)

    def convert(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries, in which a byte is a printable character, as in vocab.json."""
        return [self._inner.id_to_token(i) or "" for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        detokenizer = self.detokenizer("")
        return "".join([*map(detokenizer.push, ids), detokenizer.finish()])

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to a text; nothing for a special one."""
        shown = self._shown_as.get(token_id)
        return _bytes_of(shown if shown is not None else self._inner.id_to_token(token_id) or "")

    def detokenizer(self, prompt: str) -> _ByteDetokenizer:
        return _ByteDetokenizer(self._inner, self._shown_as)


class _ByteDetokenizer:
    """Gives out whole characters only: a token may end within one. Bytes that no character can hold become U+FFFD."""

    def __init__(self, inner: tokenizers.Tokenizer, shown_as: Mapping[int, str]) -> None:
        self._inner = inner
        self._shown_as = shown_as
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def fork(self) -> _ByteDetokenizer:
        other = _ByteDetokenizer(self._inner, self._shown_as)
        other._utf8.setstate(self._utf8.getstate())
        return other

    def push(self, token_id: int) -> str:
        shown = self._shown_as.get(token_id)
        token: str = shown if shown is not None else self._inner.id_to_token(token_id) or ""
        return self._utf8.decode(_bytes_of(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs: they are no characters, and the library takes none."""
    return text.encode("utf-8", "ignore").decode("utf-8")


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(map(BYTE_OF.__getitem__, token))
    except KeyError:  # a line break, or a token added to a tokenizer.json as plain text
        return token.encode()


def _bytes_of_gpt2() -> dict[str, int]:
    """GPT-2's reversible map of bytes to printable characters (encoder.py of openai/gpt-2), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


BYTE_OF = _bytes_of_gpt2()


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
    if not any(name in ids for name in _END_NAMES):
        inner.add_special_tokens([END_TOKEN])
    return inner
