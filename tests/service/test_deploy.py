"""deploy/: nginx takes its sample and passes streams as they come; the unit and the image keep what they promise."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from promptgen.config import ServeSettings
from tests.service.conftest import ROOT, free_port

if TYPE_CHECKING:
    from tests.service.conftest import Server

DEPLOY = ROOT / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
WILD = {"temperature": 2, "top_k": 0, "top_p": 0}


@pytest.fixture(scope="module")
def proxied(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared service behind the sample, which has other ports here and is otherwise as it is."""
    if NGINX is None:
        pytest.skip("these tests need nginx: apt-get install nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    sample = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    sample = sample.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(
        "127.0.0.1:5005", f"127.0.0.1:{server.port}"
    )
    (folder / "sample.conf").write_text(sample, encoding="utf-8")
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/sample.conf; }}\n",
        encoding="utf-8",
    )
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        front = replace(server, port=port, process=process)
        front.wait_until("/ready", 200)
        yield front
        process.terminate()


def test_answers_pass_unchanged(proxied: Server) -> None:
    proxied.assert_healthy()


def test_a_stream_comes_in_pieces_while_it_is_made(proxied: Server) -> None:
    fields = {"context": "高血压要注意", "samples": 16, "maxlength": 200, "min_length": 200, "stream": True, **WILD}
    arrived: list[float] = []
    parts: list[bytes] = []
    with proxied.connect() as connection:
        connection.sendall(proxied.http(json.dumps(fields), "Content-Type: application/json"))
        sent = time.monotonic()
        while part := connection.recv(65536):
            arrived.append(time.monotonic())
            parts.append(part)
    assert b"data: [DONE]" in b"".join(parts)
    assert len(parts) > 10
    assert arrived[0] - sent < (arrived[-1] - sent) / 2


def test_a_body_that_is_too_large_is_refused_in_the_services_words(proxied: Server) -> None:
    proxied.request("POST", "/generate", b" " * 70_000).error(413, "body_too_large")


def test_request_ids_pass_and_are_given(proxied: Server) -> None:
    assert proxied.get("/health", {"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert re.fullmatch(r"[0-9a-f]{32}", proxied.get("/health").headers["X-Request-Id"])


def test_a_caller_of_nginx_who_leaves_frees_the_rows(proxied: Server) -> None:
    fields = {"context": "高血压要注意", "samples": 64, "maxlength": 240, **WILD}
    with proxied.connect() as connection:
        connection.sendall(proxied.http(json.dumps(fields), "Content-Type: application/json"))
        proxied.wait_for_rows(lambda rows: rows > 0)
    proxied.wait_for_rows(lambda rows: rows == 0)


# -- the unit and the image, by reading ------------------------------------------------------------------------------------


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "promptgen.service", encoding="utf-8")
    return parser


def test_the_unit_waits_longer_than_a_drain() -> None:
    assert int(unit()["Service"]["TimeoutStopSec"]) >= ServeSettings().drain_timeout_s + 20


def test_the_unit_is_walled_in_and_starts_again_where_that_helps() -> None:
    service = unit()["Service"]
    assert service["DynamicUser"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this test needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "promptgen.service").read_text(encoding="utf-8")
    path = tmp_path / "promptgen.service"
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_small_private_and_watched() -> None:
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    last = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert any(re.fullmatch(r"USER [1-9]\d*", line) for line in last)
    assert any(line.startswith("HEALTHCHECK ") for line in last)
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert [path for paths in copied for path in paths if not (ROOT / path).exists()] == []
