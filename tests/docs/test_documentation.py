"""The documentation is true: its commands run, its links lead somewhere, the make targets it names exist.

Every ```bash block of README.md, README.zh-CN.md and docs/*.md is executed with bash -euo pipefail and must exit 0. The blocks of a
document run in order in one temporary copy of the repository, beside a corpus.txt of 60 lines, the tests' Python first on PATH.
A comment on the line before a block says otherwise:

    <!-- test: run -->                  the same as no comment
    <!-- test: service -->              runs against a service in place of 127.0.0.1:5005; prints a JSON object with "result"
    <!-- test: service status -->       likewise, but any output will do
    <!-- test: skip-because REASON -->  is not run; its make, promptgen and web.py commands must exist and take these options
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from promptgen.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?:^<!-- test: ([^\n]*?) -->\n\s*)?^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
NOT_COPIED = shutil.ignore_patterns(".git", ".*_cache", ".venv", ".hypothesis", "build", "__pycache__", "*.egg-info")
UNCHECKED = {"git", "cd", "sudo", "apt-get", "pip", "python3", "source", ".", "export", "curl", "docker", "systemctl"}


@dataclass(frozen=True)
class Block:
    marker: str
    script: str


def documents() -> list[Path]:
    return [
        path
        for path in (ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted(ROOT.glob("docs/*.md")))
        if path.exists()
    ]


def blocks_of(path: Path) -> list[Block]:
    return [Block(marker or "run", script) for marker, script in BLOCK.findall(path.read_text(encoding="utf-8"))]


WORKED: set[str] = set()  # scripts of other documents


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "promptgen.cli", "serve", "--port", address.split(":")[1]]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    opener.open(f"http://{address}/ready", timeout=5).close()
                    break
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "promptgen"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    lines = (
        f"{topic}要注意{what}的第{n}件事\n"
        for topic in ("高血压", "失眠", "春天", "hello")
        for what in "吃喝睡"
        for n in range(5)
    )
    (folder / "corpus.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PROMPTGEN_")}
    environ |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=200, check=False
    )  # fmt: skip


def holds_result(output: str) -> bool:
    """Whether the output, or a line of it (`data: ` before it or not), is a JSON object with "result"."""
    for text in (output, *(line.removeprefix("data: ") for line in output.splitlines())):
        with contextlib.suppress(ValueError):
            if "result" in json.loads(text):
                return True
    return False


def check_unrun(script: str) -> None:
    for line in script.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if not words or words[0] in UNCHECKED:
            continue
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= TARGETS, line
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), line
        elif words[:2] == ["python", "web.py"]:
            _parser().parse_args(["serve", *words[2:]])
        else:
            assert words[0] == "promptgen", f"neither make, promptgen nor web.py: {line}"
            _parser().parse_args(words[1:])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_the_commands_of_a_document_work(document: Path, copy: Path, request: pytest.FixtureRequest) -> None:
    for block in blocks_of(document):
        if block.marker.startswith("skip-because "):
            check_unrun(block.script)
            continue
        assert block.marker in ("run", "service", "service status"), f"unknown marker: {block.marker}"
        script = block.script
        if block.marker != "run":
            script = re.sub(r"(127\.0\.0\.1|localhost):5005", request.getfixturevalue("service"), script)
        if script in WORKED:
            continue  # the READMEs have the same commands
        done = run(script, copy)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        WORKED.add(script)
        if block.marker == "service":
            assert holds_result(done.stdout), f"{script}\nprinted no result: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_both_readmes_show_how_to_start_and_how_to_ask(name: str) -> None:
    blocks = blocks_of(ROOT / name)
    assert any("make serve" in block.script for block in blocks)
    assert any(block.marker == "service" and "/generate" in block.script for block in blocks)


def markdown_files() -> list[Path]:
    folders = ("docs", "data", "bench", "vocab", "model")
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))])


@pytest.mark.parametrize("document", markdown_files(), ids=name_of)
def test_links_lead_to_files_that_exist(document: Path) -> None:
    links = LINK.findall(document.read_text(encoding="utf-8"))
    own = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in own if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", markdown_files(), ids=name_of)
def test_the_make_targets_it_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^|&& )make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert set(named) <= TARGETS
