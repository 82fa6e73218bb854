"""Tables become lines: the rules of data/README.md on small tables, every fault the check promises, and the size of the real corpus."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from promptgen.errors import FileFault
from promptgen.training import expand
from promptgen.training.corpus import read_documents
from promptgen.training.expand import Field

REAL_DATA = Path(__file__).resolve().parents[2] / "data"
ASPECTS = ["symptoms", "causes", "tests", "eat", "exercise", "medicines", "warnings", "risks", "prevention"]
ALWAYS = {
    "symptoms",
    "causes",
    "tests",
    "warnings",
    "risks",
    "prevention",
}  # not every condition has foods, sports or medicines

TABLE = """
prompts = [
  "{name}怎么做<才好吃|更入味|>？我家有{main:2}，还有{main}。",
  "{name}配{drink#1}，就是{drink#1}，不是{drink#2}。",
  "请讲讲{name}的{aspect}。",
  "How do I cook {en}? I have {en_main:3}.",
]
dialogues = [["{name}怎么做？", "先准备好{main:2}。{closing}"], ["{name}配{drink#1}吗？", "配{drink#1}。"]]
[lists]
aspect = ["火候", "调料", "{spice}用量"]
spice = ["花椒", "八角"]
drink = ["茶", "酒", "水"]
closing = ["趁热吃。", "尝尝咸淡。"]
"""


def entity(n: int, extra: str = "") -> str:
    return f'[[entities]]\nname = "菜{n}号"\nen = "dish {n}"\nmain = ["番茄", "鸡蛋", "小葱"]\nen_main = ["salt", "oil", "rice"]\n{extra}\n'


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Field]:
    numbers = itertools.count()

    def make_field(table: str) -> Field:
        folder = tmp_path / f"field{next(numbers)}"
        folder.mkdir()
        (folder / "table.toml").write_text(table, encoding="utf-8")
        return expand.load_field(folder)

    return make_field


@pytest.fixture
def cooking(make: Callable[[str], Field]) -> Field:
    return make(TABLE + "".join(map(entity, range(20))))


def texts_of(source: Field, kind: str = "prompts", seed: int = 0) -> list[tuple[str, ...]]:
    return [texts for _, texts in expand.expand(source, kind, 5000, 5000, seed)]


def test_expansion_is_deterministic_and_depends_on_the_seed(cooking: Field) -> None:
    assert texts_of(cooking) == texts_of(cooking)
    assert texts_of(cooking) != texts_of(cooking, seed=1)


def test_lines_are_distinct_and_filled(cooking: Field) -> None:
    for kind in ("prompts", "dialogues"):
        lines = texts_of(cooking, kind)
        assert len(lines) > 100
        assert len(set(lines)) == len(lines)
        assert not [line for line in lines for text in line if re.search(r"[{}<>|#]", text)]


def test_nothing_stands_twice_in_one_line(cooking: Field) -> None:
    lines = [text for (text,) in texts_of(cooking) if "我家有" in text]
    assert len(lines) > 100
    assert all(Counter(re.findall("番茄|鸡蛋|小葱", text)) == {"番茄": 1, "鸡蛋": 1, "小葱": 1} for text in lines)
    assert {tuple(re.findall("番茄|鸡蛋|小葱", text)) for text in lines} == set(
        itertools.permutations(["番茄", "鸡蛋", "小葱"])
    )


def test_tags_repeat_one_item_and_other_tags_take_another(cooking: Field) -> None:
    lines = [re.fullmatch("菜.*号配(.)，就是(.)，不是(.)。", text) for (text,) in texts_of(cooking) if "就是" in text]
    assert lines
    assert all(match is not None and match[1] == match[2] != match[3] for match in lines)
    turns = [
        (question[-3], answer[-2]) for question, answer in texts_of(cooking, "dialogues") if answer.startswith("配")
    ]
    assert {asked for asked, _ in turns} == {"茶", "酒", "水"}
    assert all(asked == answered for asked, answered in turns)


def test_all_choices_come_up(cooking: Field) -> None:
    found = {match[1] for (text,) in texts_of(cooking) if (match := re.search("怎么做(.*)？", text))}
    assert found == {"才好吃", "更入味", ""}


def test_items_hold_slots(cooking: Field) -> None:
    found = {match[1] for (text,) in texts_of(cooking) if (match := re.search("的(.*)。", text))}
    assert found == {"火候", "调料", "花椒用量", "八角用量"}


def test_joiners_are_those_of_the_language(cooking: Field) -> None:
    texts = [text for (text,) in texts_of(cooking)]
    english = [text for text in texts if text.startswith("How")]
    assert english
    assert all(re.fullmatch(r"How do I cook dish \d+\? I have \w+, \w+ and \w+\.", text) for text in english)
    assert all(re.search("我家有[^，、]+和[^，、]+，", text) for text in texts if "我家有" in text)


def test_three_chinese_items_are_joined_with_a_comma_and_and(make: Callable[[str], Field]) -> None:
    (text,) = texts_of(make('prompts = ["{name}要{main:3}。"]\n' + entity(1)))[0]
    assert re.fullmatch("菜1号要.{2}、.{2}和.{2}。", text)


def test_a_line_with_a_phrase_that_never_goes_with_it_is_not_made(make: Callable[[str], Field]) -> None:
    source = make(TABLE + entity(1) + entity(2, 'never = ["茶", "尝尝"]'))
    lines = texts_of(source) + texts_of(source, "dialogues")
    with_tea = [text for line in lines for text in line if "茶" in text or "尝尝" in text]
    assert with_tea
    assert not [text for text in with_tea if "菜2号" in text]
    assert any("菜2号" in text for line in lines for text in line)


def test_a_pattern_is_used_only_with_entities_that_have_its_keys(make: Callable[[str], Field]) -> None:
    source = make('prompts = ["{name}产自{origin}。"]\n' + entity(1) + entity(2, 'origin = "四川"'))
    assert texts_of(source) == [("菜2号产自四川。",)]


def test_an_entity_key_comes_before_a_list(make: Callable[[str], Field]) -> None:
    source = make('prompts = ["{name}要{spice}。"]\n[lists]\nspice = ["盐"]\n' + entity(1, 'spice = "糖"') + entity(2))
    assert sorted(texts_of(source)) == [("菜1号要糖。",), ("菜2号要盐。",)]


def test_held_out_pairs_are_disjoint_from_those_for_training(cooking: Field) -> None:
    pairs: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for held_out, (text,) in expand.expand(cooking, "prompts", 5000, 5000):
        name = re.search(r"菜\d+号|dish \d+", text)
        assert name is not None
        mark = next(mark for mark in ("怎么做", "就是", "请讲讲", "How") if mark in text)
        pairs[held_out].add((name[0], mark))
    assert not pairs[True] & pairs[False]
    assert len(pairs[True] | pairs[False]) == 80
    assert 2 <= len(pairs[True]) <= 18


def test_limits_are_kept(cooking: Field) -> None:
    assert len(list(expand.expand(cooking, "prompts", 37, 5000))) == 37
    capped = Counter("How" in texts[0] for _, texts in expand.expand(cooking, "prompts", 5000, 10))
    assert capped == {False: 30, True: 10}


def test_a_new_pattern_leaves_the_other_lines_as_they_were(make: Callable[[str], Field]) -> None:
    entities = "".join(map(entity, range(5)))
    old = make(TABLE + entities)
    new = Field(old.name, (*old.prompts, "{name}好吃吗？"), old.dialogues, old.lists, old.entities)
    assert set(texts_of(new)) == set(texts_of(old)) | {(f"菜{n}号好吃吗？",) for n in range(5)}


def test_a_sound_table_has_no_faults(cooking: Field) -> None:
    assert list(expand.faults(cooking)) == []


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('prompts = ["{name}好。"]\n' + entity(1) + entity(1), "entity '菜1号' stands 2 times"),
        ('prompts = ["{name}有{nothing}。"]\n' + entity(1), "unknown keys ['nothing'] in ('{name}有{nothing}。',)"),
        ('prompts = ["{name}{a}。"]\n[lists]\na = ["{gone}"]\n' + entity(1), "unknown keys ['gone']"),
        ('prompts = ["{a}好。"]\n[lists]\na = ["天气"]\n' + entity(1), "nothing of an entity in ('{a}好。',)"),
        ('dialogues = [["{name}？", "好。", "嗯？"]]\n' + entity(1), "a dialogue has two, four or six turns"),
        (
            'prompts = ["{x}和{y}。"]\n' + entity(1, 'x = "甲"') + entity(2, 'y = "乙"'),
            "no entity has all keys ['x', 'y']",
        ),
        ('prompts = ["{name}：{main:4}。"]\n' + entity(1), "lists too short to fill"),
        ('prompts = ["{name}{a}。"]\n[lists]\na = ["x{a}"]\n' + entity(1), "lists too short to fill"),
        ('prompts = ["{name}的的味道。"]\n' + entity(1), "slip '的的' in ('菜1号的的味道。',)"),
        ('prompts = ["{name}好，。"]\n' + entity(1), "slip '，。'"),
        ('prompts = ["{name}好{。"]\n' + entity(1), "slip '{'"),
        ('prompts = ["Cook {en} ."]\n' + entity(1), "slip ' .'"),
        ('dialogues = [["{name}？", "<|>"]]\n' + entity(1), "slip 'empty'"),
    ],
)
def test_each_fault_is_reported(make: Callable[[str], Field], table: str, told: str) -> None:
    found = list(expand.faults(make(table)))
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("prompts = [", "is not TOML"),
        ('promtps = ["{name}"]\n' + entity(1), r"unknown keys \['promtps'\]"),
        ('prompts = ["{name}"]\n', r"holds no \[\[entities\]\]"),
        ('prompts = ["{en}好。"]\n[[entities]]\nen = "dish"\n', "name"),
        ('prompts = "{name}好。"\n' + entity(1), "prompts"),
        ('prompts = ["{name}有{n}。"]\n' + entity(1, "n = 3"), "n"),
    ],
)
def test_a_file_that_is_not_as_described_is_refused(make: Callable[[str], Field], table: str, told: str) -> None:
    with pytest.raises(FileFault, match=told):
        list(expand.faults(make(table)))


def test_a_list_defined_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text('[lists]\nspice = ["盐"]\n', encoding="utf-8")
    with pytest.raises(FileFault, match=r"b\.toml: lists defined in another file .*\['spice'\]"):
        expand.load_field(tmp_path)


def test_a_root_without_tables_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileFault, match="holds no folders"):
            expand.load_fields(root)


def write_root(root: Path, table: str) -> Path:
    (root / "cooking").mkdir(parents=True)
    (root / "cooking" / "table.toml").write_text(table, encoding="utf-8")
    (root / "corpus.toml").write_text(
        "[prompts]\ndefault = 4000\n[dialogues]\ndefault = 3000\ncooking = 4000\n", encoding="utf-8"
    )
    return root


def test_the_command_checks_shows_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_root(tmp_path / "data", TABLE + "".join(map(entity, range(20))))
    assert expand.main([str(root), "--check"]) == 0
    assert capsys.readouterr().out == "0 faults\n"
    assert expand.main([str(root), "--show", "cooking", "--lines", "4"]) == 0
    assert "20 entities, 4 patterns" in capsys.readouterr().out
    assert (
        expand.main([str(root), "--out", str(tmp_path / "a")])
        == expand.main([str(root), "--out", str(tmp_path / "b")])
        == 0
    )
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "dialogues.train.txt",
        "dialogues.valid.txt",
        "meta.json",
        "prompts.train.txt",
        "prompts.valid.txt",
    ]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_few_lines_are_written_too(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data", TABLE + "".join(map(entity, range(3))))
    (root / "corpus.toml").write_text("[prompts]\ndefault = 60\n[dialogues]\ndefault = 0\n", encoding="utf-8")
    totals = expand.write_corpus(root, tmp_path / "out")["totals"]
    assert totals["prompts.train"]


@pytest.mark.parametrize("told", ["[prompts]\ndefault = 60\n", "[prompts]\ncooking = 5\n[dialogues]\ndefault = 1\n"])
def test_a_corpus_toml_that_leaves_a_number_open_is_refused(tmp_path: Path, told: str) -> None:
    root = write_root(tmp_path / "data", TABLE + entity(1))
    (root / "corpus.toml").write_text(told, encoding="utf-8")
    with pytest.raises(FileFault, match=r"has no \[(prompts|dialogues)\] with a default"):
        expand.write_corpus(root, tmp_path / "out")


def test_a_corpus_toml_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data", TABLE + entity(1))
    (root / "corpus.toml").write_bytes("[prompts] # 每个领域".encode("gbk"))
    with pytest.raises(FileFault, match=r"corpus\.toml: cannot be read, it says how many lines"):
        expand.write_corpus(root, tmp_path / "out")


def test_the_command_exits_with_3_for_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_root(tmp_path / "data", 'prompts = ["{name}的的。"]\n' + entity(1))
    assert expand.main([str(root), "--check", "--field", "cooking"]) == 3
    assert capsys.readouterr().out.endswith("\n1 faults\n")


class RealCorpus(NamedTuple):
    folder: Path
    shares: dict[str, float]  # of the most used pattern, by kind


@pytest.fixture(scope="module")
def real_fields() -> dict[str, Field]:
    return {source.name: source for source in expand.load_fields(REAL_DATA)}


@pytest.fixture(scope="module")
def real_corpus(tmp_path_factory: pytest.TempPathFactory) -> RealCorpus:
    """The real corpus, written once while a spy on draw_line counts the lines of each pattern."""
    folder = tmp_path_factory.mktemp("corpus")
    uses: dict[str, Counter[tuple[str, ...]]] = {"prompts": Counter(), "dialogues": Counter()}
    last: list[Sequence[str]] = []
    plain_draw, plain_expand = expand.draw_line, expand.expand

    def spying_draw(source: Field, pattern: Sequence[str], *rest: object) -> tuple[str, ...] | None:
        last[:] = [pattern]
        return plain_draw(source, pattern, *rest)  # type: ignore[arg-type]

    def counting_expand(source: Field, kind: str, *rest: int) -> Iterator[tuple[bool, tuple[str, ...]]]:
        for line in plain_expand(source, kind, *rest):
            uses[kind][(source.name, *last[0])] += 1
            yield line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expand, "draw_line", spying_draw)
        patch.setattr(expand, "expand", counting_expand)
        expand.write_corpus(REAL_DATA, folder)
    return RealCorpus(folder, {kind: max(count.values()) / count.total() for kind, count in uses.items()})


def test_real_tables_have_no_faults(real_fields: dict[str, Field]) -> None:
    assert [fault for source in real_fields.values() for fault in expand.faults(source)] == []


def test_real_health_table_covers_the_aspects(real_fields: dict[str, Field]) -> None:
    conditions = real_fields["health"].entities
    assert len({condition["name"] for condition in conditions}) >= 150
    lacking = Counter(aspect for condition in conditions for aspect in ASPECTS if not condition.get(aspect))
    assert not ALWAYS & lacking.keys()
    assert all(count <= len(conditions) * 0.15 for count in lacking.values())
    used = {
        key
        for kind in ("prompts", "dialogues")
        for pattern in real_fields["health"].patterns(kind)
        for key in real_fields["health"].keys_used(pattern)
    }
    assert used >= set(ASPECTS)


def test_real_fields_are_many(real_fields: dict[str, Field]) -> None:
    assert len(real_fields.keys() - {"health"}) >= 25
    assert all(source.prompts and source.dialogues for source in real_fields.values())


def test_real_corpus_is_large_and_distinct(real_corpus: RealCorpus) -> None:
    parts = {
        name: (real_corpus.folder / f"prompts.{name}.txt").read_text(encoding="utf-8").splitlines()
        for name in ("train", "valid")
    }
    prompts = [*parts["train"], *parts["valid"]]
    assert len(prompts) == len(set(prompts)) >= 150_000
    assert 0.05 < len(parts["valid"]) / len(prompts) < 0.2
    assert not [
        prompt for prompt in prompts if "{" in prompt or "}" in prompt or prompt != prompt.strip() or not prompt
    ]
    totals = json.loads((real_corpus.folder / "meta.json").read_text(encoding="utf-8"))["totals"]
    assert (totals["prompts.train"], totals["prompts.valid"]) == (len(parts["train"]), len(parts["valid"]))


def test_real_dialogues_are_many_and_distinct(real_corpus: RealCorpus) -> None:
    train, valid = (list(read_documents([real_corpus.folder / f"dialogues.{name}.txt"])) for name in ("train", "valid"))
    assert len({*train, *valid}) == len(train) + len(valid) >= 40_000
    assert all(document.is_dialogue and len(document.turns) in (2, 4, 6, 8) for document in train + valid)
    totals = json.loads((real_corpus.folder / "meta.json").read_text(encoding="utf-8"))
    assert totals["by_field"]["health"]["composed"] >= 40_000


def test_no_real_pattern_dominates(real_corpus: RealCorpus) -> None:
    assert 0 < real_corpus.shares["prompts"] < 0.02
    assert 0 < real_corpus.shares["dialogues"] < 0.02
