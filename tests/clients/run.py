"""Tries real clients, unmodified, against a real process: `python -m tests.clients.run [NAME...] [--write]`.

Each of clients.toml gets an environment of its own under build/clients (made once for a list of packages), and its check runs there, told by the
environment where the service is. With --write the table of docs/clients.md is what came of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.byte_model import make_byte_model
from tests.clients.json_model import make_json_model, people
from tests.service.conftest import Server, launch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "clients"
DOCUMENT = ROOT / "docs" / "clients.md"
KEY = "sk-clients-0123456789"
TIMEOUT_S = 540.0
_TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


@dataclass(frozen=True)
class Client:
    name: str
    first: str
    check: str
    covers: str
    packages: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return BUILD / self.name

    @property
    def version(self) -> str:
        spelled = next(p for p in (*self.packages, *self.npm) if re.match(rf"{re.escape(self.first)}\b", p))
        return re.split("==|@", spelled)[-1]

    def install(self) -> None:
        """Makes the environment anew unless it is the one of these packages."""
        wanted = hashlib.sha256(repr((self.packages, self.npm)).encode()).hexdigest()
        mark = self.folder / "made"
        if mark.exists() and mark.read_text() == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.npm:
            if shutil.which("npm") is None:
                raise FileNotFoundError("no npm: on Debian, apt-get install nodejs npm")
            quietly("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(self.folder), *self.npm)
        else:
            venv.create(self.folder / "venv", with_pip=True)
            quietly(str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages)
        mark.write_text(wanted)

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def command(self) -> list[str]:
        if not self.npm:
            return [str(self.python), str(HERE / "checks" / self.check)]
        # node looks for packages beside the script.
        script = shutil.copy(HERE / "checks" / self.check, self.folder)
        return ["node", str(script)]


def quietly(*command: str) -> None:
    """Raises CalledProcessError with what the command said."""
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)


def clients() -> dict[str, Client]:
    entries = tomllib.loads((HERE / "clients.toml").read_text(encoding="utf-8"))
    return {
        name: Client(name, e["first"], e["check"], e["covers"], tuple(e.get("packages", ())), tuple(e.get("npm", ())))
        for name, e in entries.items()
    }


@dataclass(frozen=True)
class Services:
    """One with the shipped model, one with a byte-level model that transformers reads too, one with a model that writes JSON."""

    shipped: Server
    byte: Server
    json: Server
    byte_model: Path

    @classmethod
    def start(cls) -> Services:
        byte_model, json_model = make_byte_model(BUILD / "byte-model"), make_json_model(BUILD / "json-model")
        servers = [
            launch(BUILD / f"{name}-service.log", *arguments, PROMPTGEN_API_KEYS=KEY)
            for name, arguments in (
                ("shipped", ()), ("byte", ("--model", str(byte_model))), ("json", ("--model", str(json_model))),
            )
        ]  # fmt: skip
        return cls(*servers, byte_model)

    @property
    def all(self) -> tuple[Server, ...]:
        return self.shipped, self.byte, self.json


def environment(services: Services, scratch: Path) -> dict[str, str]:
    """What a check is told."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPTGEN_", "OPENAI_", "LITELLM_"))}
    kept = {k: v for k, v in kept.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return kept | {
        "BASE_URL": f"http://127.0.0.1:{services.shipped.port}/v1",
        "BYTE_BASE_URL": f"http://127.0.0.1:{services.byte.port}/v1",
        "BYTE_MODEL": str(services.byte_model),
        "JSON_BASE_URL": f"http://127.0.0.1:{services.json.port}/v1",
        "JSON_PEOPLE": json.dumps(people(), ensure_ascii=False),
        "API_KEY": KEY,
        "SCRATCH": str(scratch),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def try_one(client: Client, told: dict[str, str]) -> dict[str, Any]:
    """What came of one client: its result, and what it said."""
    started = time.perf_counter()
    try:
        client.install()
        done = subprocess.run(
            client.command(),
            cwd=told["SCRATCH"],
            env=told,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said, is_right = done.stdout + done.stderr, done.returncode == 0
    except subprocess.TimeoutExpired:
        said, is_right = f"took more than {TIMEOUT_S:g} s", False
    except subprocess.CalledProcessError as fault:
        said, is_right = f"could not be installed:\n{fault.stdout}", False
    except OSError as fault:
        said, is_right = str(fault), False
    BUILD.joinpath(f"{client.name}.log").write_text(said, encoding="utf-8")
    notes = [line.removeprefix("note: ") for line in said.splitlines() if line.startswith("note: ")]
    passed = [line.removeprefix("ok: ") for line in said.splitlines() if line.startswith("ok: ")]
    return {
        "name": client.name,
        "version": client.version,
        "result": "passed" if is_right else "failed",
        "covers": client.covers,
        "passed": passed,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 1),
        "said": said,
    }


def table(results: list[dict[str, Any]]) -> str:
    head = "| client | version | result | what was done |\n|---|---|---|---|\n"
    rows = (
        f"| {r['name']} | {r['version']} | {r['result']} | {'. '.join([r['covers'], *r['notes']])} |\n" for r in results
    )
    return head + "".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="clients to try; all without any")
    parser.add_argument("--write", action="store_true", help="put the results into docs/clients.md")
    arguments = parser.parse_args()
    known = clients()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no such client: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    services = Services.start()
    results = []
    try:
        for server in services.all:
            server.wait_until("/ready", 200)
        for name in arguments.names or known:
            result = try_one(known[name], environment(services, BUILD / "scratch"))
            results.append(result)
            print(f"{result['result']:6} {name} {result['version']} ({result['seconds']} s)", flush=True)
            if result["result"] != "passed":
                print(result["said"][-3000:], flush=True)
    finally:
        for server in services.all:
            server.stop()
    kept = {r["name"]: r for r in earlier()} | {r["name"]: {**r, "said": ""} for r in results}
    ordered = [kept[name] for name in known if name in kept]
    (BUILD / "results.json").write_text(json.dumps(ordered, ensure_ascii=False, indent=1), encoding="utf-8")
    if arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(_TABLE.sub(lambda _: table(ordered), text), encoding="utf-8")
    return 0 if all(result["result"] == "passed" for result in results) else 1


def earlier() -> list[dict[str, Any]]:
    """Results of clients that were tried before, for a table of all."""
    path = BUILD / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
