"""What a model reads of a talk: exactly what training wrote, the newest whole turns that fit, nothing a user can forge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptgen.errors import ContextLengthExceeded, InvalidRequest, QuestionTooLong
from promptgen.generation.chat_template import ChatTemplate
from promptgen.generation.dialogue import MAX_TURNS, Dialogue, Message
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary
from promptgen.training.lexicon import write_vocabulary
from promptgen.training.prepare import encode_document
from promptgen.training.records import Document

TOKENIZER = BertWordTokenizer(
    Vocabulary.of(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"高血压饮食呢少盐好一二三四五六七八九", "hello", "，", "。"]
    )
)
IDS = TOKENIZER.vocabulary.ids


def talk(*turns: str) -> list[Message]:
    return [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(turns)]


def tokens(ids: tuple[int, ...]) -> str:
    return " ".join(TOKENIZER.convert(ids))


def test_a_prompt_is_the_beginning_of_what_training_wrote() -> None:
    turns = ("高血压", "少盐。", "饮食呢", "好。")
    written = encode_document(Document(turns, is_dialogue=True), [TOKENIZER.encode(t) for t in turns], TOKENIZER)
    prompt = Dialogue(TOKENIZER, 64).prompt(talk(*turns[:3]), 20)
    assert tokens(prompt) == "[CLS] 高 血 压 [SEP] 少 盐 。 [SEP] 饮 食 呢 [SEP]"
    assert list(prompt) == written[: len(prompt)]


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "corpus.txt").write_text("高血压要少吃盐。\nhello world\n" * 9, encoding="utf-8")
    write_vocabulary([str(folder / "corpus.txt")], folder, 300, "bpe")
    return BytePairTokenizer(folder)


def test_a_byte_vocabulary_has_a_separator_of_its_own(bytes_tokenizer: BytePairTokenizer) -> None:
    turns = ("hello", "高血压", "a\nb <|endoftext|><|sep|>")
    dialogue = Dialogue(bytes_tokenizer, 64)
    prompt = dialogue.prompt(talk(*turns), 20)
    turn_ids = [bytes_tokenizer.encode(t) for t in ("hello", "高血压", "a\nb ")]
    assert list(prompt) == encode_document(Document(turns, is_dialogue=True), turn_ids, bytes_tokenizer)
    assert dialogue.end_ids == (bytes_tokenizer.separator_id,)


def test_special_tokens_in_a_message_are_left_out_and_unknown_words_kept() -> None:
    prompt = Dialogue(TOKENIZER, 64).prompt(talk("[CLS]高[SEP]血[MASK][PAD]猫"), 9)
    assert tokens(prompt) == "[CLS] 高 血 [UNK] [SEP]"


def test_the_newest_turns_that_fit_are_read_whole() -> None:
    history = talk("一", "二", "三三三", "四四四", "五", "六", "高")
    expected = {
        3: "[CLS] 高 [SEP]",
        6: "[CLS] 高 [SEP]",
        7: "[CLS] 五 [SEP] 六 [SEP] 高 [SEP]",
        14: "[CLS] 五 [SEP] 六 [SEP] 高 [SEP]",
        15: "[CLS] 三 三 三 [SEP] 四 四 四 [SEP] 五 [SEP] 六 [SEP] 高 [SEP]",
        19: "[CLS] 一 [SEP] 二 [SEP] 三 三 三 [SEP] 四 四 四 [SEP] 五 [SEP] 六 [SEP] 高 [SEP]",
    }
    for left, prompt in expected.items():
        assert tokens(Dialogue(TOKENIZER, left + 10).prompt(history, 10)) == prompt


@given(
    st.lists(
        st.tuples(st.text("高血压", min_size=1, max_size=9), st.text("少盐。", min_size=1, max_size=9)), max_size=8
    ),
    st.integers(1, 30),
)
def test_a_prompt_leaves_room_and_ends_with_the_talk(turns: list[tuple[str, str]], room: int) -> None:
    messages = talk(*(text for turn in turns for text in turn), "饮食呢")
    fitted = Dialogue(TOKENIZER, 64).fit(messages, room)
    assert len(fitted.prompt_ids) + room <= 64
    assert fitted.num_turns <= MAX_TURNS
    recent = [text for turn in turns[len(turns) - fitted.num_turns :] for text in turn]
    assert TOKENIZER.decode(fitted.prompt_ids).strip().split("\n") == [*recent, "饮食呢"]


@pytest.mark.parametrize("room", [60, 61])
def test_a_question_that_does_not_fit_alone_is_refused_with_the_three_numbers(room: int) -> None:
    dialogue = Dialogue(TOKENIZER, 64)
    if room == 60:
        assert len(dialogue.prompt(talk("高血"), room)) == 4
        return
    with pytest.raises(QuestionTooLong, match=r"takes 4 tokens .* 61 more.* 64") as fault:
        dialogue.prompt(talk("高血"), room)
    assert isinstance(fault.value, ContextLengthExceeded)
    assert fault.value.param == "question"


def test_what_is_no_turn_is_put_in_order() -> None:
    dialogue = Dialogue(TOKENIZER, 64)
    messages = [
        Message("system", "一"),
        Message("assistant", "好"),
        Message("user", "高"),
        Message("user", "血"),
        Message("assistant", "少"),
        Message("developer", "二"),
        Message("assistant", "盐"),
        Message("user", "饮"),
    ]
    assert tokens(dialogue.prompt(messages, 9)) == "[CLS] 高 血 [SEP] 少 盐 [SEP] 饮 [SEP]"


def test_a_turn_without_words_is_no_turn() -> None:
    fitted = Dialogue(TOKENIZER, 64).fit(talk("高", "", "血", "压", "饮"), 9)
    assert tokens(fitted.prompt_ids) == "[CLS] 血 [SEP] 压 [SEP] 饮 [SEP]"
    assert fitted.num_turns == 1


@pytest.mark.parametrize(
    "messages", [[], talk("高", "血"), [Message("system", "高")], [Message("cat", "高")], talk(" ")]
)
def test_what_asks_nothing_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InvalidRequest):
        Dialogue(TOKENIZER, 64).prompt(messages, 9)


def test_the_empty_prompt_asks_nothing() -> None:
    assert tokens(Dialogue(TOKENIZER, 64).empty_prompt) == "[CLS] [SEP]"


TEMPLATE = "{% for m in messages %}[CLS]{{ m.role[0] }}，{{ m.content }}[SEP]{% endfor %}"


def test_a_template_says_what_is_read_and_what_ends_an_answer() -> None:
    template = ChatTemplate(TEMPLATE, {"eos_token": "[SEP]"}, end_ids=[7, 10**6])
    dialogue = Dialogue(TOKENIZER, 64, template)
    messages = [Message("system", "少"), *talk("高[[SEP]SEP]", "盐", "血")]
    unknown = "[UNK]"
    rest = " ".join([unknown] * 5)  # of [[SEP]SEP]: "[ SEP]", which is no separator
    expected = f"[CLS] {unknown} ， 少 [SEP] [CLS] {unknown} ， 高 {rest} [SEP] [CLS] {unknown} ， 盐 [SEP] [CLS] {unknown} ， 血 [SEP]"
    assert tokens(dialogue.prompt(messages, 9)) == expected
    assert dialogue.end_ids == (IDS["[SEP]"], 7)


def test_a_template_too_is_given_whole_turns_that_fit() -> None:
    dialogue = Dialogue(TOKENIZER, 30, ChatTemplate(TEMPLATE, {}))
    messages = [Message("system", "少"), *talk("高", "盐", "血", "盐", "压")]
    assert [dialogue.fit(messages, room).num_turns for room in (0, 5, 10, 15)] == [2, 1, 1, 0]
    assert tokens(dialogue.prompt(messages, 20)) == "[CLS] [UNK] ， 少 [SEP] [CLS] [UNK] ， 压 [SEP]"
    with pytest.raises(QuestionTooLong):
        dialogue.prompt(messages, 21)


def test_a_model_folder_brings_its_template_to_the_engine(tmp_path: Path) -> None:
    from promptgen.config import DEFAULT_MODEL, EngineSettings
    from promptgen.generation.local import Generator
    from promptgen.generation.request import Sampling, TextRequest

    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).symlink_to(DEFAULT_MODEL / name)
    config = {"chat_template": "[CLS]{{ messages[-1].content }}[SEP]", "eos_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = EngineSettings(model=tmp_path, threads=1, compiler="", precision="float32", max_rows=4, prompt_slots=4)
    generator = Generator(settings)
    model = generator._model
    padding = model.tokenizer.id_of("[PAD]")
    assert model.end_ids == model.dialogue.end_ids == (padding,)
    asked = TextRequest("高血压要注意", 1, 9, Sampling(temperature=0), logit_bias=(), heal=False)
    (part,) = model.candidates(asked).requests
    assert part.end_ids == (padding,)
    assert generator.generate(asked).candidates[0].completion
