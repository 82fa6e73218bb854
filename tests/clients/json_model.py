"""A small model that answers in JSON, trained on people's names and ages, for clients that ask for JSON in words."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

NAMES = [
    "王芳",
    "李强",
    "张伟",
    "刘洋",
    "陈静",
    "杨敏",
    "赵磊",
    "黄丽",
    "周杰",
    "吴娟",
    "徐明",
    "孙涛",
    "马超",
    "朱琳",
    "胡军",
    "郭霞",
    "何平",
    "林峰",
    "高翔",
    "罗兰",
    "anna",
    "boris",
    "clara",
    "david",
    "emma",
    "felix",
    "grace",
    "henry",
    "irene",
    "james",
    "karin",
    "lukas",
    "maria",
    "nadia",
    "oscar",
    "paula",
    "quinn",
    "robert",
    "sarah",
    "tomas",
]
WAYS = ("{name}今年{age}岁。", "{name} is {age} years old.")
# As instructor asks in its MD_JSON mode, after the caller's own words.
ASKED = "Return the correct JSON response within a ```json codeblock. not the JSON_SCHEMA"
HELD_OUT = 4  # of all pairs of a name and an age, one in so many is never shown
STEPS = 1000


def is_held_out(name: str, age: int) -> bool:
    return (NAMES.index(name) + age) % HELD_OUT == 0


def people() -> list[dict[str, object]]:
    """Some that were held out: what is said of each, and what is to be found in it."""
    pairs = [(name, 10 + (5 * place) % 80) for place, name in enumerate(NAMES)]
    held = [(name, age) for name, age in pairs if is_held_out(name, age)]
    return [
        {"text": WAYS[place % 2].format(name=name, age=age), "name": name, "age": age}
        for place, (name, age) in enumerate(held)
    ]


def make_json_model(folder: Path) -> Path:
    """The model's folder, made unless it is there. Raises CalledProcessError when a command of the training fails."""
    if (folder / "model.safetensors").exists():
        return folder
    work = folder.with_name(folder.name + "-work")
    work.mkdir(parents=True, exist_ok=True)
    corpus = work / "people.jsonl"
    corpus.write_text("".join(_lines()), encoding="utf-8")
    for command in (
        ["vocab", str(corpus), "--out", str(work / "vocab")],
        ["prepare", str(corpus), "--vocab", str(work / "vocab"), "--out", str(work / "data")],
        ["train", str(work / "data"), "--out", str(folder), "--shape", "2x128x4", "--steps", str(STEPS), "--typing-prompts", "0"],
    ):  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "promptgen.cli", *command],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return folder


def _lines() -> list[str]:
    draw = random.Random(3)
    shown = [(name, age) for name in NAMES for age in range(10, 90) if not is_held_out(name, age)]
    lines = []
    for name, age in shown:
        for way in WAYS:
            answer = f'```json {{"name": "{name}", "age": {age}}} ```'
            question = f"{way.format(name=name, age=age)}\n\n{ASKED}"
            lines.append(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")
    draw.shuffle(lines)
    return lines
