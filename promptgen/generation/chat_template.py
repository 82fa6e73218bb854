"""The chat template that comes with a model: how its messages become text.

It is Jinja, from chat_template.jinja or the `chat_template` of tokenizer_config.json, as transformers writes and reads them. A template is a
program that somebody else wrote: it runs in Jinja's sandbox, which gives it the messages and nothing of this process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Never

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptgen.errors import FileFault, InvalidRequest

TEMPLATE_FILE, CONFIG_FILE, SAMPLING_FILE = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ChatTemplate:
    """A compiled template and the special tokens it may name. `end_tokens` end an answer; `end_ids` are more of them, as ids."""

    def __init__(
        self, source: str, tokens: Mapping[str, str], *, end_ids: Sequence[int] = (), path: Path | str = CONFIG_FILE
    ) -> None:
        """Raises FileFault naming `path` for a template that is not Jinja."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateError as fault:
            raise FileFault(path, f"its chat template is not Jinja: {fault}") from fault
        self._tokens = dict(tokens)
        self.end_ids = frozenset(end_ids)

    @property
    def end_tokens(self) -> tuple[str, ...]:
        return (self._tokens["eos_token"],) if "eos_token" in self._tokens else ()

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """The template of a model folder, None if it has none. Raises FileFault for files that cannot be used."""
        config = _read_object(folder / CONFIG_FILE)
        path, source = folder / CONFIG_FILE, config.get("chat_template")
        if (folder / TEMPLATE_FILE).exists():
            path = folder / TEMPLATE_FILE
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as fault:
                raise FileFault(path, f"cannot be read: {fault}") from fault
        if isinstance(source, list):  # several by name
            source = next(
                (t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default"), None
            )
        if source is None:
            return None
        if not isinstance(source, str):
            raise FileFault(path, "chat_template must be text, or a list with one named default")
        tokens = {name: text for name in _TOKENS if (text := _token_text(config.get(name))) is not None}
        return cls(source, tokens, end_ids=_end_ids(folder), path=path)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages as the model reads them, up to where its answer begins. Raises InvalidRequest if the template refuses them."""
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, **self._tokens
            )
        except Exception as fault:  # whatever its program runs into
            raise InvalidRequest(
                f"the model's chat template does not take these messages: {fault}"[:300], param="messages"
            ) from fault


def _refuse(message: str) -> Never:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise FileFault(path, f"is not JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise FileFault(path, "must be a JSON object")
    return value


def _token_text(value: Any) -> str | None:
    """A token is text, or an object with its text in `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _end_ids(folder: Path) -> list[int]:
    value = _read_object(folder / SAMPLING_FILE).get("eos_token_id")
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]
