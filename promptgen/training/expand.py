"""Tables and sentence patterns become a corpus. data/README.md describes the format.

    promptgen expand data --out build/corpus      writes {prompts,dialogues}.{train,valid}.txt and meta.json
    promptgen expand data --check                 names every fault in the tables, exit 3 if there is one
    promptgen expand data --show cooking          prints lines to read

The expansion is a function of the tables and the seed alone. A line's randomness is keyed by (field, pattern,
entity, draw), so adding a pattern leaves the lines of all the others as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptgen.errors import FileFault, UsageError
from promptgen.training.compose import Composer, Talk, parse_talk, talk_faults

HELD_OUT_SHARE = 10  # one (entity, pattern) pair in ten is for validation
MAX_PATTERN_SHARE = 0.02  # of all lines; the promise of data/README.md
ENTITIES_CHECKED = 20  # with each wording of an aspect
MAX_DEPTH = 5  # of slots within list items
NEVER_KEY = "never"  # an entity's list of phrases that do not go with it

_PIECE = re.compile(
    r"<(?P<choice>[^<>]*\|[^<>]*)>|\{(?P<key>\w+)(?::(?P<count>\d+)|=(?P<from>\d+)(?:-(?P<to>\d+))?)?(?:#(?P<tag>\d+))?\}"
)
_SLOT_KEY = re.compile(r"\{(\w+)(?::\d+|=\d+(?:-\d+)?)?(?:#\d+)?\}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_SLIP = re.compile(r"[，。、；：？！]{2,}|[{}|]|的的|了了|  |，$|、$| [,.?!]|[。！？][，、]|是是|在在|出现出现|被被")

Value = str | list[str]


class _NoMore(Exception):
    """A list has no unused item left for this line: the draw is given up."""


@dataclass(frozen=True, slots=True)
class Field:
    """All tables of one folder, added up."""

    name: str
    prompts: tuple[str, ...]
    dialogues: tuple[tuple[str, ...], ...]
    lists: Mapping[str, Sequence[str]]
    entities: tuple[Mapping[str, Value], ...]
    talk: Talk = dataclasses.field(default_factory=Talk)

    def patterns(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Of the kind "prompts", "dialogues" or "aspects"; of an aspect each wording with each answer."""
        if kind == "aspects":
            return tuple(
                (w, a) for aspect in self.talk.aspects for w in (*aspect.first, *aspect.follow) for a in aspect.answers
            )
        return tuple((p,) for p in self.prompts) if kind == "prompts" else self.dialogues

    def keys_used(self, pattern: Sequence[str]) -> set[str]:
        """Every key the pattern names, those inside list items included."""
        todo, seen = set(_SLOT_KEY.findall("".join(pattern))), set[str]()
        while todo:
            key = todo.pop()
            seen.add(key)
            todo |= {k for item in self.lists.get(key, ()) for k in _SLOT_KEY.findall(item)} - seen
        return seen

    def suits(self, entity: Mapping[str, Value], pattern: Sequence[str]) -> bool:
        return all(key in entity or key in self.lists for key in self.keys_used(pattern))


@dataclass(slots=True)
class _Draw:
    """The state of one line being filled: what was drawn already, and what `#` tags stand for."""

    field: Field
    entity: Mapping[str, Value]
    rng: random.Random
    pools: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    tags: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def fill(self, template: str, *, english: bool, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            raise ValueError(f"slots nest deeper than {MAX_DEPTH}: {template}")

        def replace(match: re.Match[str]) -> str:
            if match["choice"] is not None:
                return self.fill(self.rng.choice(match["choice"].split("|")), english=english, depth=depth)
            in_english = english or match["key"].startswith("en")
            if match["from"] is not None:
                return self._fixed(match["key"], int(match["from"]), int(match["to"] or match["from"]), in_english)
            return self._slot(match["key"], int(match["count"] or 1), match["tag"], in_english, depth)

        return _PIECE.sub(replace, template)

    def _slot(self, key: str, count: int, tag: str | None, english: bool, depth: int) -> str:
        if tag is not None and (key, tag) in self.tags:
            return self.tags[key, tag]
        value = self.entity.get(key, self.field.lists.get(key, ""))
        if isinstance(value, str):
            text = value
        else:
            pool = self.pools.get(key)
            if pool is None:
                pool = self.pools[key] = self.rng.sample(list(value), len(value))
            if len(pool) < count:
                raise _NoMore
            items = [self.fill(pool.pop(), english=english, depth=depth + 1) for _ in range(count)]
            text = _joined(items, english)
        if tag is not None:
            self.tags[key, tag] = text
        return text

    def _fixed(self, key: str, first: int, last: int, english: bool) -> str:
        """The items `first` to `last` of an entity's list, counted from 1."""
        value = self.entity.get(key, self.field.lists.get(key, ()))
        items = [value] if isinstance(value, str) else list(value)
        if len(items) < last:
            raise _NoMore
        return _joined(items[first - 1 : last], english)


def _joined(items: Sequence[str], english: bool) -> str:
    comma, last = (", ", " and ") if english else ("、", "和")
    return comma.join(items[:-1]) + last + items[-1] if len(items) > 1 else items[0]


def load_field(folder: Path) -> Field:
    """Reads all tables of a folder. Raises FileFault naming the file that is not as data/README.md says."""
    prompts: list[str] = []
    dialogues: list[tuple[str, ...]] = []
    lists: dict[str, list[str]] = {}
    entities: list[Mapping[str, Value]] = []
    talk = Talk()
    for path in sorted(folder.glob("*.toml")):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
            raise FileFault(path, f"is not TOML: {fault}") from fault
        if unknown := table.keys() - {"prompts", "dialogues", "lists", "entities", "talk", "aspects"}:
            raise FileFault(path, f"unknown keys {sorted(unknown)}; see data/README.md")
        if twice := lists.keys() & table.get("lists", {}).keys():
            raise FileFault(path, f"lists defined in another file of the folder already: {sorted(twice)}")
        _check_types(path, table)
        prompts += table.get("prompts", [])
        dialogues += [tuple(turns) for turns in table.get("dialogues", [])]
        lists |= table.get("lists", {})
        entities += table.get("entities", [])
        if {"talk", "aspects"} & table.keys():
            if talk.aspects:
                raise FileFault(path, "aspects stand in another file of the folder already; keep them in one")
            try:
                talk = parse_talk(table)
            except ValueError as fault:
                raise FileFault(path, str(fault)) from fault
    if not entities:
        raise FileFault(folder, "holds no [[entities]] in any *.toml")
    return Field(folder.name, tuple(prompts), tuple(dialogues), lists, tuple(entities), talk)


def _check_types(path: Path, table: Mapping[str, Any]) -> None:
    """Raises FileFault naming what is not as data/README.md says."""

    def are_texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    if not are_texts(table.get("prompts", [])):
        raise FileFault(path, "prompts must be a list of texts")
    dialogues = table.get("dialogues", [])
    if not isinstance(dialogues, list) or not all(map(are_texts, dialogues)):
        raise FileFault(path, "dialogues must be a list of lists of texts")
    for name, value in table.get("lists", {}).items():
        if not are_texts(value):
            raise FileFault(path, f"the list {name} must be a list of texts")
    for number, entity in enumerate(table.get("entities", []), 1):
        if not isinstance(entity.get("name"), str):
            raise FileFault(path, f"entity {number} has no name")
        for key, value in entity.items():
            if not isinstance(value, str) and not are_texts(value):
                raise FileFault(path, f"{key} of {entity['name']} must be a text or a list of texts")


def load_fields(root: Path) -> list[Field]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and any(p.glob("*.toml"))) if root.is_dir() else []
    if not folders:
        raise FileFault(root, "holds no folders with *.toml tables")
    return [load_field(folder) for folder in folders]


def _is_english(pattern: Sequence[str]) -> bool:
    """Whether the words of the pattern itself, without its slots, are English."""
    own = _SLOT_KEY.sub("", "".join(pattern))
    return not _CHINESE.search(own) and re.search("[A-Za-z]", own) is not None


def draw_line(
    source: Field, pattern: Sequence[str], entity: Mapping[str, Value], draw: int, seed: int = 0
) -> tuple[str, ...] | None:
    """One filled pattern (one text for a prompt, two or four for a dialogue), or None.

    None when a list ran out of items, or when the line has a phrase that the entity's `never` key forbids.
    """
    return _fill_line(
        source, pattern, entity, random.Random(f"{seed}/{source.name}/{entity['name']}/{'/'.join(pattern)}/{draw}")
    )


def _fill_line(
    source: Field, pattern: Sequence[str], entity: Mapping[str, Value], rng: random.Random
) -> tuple[str, ...] | None:
    state = _Draw(source, entity, rng)
    english = _is_english(pattern)
    try:
        texts = tuple(state.fill(turn, english=english).strip() for turn in pattern)
    except _NoMore:
        return None
    return None if any(phrase in text for phrase in entity.get(NEVER_KEY, ()) for text in texts) else texts


def is_held_out(source: Field, pattern: Sequence[str], entity: Mapping[str, Value]) -> bool:
    key = f"{source.name}\0{entity['name']}\0{chr(0).join(pattern)}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % HELD_OUT_SHARE == 0


def expand(
    source: Field, kind: str, max_lines: int, max_per_pattern: int, seed: int = 0
) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Yields (held_out, texts), distinct, spread evenly over all suiting (pattern, entity) pairs, `max_lines` at most."""
    pairs = [(p, e) for p in source.patterns(kind) for e in source.entities if source.suits(e, p)]
    random.Random(f"{seed}/{source.name}/{kind}").shuffle(pairs)
    seen: set[tuple[str, ...]] = set()
    used: Counter[tuple[str, ...]] = Counter()
    draw = idle_rounds = 0
    while len(seen) < max_lines and idle_rounds < 4:
        before = len(seen)
        for pattern, entity in pairs:
            if len(seen) >= max_lines:
                break
            if used[pattern] >= max_per_pattern:
                continue
            texts = draw_line(source, pattern, entity, draw, seed)
            if texts is not None and texts not in seen:
                seen.add(texts)
                used[pattern] += 1
                yield is_held_out(source, pattern, entity), texts
        draw += 1
        idle_rounds = idle_rounds + 1 if len(seen) == before else 0


def composer(source: Field) -> Composer:
    """Of the field's aspects; see compose.py."""
    return Composer(
        source.talk,
        source.entities,
        source.suits,
        lambda pattern, entity, rng: _fill_line(source, pattern, entity, rng),
        lambda pattern, entity: is_held_out(source, pattern, entity),
    )


def faults(source: Field) -> Iterator[str]:
    """Every fault a program can see: unknown keys, items listed twice, patterns about nothing, slips of grammar in drawn lines."""
    entity_keys = {key for entity in source.entities for key in entity}
    names = Counter(str(entity.get("name")) for entity in source.entities)
    yield from (f"entity {name!r} stands {n} times" for name, n in names.items() if n > 1)
    for holder, values in [("lists", source.lists), *((str(e["name"]), e) for e in source.entities)]:
        for key, value in values.items():
            if not isinstance(value, str) and len(set(value)) < len(value):
                yield f"{key} of {holder} lists an item twice"
    yield from talk_faults(source.talk)
    for kind in ("prompts", "dialogues", "aspects"):
        for pattern in source.patterns(kind):
            keys = source.keys_used(pattern)
            if unknown := keys - entity_keys - source.lists.keys():
                yield f"unknown keys {sorted(unknown)} in {pattern}"
                continue
            if not keys & entity_keys:
                yield f"nothing of an entity in {pattern}"
            if kind == "dialogues" and len(pattern) not in (2, 4, 6):
                yield f"a dialogue has two, four or six turns: {pattern}"
            suiting = [e for e in source.entities if source.suits(e, pattern)]
            if not suiting:
                yield f"no entity has all keys {sorted(keys)} of {pattern}"
            if (
                kind == "aspects" and len(suiting) > ENTITIES_CHECKED
            ):  # an answer stands with many wordings, so all entities have their turn
                suiting = random.Random(pattern[0]).sample(suiting, ENTITIES_CHECKED)
            drawn = [line for e in suiting for i in range(2) if (line := draw_line(source, pattern, e, i))]
            if suiting and not drawn:
                yield f"lists too short to fill {pattern}"
            for line in drawn:
                slip = next((m for text in line if (m := _SLIP.search(text))), None)
                if slip or not all(line):
                    yield f"slip {slip[0] if slip else 'empty'!r} in {line}"
                    break


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with a folder of *.toml tables for each field")
    parser.add_argument("--out", type=Path, help="folder to write the corpus to")
    parser.add_argument("--check", action="store_true", help="name the faults in the tables and stop")
    parser.add_argument("--field", help="with --check: this field only")
    parser.add_argument("--show", metavar="FIELD", help="print lines of one field to read")
    parser.add_argument("--lines", type=int, default=40, help="with --show: how many (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default 0)")


def run(args: argparse.Namespace) -> int:
    """Checks, shows or writes. Raises FileFault for tables that cannot be read, UsageError when nothing was asked."""
    if args.check:
        return _check(args.data, args.field)
    if args.show:
        return _show(load_field(args.data / args.show), args.lines, args.seed)
    if args.out is None:
        raise UsageError("say what to do: --out DIR, --check or --show FIELD")
    meta = write_corpus(args.data, args.out, args.seed)
    print(json.dumps(meta["totals"], ensure_ascii=False))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """For `python -m promptgen.training.expand`, which needs nothing installed."""
    parser = argparse.ArgumentParser(
        prog="promptgen expand", description="turn tables and sentence patterns into a corpus"
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _check(root: Path, only: str | None) -> int:
    found = [
        f"{source.name}: {fault}"
        for source in ([load_field(root / only)] if only else load_fields(root))
        for fault in faults(source)
    ]
    for line in found:
        print(line)
    print(f"{len(found)} faults")
    return 3 if found else 0


def _show(source: Field, num_lines: int, seed: int) -> int:
    num_lines = max(0, num_lines)
    for kind in ("prompts", "dialogues"):
        lines = list(expand(source, kind, 4_000 if kind == "prompts" else 1_000, 10_000, seed))
        print(
            f"# {source.name}: {len(source.entities)} entities, {len(source.patterns(kind))} patterns, at least {len(lines)} {kind}"
        )
        for _, texts in random.Random(f"{seed}/show").sample(
            lines, min(num_lines if kind == "prompts" else num_lines // 2, len(lines))
        ):
            print(*texts, sep="\n    ")
    return 0


def write_corpus(root: Path, out: Path, seed: int = 0) -> dict[str, dict[str, object]]:
    """Writes the whole corpus and returns its meta.json: counts by field, kind and part, and the largest pattern share.

    `root/corpus.toml` says how many lines each field gives, `[prompts]` and `[dialogues]`, and optionally how many of its entities are
    used, `[entities]`, from the top of its tables: a number by field, `default` for the rest.
    """
    try:
        targets = tomllib.loads((root / "corpus.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise FileFault(
            root / "corpus.toml", f"cannot be read, it says how many lines each field gives: {fault}"
        ) from fault
    for kind in ("prompts", "dialogues"):
        if not isinstance(targets.get(kind, {}).get("default"), int):
            raise FileFault(
                root / "corpus.toml", f"has no [{kind}] with a default: the lines of a field that is not named"
            )
    out.mkdir(parents=True, exist_ok=True)
    most = targets.get("entities", {})
    fields = [
        dataclasses.replace(source, entities=source.entities[: most.get(source.name, most.get("default"))])
        for source in load_fields(root)
    ]
    by_field: dict[str, dict[str, int]] = {source.name: {} for source in fields}
    totals: dict[str, object] = {
        "entities": sum(len(f.entities) for f in fields),
        "patterns": sum(len(f.prompts) + len(f.dialogues) for f in fields),
    }
    for kind, end in (("prompts", "\n"), ("dialogues", "\n\n")):
        goal = targets[kind]
        total = sum(goal.get(f.name, goal["default"]) for f in fields)
        max_per_pattern = max(1, int(MAX_PATTERN_SHARE * 0.5 * total))
        parts: dict[bool, dict[tuple[str, ...], None]] = {False: {}, True: {}}
        for source in fields:
            for held_out, texts in expand(source, kind, goal.get(source.name, goal["default"]), max_per_pattern, seed):
                parts[held_out][texts] = None
                by_field[source.name][kind] = by_field[source.name].get(kind, 0) + 1
            if kind == "dialogues" and (most_composed := targets.get("composed", {}).get(source.name)):
                for found in composer(source).compose(most_composed, f"{seed}/{source.name}/composed"):
                    parts[found.held_out][found.texts] = None
                    by_field[source.name]["composed"] = by_field[source.name].get("composed", 0) + 1
        for held_out, part in ((False, "train"), (True, "valid")):
            lines = [texts for texts in parts[held_out] if not (held_out and texts in parts[False])]
            random.Random(f"{seed}/{kind}/{part}").shuffle(lines)
            (out / f"{kind}.{part}.txt").write_text(
                "".join("\n".join(texts) + end for texts in lines), encoding="utf-8"
            )
            totals[f"{kind}.{part}"] = len(lines)
    meta: dict[str, dict[str, object]] = {"totals": totals, "by_field": dict(by_field)}
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return meta


if __name__ == "__main__":
    sys.exit(main())
