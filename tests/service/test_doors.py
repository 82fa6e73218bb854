"""The doors: CORS on the wire, the Host allow-list, keys, and what is said at start."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Reply, Server, ServerFactory

ORIGINS = [
    "http://page.example",
    "https://evil.example:8443",
    "null",
    "http://127.0.0.1:1",
    "file://",
    "chrome-extension://abc",
]
LISTED = "https://good.example"
FIELDS = {"context": "高血压", "maxlength": 1, "samples": 1}
KEY, FILE_KEY, CYRILLIC_KEY = "k3y-from-environment", "k3y-from-file", "ключ-ß"
ALLOW_ORIGIN, CREDENTIALS = "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"


def preflight(server: Server, origin: str, headers: str = "content-type", method: str = "POST") -> Reply:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return server.request("OPTIONS", "/generate", None, asked)


def granted(reply: Reply) -> set[str]:
    return {name.strip().lower() for name in reply.headers["Access-Control-Allow-Headers"].split(",") if name.strip()}


def assert_open(reply: Reply) -> None:
    assert reply.headers.get_all(ALLOW_ORIGIN) == ["*"]
    assert reply.headers[CREDENTIALS] is None


# -- any origin ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ORIGINS)
def test_any_origin_gets_a_literal_star_without_credentials(server: Server, origin: str) -> None:
    reply = server.post(FIELDS, {"Origin": origin})
    assert reply.status == 200
    assert_open(reply)
    assert {name.strip().lower() for name in reply.headers["Access-Control-Expose-Headers"].split(",")} == {
        "retry-after",
        "x-request-id",
        "server-timing",
    }


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_is_granted_with_a_literal_star(server: Server, origin: str) -> None:
    reply = preflight(server, origin)
    assert reply.status in {200, 204}
    assert_open(reply)
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert int(reply.headers["Access-Control-Max-Age"]) > 0


def test_a_preflight_grants_the_listed_headers_and_no_others(server: Server) -> None:
    listed = {"content-type", "authorization", "x-api-key", "x-request-id", "x-stainless-os", "x-stainless-retry-count"}
    reply = preflight(server, "http://page.example", ",".join([*listed, "x-evil", "cookie"]))
    assert granted(reply) == listed
    assert granted(preflight(server, "http://page.example", "X-Api-Key, X-Stainless-Lang,X-Evil")) == {
        "x-api-key",
        "x-stainless-lang",
    }


def test_answers_without_an_origin_carry_no_cors_headers(server: Server) -> None:
    assert server.post(FIELDS).headers[ALLOW_ORIGIN] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("GET", "/nope", None, 404), ("POST", "/generate/", "{}", 404), ("GET", "/generate", None, 405), ("PUT", "/generate", "{}", 405),
     ("DELETE", "/health", None, 405), ("POST", "/generate", "{}", 400), ("POST", "/generate", "nonsense", 400)],
)  # fmt: skip
def test_errors_carry_cors_headers(server: Server, method: str, path: str, body: str | None, status: int) -> None:
    reply = server.request(method, path, body, {"Origin": "http://page.example", "Content-Type": "application/json"})
    assert reply.status == status
    assert_open(reply)
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}


def test_415_and_413_carry_cors_headers(server: Server) -> None:
    reply = server.request("POST", "/generate", "{}", {"Origin": "http://page.example", "Content-Type": "text/plain"})
    assert reply.status == 415
    assert_open(reply)
    large = server.exchange(server.http(" " * 70_000, "Origin: http://page.example", "Content-Type: application/json"))
    assert large.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in large


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/generate", "POST"), ("PUT", "/generate", "POST"), ("POST", "/health", "GET")],
)
def test_405_names_what_is_allowed(server: Server, method: str, path: str, allowed: str) -> None:
    reply = server.request(method, path)
    reply.error(405, "method_not_allowed")
    assert allowed in [name.strip() for name in reply.headers["Allow"].split(",")]


def test_404_has_the_error_shape(server: Server) -> None:
    server.get("/nope?context=x").error(404, "not_found")


# -- Host ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost:5005",
        "127.0.0.1",
        "127.0.0.1:5005",
        "[::1]",
        "[::1]:5005",
        "192.168.1.7:80",
        "[fe80::1]",
    ],
)
def test_local_names_and_ip_literals_are_answered(server: Server, host: str) -> None:
    assert server.get("/health", {"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:5005", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io:5005", "", "localhost/health",
     "evil.example@localhost.example", "xn--localhost", "[evil.example]", "-", "localhost.", "service.allowed.example"],
)  # fmt: skip
def test_foreign_names_are_403(server: Server, host: str) -> None:
    raw = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = server.exchange(raw.encode())
    assert answer[:13] in (b"HTTP/1.1 403 ", b"HTTP/1.0 400 ", b"HTTP/1.1 400 ")
    assert b'"ready"' not in answer


def test_a_foreign_host_is_named_as_the_reason(server: Server) -> None:
    message = server.post(FIELDS, {"Host": "evil.example"}).error(403, "host_not_allowed")
    assert "--allowed-host" in message


# -- listed origins --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(start_server: ServerFactory) -> Server:
    arguments = ["--cors-origin", LISTED, "--cors-origin", "http://second.example:8080/", "--cors-credentials"]
    return start_server(*arguments, "--allowed-host", "service.allowed.example")


@pytest.mark.parametrize("origin", [LISTED, "http://second.example:8080"])
def test_a_listed_origin_is_reflected_with_vary_and_credentials(listed: Server, origin: str) -> None:
    for reply in (listed.post(FIELDS, {"Origin": origin}), preflight(listed, origin)):
        assert reply.status in {200, 204}
        assert reply.headers.get_all(ALLOW_ORIGIN) == [origin]
        assert reply.headers[CREDENTIALS] == "true"
        assert "Origin" in ", ".join(reply.headers.get_all("Vary"))


@pytest.mark.parametrize(
    "origin",
    [
        "http://good.example",
        "https://good.example.evil.example",
        "https://good.example:8443",
        "null",
        "https://GOOD.example",
    ],
)
def test_a_foreign_origin_is_403_and_gets_no_grant(listed: Server, origin: str) -> None:
    reply = listed.post(FIELDS, {"Origin": origin})
    reply.error(403, "origin_not_allowed")
    for answer in (reply, preflight(listed, origin)):
        assert answer.status == 403
        assert answer.headers[ALLOW_ORIGIN] is None
        assert answer.headers[CREDENTIALS] is None
        assert "Origin" in ", ".join(answer.headers.get_all("Vary"))


def test_the_same_origin_passes_a_list(listed: Server) -> None:
    own = f"127.0.0.1:{listed.port}"
    assert listed.post(FIELDS, {"Origin": f"http://{own}", "Host": own}).status == 200
    listed.post(FIELDS, {"Origin": "http://127.0.0.1:1", "Host": own}).error(403, "origin_not_allowed")


def test_no_origin_passes_a_list_and_caches_are_told(listed: Server) -> None:
    reply = listed.post(FIELDS)
    assert reply.status == 200
    assert reply.headers[ALLOW_ORIGIN] is None
    assert "Origin" in ", ".join(reply.headers.get_all("Vary"))


def test_errors_for_a_listed_origin_are_readable_to_it(listed: Server) -> None:
    for path in ("/nope", "/generate"):
        reply = listed.get(path, {"Origin": LISTED})
        assert reply.status in {404, 405}
        assert reply.headers[ALLOW_ORIGIN] == LISTED


@pytest.mark.parametrize("host", ["service.allowed.example", "SERVICE.allowed.example:443"])
def test_an_allowed_host_is_answered(listed: Server, host: str) -> None:
    assert listed.get("/health", {"Host": host}).status == 200
    listed.get("/health", {"Host": "other.allowed.example"}).error(403, "host_not_allowed")


@pytest.mark.parametrize("extra", [(), ("--cors-origin", "*")], ids=["no list", "star"])
def test_credentials_without_a_list_are_refused_at_start(
    run_command: Callable[..., subprocess.CompletedProcess[str]], extra: tuple[str, ...]
) -> None:
    done = run_command("serve", "--port", "0", "--cors-credentials", *extra)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "--cors-credentials" in lines[0]


# -- keys ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Server:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# comment\n\n{FILE_KEY}\n{CYRILLIC_KEY}\n", encoding="utf-8")
    return start_server("--api-key-file", str(path), PROMPTGEN_API_KEYS=f"{KEY},second-key")


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"X-Api-Key": KEY}, {"X-Api-Key": "second-key"},
     {"Authorization": f"Bearer {FILE_KEY}"}, {"X-Api-Key": FILE_KEY}, {"Authorization": "Basic eDp5", "X-Api-Key": KEY}],
    ids=str,
)  # fmt: skip
def test_a_key_from_environment_or_file_opens(locked: Server, headers: dict[str, str]) -> None:
    assert locked.post(FIELDS, headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": ""},
     {"X-Api-Key": "wrong"}, {"X-Api-Key": KEY + "x"}, {"X-Api-Key": KEY[:-1]}, {"X-Api-Key": KEY.upper()}, {"Authorization": KEY},
     {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": f"{KEY},second-key"}, {"X-Api-Key": "# comment"}, {"X-Api-Key": "x" * 5000}],
    ids=lambda headers: str(headers)[:40],
)  # fmt: skip
def test_without_a_right_key_it_is_401(locked: Server, headers: dict[str, str]) -> None:
    reply = locked.post(FIELDS, headers)
    reply.error(401, "invalid_api_key")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert KEY not in reply.body.decode()


def test_keys_beyond_ascii_are_compared_and_not_a_fault(locked: Server) -> None:
    body = '{"context": "a", "maxlength": 1}'
    for header in (b"X-Api-Key: ", b"Authorization: Bearer "):
        for value, status in ((CYRILLIC_KEY.encode(), 200), ("неверно".encode(), 401), (b"\xff\xfe\x80", 401)):
            head, _, rest = locked.http(body, "Content-Type: application/json").partition(b"\r\n")
            answer = locked.exchange(head + b"\r\n" + header + value + b"\r\n" + rest)
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer


def test_health_and_ready_need_no_key_and_the_rest_does(locked: Server) -> None:
    assert [locked.get(path).status for path in ("/health", "/ready")] == [200, 200]
    for path in (
        "/version",
        "/nope",
        "/generate",
        "/health/",
        "//health",
        "/health/../version",
        "/health%2f..%2fversion",
        "/Health",
    ):
        locked.get(path).error(401, "invalid_api_key")
    assert locked.get("/version", {"X-Api-Key": KEY}).status == 200


def test_a_host_header_does_not_change_the_path_that_is_checked(locked: Server) -> None:
    for host in ("127.0.0.1/health?", "127.0.0.1/health#", "localhost/health"):
        assert locked.get("/version", {"Host": host}).status in {400, 401, 403}
    answer = locked.exchange(locked.http("", line="GET http://localhost/version?x=/health HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_preflight_passes_before_keys_and_a_401_is_readable(locked: Server) -> None:
    assert preflight(locked, "http://page.example", "x-api-key,authorization").status in {200, 204}
    assert granted(preflight(locked, "http://page.example", "x-api-key,authorization")) == {
        "x-api-key",
        "authorization",
    }
    reply = locked.post(FIELDS, {"Origin": "http://page.example"})
    reply.error(401, "invalid_api_key")
    assert_open(reply)


def test_an_options_request_that_is_no_preflight_needs_a_key(locked: Server) -> None:
    assert locked.request("OPTIONS", "/generate").status == 401


def test_keys_are_masked_in_the_log(locked: Server) -> None:
    log = locked.log()
    assert "setting api_keys = ***" in log
    assert [key for key in (KEY, "second-key", FILE_KEY, CYRILLIC_KEY) if key in log] == []


def test_a_key_file_that_is_missing_or_empty_ends_the_start(
    run_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n", encoding="utf-8")
    for path in (empty, tmp_path / "absent.txt"):
        done = run_command("serve", "--port", "0", "--api-key-file", str(path))
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert path.name in done.stderr


def test_a_bind_beyond_loopback_without_a_key_warns_and_with_one_does_not(start_server: ServerFactory) -> None:
    bare = start_server("--host", "0.0.0.0", ready=False)
    keyed = start_server("--host", "0.0.0.0", ready=False, PROMPTGEN_API_KEYS=KEY)
    for server in (bare, keyed):
        server.wait_until("/health", 200)
        server.stop()
    warnings = [line for line in bare.log().splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "0.0.0.0 without a key" in warnings[0]
    assert "warning" not in keyed.log()
