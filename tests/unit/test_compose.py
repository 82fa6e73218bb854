"""Dialogues made of aspects: later questions name nothing, answers state the same facts, no sentence twice, held-out wordings kept apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from promptgen.errors import FileFault
from promptgen.text.tokenizer import load_tokenizer
from promptgen.training import expand
from promptgen.training.compose import Composed, repeats_a_sentence, sentences
from promptgen.training.expand import Field

REAL_DATA = Path(__file__).resolve().parents[2] / "data"
MODEL = REAL_DATA.parent / "model" / "final_model"
NUM_REAL = 12_000  # of the composed dialogues that are read here

TALK = """
[talk]
openers = ["请问，"]
then = ["对了，"]
switch = ["那{name}呢？", "换成{name}呢？", "要是{name}呢？"]

[[aspects]]
id = "diet"
first = ["{name}吃什么？", "{name}怎么吃？", "{name}饮食", "{name}的饭菜怎么做？", "{name}多吃什么？"]
follow = ["那饮食呢？", "吃什么？", "怎么吃？", "三餐呢？", "饮食上呢？"]
answers = ["{name}要多吃{eat=1-2}。"]
not_for = ["病7"]

[[aspects]]
id = "tests"
first = ["{name}查什么？", "怎么查{name}？", "{name}检查", "{name}要查吗？", "{name}怎么确诊？"]
follow = ["那检查呢？", "查什么？", "怎么确诊？", "要查吗？", "检查什么？"]
answers = ["{name}要查{tests=1-3}，<听医生的|去医院>。"]

[[aspects]]
id = "more"
weight = 5
after = ["diet"]
first = []
follow = ["还有吗？", "别的呢？", "还能吃什么？", "再说说。", "其他呢？"]
answers = ["{name}也可以吃{eat=3}。"]

[[aspects]]
id = "rest"
lacking = "tests"
first = ["{name}要休息吗？", "{name}能动吗？", "{name}能上班吗？", "{name}累吗？", "{name}要躺着吗？"]
follow = ["要休息吗？", "能动吗？", "能上班吗？", "累吗？", "要躺着吗？"]
answers = ["{name}先休息。"]
"""


def condition(n: int, extra: str = 'tests = ["血压", "心电图", "尿检", "彩超"]') -> str:
    return f'[[entities]]\nname = "病{n}"\nen = "ill {n}"\neat = ["米{n}", "面{n}", "豆{n}"]\n{extra}\n'


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Field]:
    def make_field(table: str) -> Field:
        (tmp_path / "table.toml").write_text(table, encoding="utf-8")
        return expand.load_field(tmp_path)

    return make_field


@pytest.fixture
def field(make: Callable[[str], Field]) -> Field:
    return make(
        TALK
        + "".join(map(condition, range(10, 40)))
        + condition(7)
        + condition(8, "")
        + condition(9, 'tests = ["血压", "心电图", "尿检"]\ncalled = ["老九"]')
    )


def composed(source: Field, num: int = 1500) -> list[Composed]:
    return list(expand.composer(source).compose(num, "0"))


def test_composition_is_deterministic_distinct_and_as_long_as_asked(field: Field) -> None:
    found = composed(field)
    assert len(found) == len({dialogue.texts for dialogue in found}) == 1500
    assert found == composed(field)
    assert found != list(expand.composer(field).compose(1500, "1"))


def test_it_ends_when_nothing_new_is_left(make: Callable[[str], Field]) -> None:
    source = make(
        '[[aspects]]\nid = "a"\nfirst = ["{name}吗？"]\nfollow = []\nanswers = ["{name}好。"]\n'
        + condition(1)
        + condition(2)
    )
    assert {re.sub("？", "", dialogue.texts[0]) for dialogue in composed(source)} == {"病1吗", "病2吗"}


def test_first_questions_name_the_thing_and_later_ones_do_not(field: Field) -> None:
    for dialogue in composed(field):
        assert re.search(r"病\d+|老九", dialogue.texts[0])
        for question, wording in zip(dialogue.texts[2::2], dialogue.wordings[1:], strict=True):
            assert ("病" in question) == (wording in field.talk.switch)


def test_an_answer_is_about_what_was_named_last_and_states_the_first_facts(field: Field) -> None:
    num_after_switch = 0
    for dialogue in composed(field):
        about = ""
        for question, answer in zip(dialogue.texts[::2], dialogue.texts[1::2], strict=True):
            named = re.search(r"病\d+|老九", question)
            if named:
                num_after_switch += bool(about)
                about = named[0].replace("老九", "病9")
            assert answer.startswith(about)
            number = about.removeprefix("病")
            assert answer in {
                f"{about}要多吃米{number}和面{number}。",
                f"{about}也可以吃豆{number}。",
                f"{about}要查血压、心电图和尿检，听医生的。",
                f"{about}要查血压、心电图和尿检，去医院。",
                f"{about}先休息。",
            }
    assert num_after_switch > 20


def test_aspects_keep_to_what_they_are_for(field: Field) -> None:
    answers = {answer for dialogue in composed(field) for answer in dialogue.texts[1::2]}
    assert not [answer for answer in answers if answer.startswith(("病7要多吃", "病7也"))]
    assert [answer for answer in answers if answer.startswith("病7要查")]
    assert {answer for answer in answers if "休息" in answer} == {"病8先休息。"}
    assert not [answer for answer in answers if answer.startswith("病8要查")]


def test_an_aspect_that_comes_after_another_does(field: Field) -> None:
    befores = {
        dialogue.texts[turn - 2]
        for dialogue in composed(field)
        for turn in range(3, len(dialogue.texts), 2)
        if "也可以" in dialogue.texts[turn]
    }
    assert befores
    assert all("要多吃" in before for before in befores)


def test_other_names_stand_in_first_questions_only(field: Field) -> None:
    found = composed(field)
    assert [dialogue for dialogue in found if "老九" in dialogue.texts[0]]
    assert not [text for dialogue in found for text in dialogue.texts[1:] if "老九" in text]


def test_questions_vary_around_their_wordings(field: Field) -> None:
    questions = [question for dialogue in composed(field) for question in dialogue.texts[::2]]
    assert any(question.startswith("请问，") for question in questions)
    assert any(question.startswith("对了，") for question in questions)
    assert 0.1 < sum(not question.endswith(("？", "。")) for question in questions) / len(questions) < 0.5


def test_held_out_wordings_are_never_asked_in_training(field: Field) -> None:
    entities = {str(entity["name"]): entity for entity in field.entities}
    counts = Counter[bool]()
    for dialogue in composed(field):
        counts[dialogue.held_out] += 1
        for wording, answer in zip(dialogue.wordings, dialogue.texts[1::2], strict=True):
            name = re.match(r"病\d+", answer)
            assert name is not None
            assert expand.is_held_out(field, (wording,), entities[name[0]]) == dialogue.held_out
    assert 0.01 < counts[True] / counts.total() < 0.2


def test_sentences_are_counted_not_clauses() -> None:
    assert sentences("要戒烟，要运动。Stop 1.5 mg. Go! 好") == ["要戒烟，要运动", "Stop 1.5 mg", "Go", "好"]
    assert repeats_a_sentence(["要戒烟。", "好。要戒烟！"])
    assert not repeats_a_sentence(["要戒烟。", "要戒烟，好。"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('follow = ["那饮食呢？"', 'follow = ["{name}的饮食呢？"', "the follow-up '{name}的饮食呢？' names {name}"),
        ('first = ["{name}吃什么？"', 'first = ["吃什么？"', "'吃什么？' does not name {name}"),
        ('answers = ["{name}先休息。"]', 'answers = ["先休息。"]', "'先休息。' does not name {name}"),
        ('"怎么吃？"', '"吃什么？"', "diet lists a wording twice: ['吃什么？']"),
        ('after = ["diet"]', 'after = ["food"]', "more is asked after unknown aspects ['food']"),
        ("{name}先休息。", "{name}先休息。，", "slip '。，'"),
        ("{name}先休息。", "{name}先休息{sleep}。", "unknown keys ['sleep']"),
    ],
)
def test_faults_of_aspects_are_reported(make: Callable[[str], Field], old: str, new: str, told: str) -> None:
    assert old in TALK
    found = list(expand.faults(make(TALK.replace(old, new) + condition(1) + condition(2))))
    assert any(told in fault for fault in found)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('[[aspects]]\nid = "a"\nfirst = []\nfollow = []\nanswers = []\n', "a needs answers"),
        ('[[aspects]]\nid = "a"\nfirst = [3]\nfollow = []\nanswers = ["{name}"]\n', "lists hold texts"),
        ('[[aspects]]\nid = "a"\n', "missing"),
        ('[talk]\nopener = ["好，"]\n', "opener"),
    ],
)
def test_aspects_that_are_not_as_described_are_refused(make: Callable[[str], Field], table: str, told: str) -> None:
    with pytest.raises(FileFault, match=told):
        make(table + condition(1))


@pytest.fixture(scope="module")
def real() -> tuple[Field, list[Composed]]:
    source = expand.load_field(REAL_DATA / "health")
    return source, list(expand.composer(source).compose(NUM_REAL, "0/health/composed"))


def test_no_real_wording_dominates(real: tuple[Field, list[Composed]]) -> None:
    uses = Counter(wording for dialogue in real[1] for wording in dialogue.wordings)
    assert max(uses.values()) / NUM_REAL < 0.02


def test_real_dialogues_have_follow_ups_that_need_the_history(real: tuple[Field, list[Composed]]) -> None:
    source, found = real
    names = [str(entity[key]) for entity in source.entities for key in ("name", "en")]
    follow_ups = [
        (question, answer)
        for dialogue in found
        for question, answer, wording in zip(
            dialogue.texts[2::2], dialogue.texts[3::2], dialogue.wordings[1:], strict=True
        )
        if wording not in (*source.talk.switch, *source.talk.en_switch)
    ]
    assert len(follow_ups) > NUM_REAL
    unnamed = [(question, answer) for question, answer in follow_ups if not any(name in question for name in names)]
    assert len(unnamed) > 0.99 * len(follow_ups)  # a food, asked about, may be a part of a name
    assert all(any(name in answer for name in names) for _, answer in unnamed)


def test_no_real_dialogue_says_a_sentence_twice(real: tuple[Field, list[Composed]]) -> None:
    assert not [dialogue for dialogue in real[1] if repeats_a_sentence(dialogue.texts[1::2])]


def test_the_longest_real_dialogues_fit_the_window(real: tuple[Field, list[Composed]]) -> None:
    window = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["n_positions"]
    tokenizer = load_tokenizer(MODEL)
    longest = sorted((dialogue.texts for dialogue in real[1]), key=lambda texts: -sum(map(len, texts)))[:300]
    assert max(1 + sum(len(tokenizer.encode(text)) + 1 for text in texts) for texts in longest) <= window


def test_every_condition_is_asked_about(real: tuple[Field, list[Composed]]) -> None:
    source, found = real
    asked = Counter(
        name
        for dialogue in found
        for name in [str(e["name"]) for e in source.entities]
        if dialogue.texts[1].startswith(name)
    )
    assert len([name for name, times in asked.items() if times > 20]) >= 150
