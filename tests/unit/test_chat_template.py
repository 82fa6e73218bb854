"""Templates as models bring them: found, rendered as transformers renders them, kept in the sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from promptgen.errors import FileFault, InvalidRequest
from promptgen.generation.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "hi {{ 7 * 7 }}"},
    {"role": "assistant", "content": "你好"},
    {"role": "user", "content": "ok?"},
]


def folder_with(folder: Path, config: Any, **files: str) -> Path:
    (folder / "tokenizer_config.json").write_text(
        config if isinstance(config, str) else json.dumps(config), encoding="utf-8"
    )
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    assert ChatTemplate.load(folder_with(tmp_path, {"eos_token": "</s>"})) is None


def test_it_renders_what_transformers_renders(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="<|im_end|>", chat_template=CHATML
    )
    expected = reference.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate.load(
        folder_with(tmp_path, {"chat_template": CHATML, "eos_token": {"content": "<|im_end|>"}})
    )
    assert template is not None
    assert template.render(TALK) == expected
    assert "{{ 7 * 7 }}" in expected
    assert template.end_tokens == ("<|im_end|>",)


def test_a_file_of_its_own_goes_before_the_configuration(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"chat_template": "old"}, chat_template__jinja="new {{ messages | length }}")
    template = ChatTemplate.load(folder)
    assert template is not None
    assert template.render(TALK) == "new 3"


def test_of_several_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    template = ChatTemplate.load(folder_with(tmp_path, {"chat_template": several}))
    assert template is not None
    assert template.render([]) == "plain"


def test_ends_are_read_from_the_generation_configuration_too(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"chat_template": "x"}, generation_config__json='{"eos_token_id": [3, 5, "no"]}')
    template = ChatTemplate.load(folder)
    assert template is not None
    assert template.end_ids == {3, 5}


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_what_the_sandbox_forbids_is_the_callers_fault_and_no_crash(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template") as fault:
        ChatTemplate(source, {}).render(TALK)
    assert fault.value.param == "messages"
    assert len(str(fault.value)) <= 300


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ({"chat_template": 7}, "must be text"),
        ({"chat_template": "{% for %}"}, "not Jinja"),
    ],
)
def test_a_broken_file_is_named_at_the_start(tmp_path: Path, config: Any, match: str) -> None:
    with pytest.raises(FileFault, match=match) as fault:
        ChatTemplate.load(folder_with(tmp_path, config))
    assert fault.value.path.endswith("tokenizer_config.json")
