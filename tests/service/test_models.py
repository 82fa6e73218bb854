"""Several models in one process: named in requests, loaded and unloaded by an admin, put to sleep when idle, exchanged without a loss."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Server, ServerFactory

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model" / "final_model"
ADMIN = {"X-Api-Key": "the-admin"}
SHORT = {"context": "高血压要注意", "seed": 7, "samples": 2, "maxlength": 6}
MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders; `hot` has the same weights and is drawn from otherwise, which shows which of them answers."""
    made = {}
    for name in ("plain", "hot"):
        made[name] = tmp_path_factory.mktemp("models") / name
        shutil.copytree(MODEL, made[name])
    heat(made["hot"])
    return made


def heat(folder: Path, temperature: float = 2.0) -> None:
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def two(start_server: ServerFactory, folders: dict[str, Path]) -> Server:
    return start_server(
        "--model", f"first={folders['plain']}", "--model", str(folders["hot"]), PROMPTGEN_ADMIN_KEYS="the-admin"
    )


def admin(server: Server, name: str, action: str, headers: dict[str, str] | None = None) -> Any:
    return server.request("POST", f"/models/{name}/{action}", b"", ADMIN if headers is None else headers)


def result(server: Server, **fields: Any) -> list[str]:
    texts: list[str] = server.generate(**(SHORT | fields))["result"]
    return texts


def states(server: Server) -> dict[str, str]:
    return {model["name"]: model["state"] for model in server.get("/models").json["models"]}


def test_models_are_listed_the_default_first(two: Server) -> None:
    first, second = two.get("/models").json["models"]
    assert (first["name"], first["default"], first["state"]) == ("first", True, "ready")
    assert (second["name"], second["default"], second["state"]) == ("hot", False, "ready")
    assert first["model"]["name"] == "first"
    assert [model["id"] for model in two.get("/v1/models").json["data"]] == ["first", "hot"]


def test_a_request_says_which_model_answers_it(two: Server) -> None:
    assert result(two) == result(two, model="first")
    assert result(two) != result(two, model="hot")
    for name in ("first", "hot"):
        assert two.generate(**SHORT, model=name, details=True)["model"] == name
    stream = two.post(SHORT | {"model": "hot", "stream": True}).body.decode()
    assert json.loads(stream.split("\n\n")[-3].removeprefix("data: "))["order"]
    chat = {"question": "高血压要注意什么？", "seed": 1, "max_new_tokens": 8}
    assert two.post(chat | {"model": "hot"}, path="/chat").status == 200
    asked = {"model": "hot", "prompt": "高血压", "max_tokens": 4, "seed": 1}
    assert two.post(asked, path="/v1/completions").json["model"] == "hot"
    assert two.post({"text": "高血压", "model": "hot"}, path="/tokenize").status == 200


def test_metrics_are_of_all_models(two: Server) -> None:
    def generated(model: str) -> float:
        [tokens] = re.findall(rf'^promptgen_generated_tokens_total{{model="{model}"}} (\S+)$', metrics(), re.MULTILINE)
        return float(tokens)

    def metrics() -> str:
        return two.get("/metrics").body.decode()

    before = generated("first"), generated("hot")
    result(two, model="hot", seed=11)
    assert generated("first") == before[0]
    assert generated("hot") > before[1]
    assert "promptgen_requests_limit 512.0" in metrics()
    assert set(re.findall(r'^promptgen_model_info{model="(\w+)"', metrics(), re.MULTILINE)) == {"first", "hot"}


@pytest.mark.parametrize("path", ["/generate", "/chat", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("name", ["nobody", "", "../first", "FIRST"])
def test_a_model_that_is_not_there_is_404(two: Server, path: str, name: str) -> None:
    fields: dict[str, dict[str, Any]] = {
        "/generate": {"context": "a"}, "/chat": {"question": "a"}, "/tokenize": {"text": "a"}, "/detokenize": {"ids": [9]},
    }  # fmt: skip
    two.post(fields[path] | {"model": name}, path=path).error(404, "unknown_model", "model")


def test_a_model_of_another_type_is_400(two: Server) -> None:
    two.post({"context": "a", "model": 5}).error(400, "invalid_value", "model")


@pytest.mark.parametrize("action", ["load", "unload", "reload"])
def test_only_an_admin_changes_what_is_served(two: Server, action: str) -> None:
    admin(two, "hot", action, {}).error(401, "invalid_api_key")
    admin(two, "hot", action, {"X-Api-Key": "guess"}).error(401, "invalid_api_key")
    admin(two, "hot", action, {"Authorization": "Bearer the-admin "[:-2]}).error(401, "invalid_api_key")
    assert states(two) == {"first": "ready", "hot": "ready"}
    admin(two, "nobody", action).error(404, "unknown_model", "model")
    assert two.request("GET", f"/models/hot/{action}").status == 405
    assert two.request("POST", "/models/hot/explode", b"", ADMIN).status == 404


def test_without_an_admin_key_nobody_is_an_admin(server: Server) -> None:
    admin(server, "final_model", "reload", {}).error(403, "admin_disabled")
    admin(server, "final_model", "unload", {"X-Api-Key": ""}).error(403, "admin_disabled")


def test_a_key_of_a_caller_is_no_admin_key_but_an_admin_key_calls_too(
    start_server: ServerFactory, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "admins"
    file.write_text("the-admin\n")
    server = start_server("--model", str(folders["plain"]), "--admin-key-file", str(file), PROMPTGEN_API_KEYS="caller")
    caller = {"X-Api-Key": "caller"}
    admin(server, "plain", "reload", caller).error(403, "admin_key_required")
    admin(server, "plain", "reload", {}).error(401, "invalid_api_key")
    server.get("/models").error(401, "invalid_api_key")
    assert server.request("GET", "/models", None, caller).status == 200
    assert admin(server, "plain", "reload").status == 200
    assert server.post({"context": "a", "maxlength": 1}, ADMIN).status == 200
    assert server.post({"context": "a", "maxlength": 1}, caller).status == 200


def test_unload_and_load(two: Server) -> None:
    expected = result(two, model="hot")
    unloaded = admin(two, "hot", "unload")
    assert (unloaded.status, unloaded.json["state"]) == (200, "unloaded")
    assert states(two) == {"first": "ready", "hot": "unloaded"}
    two.post(SHORT | {"model": "hot"}).error(404, "unknown_model", "model")
    assert two.get("/ready").status == 200, "the default answers"
    assert result(two)
    for _ in range(2):
        assert admin(two, "hot", "load").json["state"] == "ready"
    assert result(two, model="hot") == expected


def test_an_exchange_under_load_drops_nothing(start_server: ServerFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    server = start_server("--model", str(folder), PROMPTGEN_ADMIN_KEYS="the-admin")
    fields = SHORT | {"maxlength": 20, "samples": 4}
    before = result(server, **fields)
    heat(folder)
    is_over = False
    with ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> list[tuple[int, Any]]:
            replies = []
            while not is_over:
                reply = server.post(fields)
                replies.append((reply.status, reply.json.get("result")))
            return replies

        asking = [pool.submit(ask, i) for i in range(6)]
        time.sleep(0.3)
        for _ in range(3):
            assert admin(server, "model", "reload").status == 200
            time.sleep(0.2)
        is_over = True
        replies = [reply for future in asking for reply in future.result()]
    after = result(server, **fields)
    assert after != before
    assert {status for status, _ in replies} == {200}
    assert all(texts in (before, after) for _, texts in replies)
    assert {tuple(texts) for _, texts in replies} == {tuple(before), tuple(after)}
    assert server.stop() == 0


def test_a_folder_that_went_bad_is_named_and_the_old_model_serves_on(
    start_server: ServerFactory, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    server = start_server("--model", str(folder), PROMPTGEN_ADMIN_KEYS="the-admin")
    server.baseline = server.fixed_result()
    (folder / "config.json").write_text("{")
    assert "config.json" in admin(server, "model", "reload").error(422, "model_unusable")
    assert states(server) == {"model": "ready"}
    server.assert_healthy()


def test_a_model_that_nobody_asks_for_sleeps_leaves_memory_and_wakes(
    start_server: ServerFactory, folders: dict[str, Path]
) -> None:
    server = start_server(
        "--model", f"a={folders['plain']}", "--model", f"b={folders['hot']}", "--unload-after-s", "1.5"
    )
    expected = result(server), result(server, model="b", samples=64, maxlength=100)
    awake = resident_kb(server)
    end = time.monotonic() + 30
    while states(server) != {"a": "asleep", "b": "asleep"}:
        assert time.monotonic() < end
        time.sleep(0.1)
    while resident_kb(server) >= awake - 20_000:
        assert time.monotonic() < end, "the memory stays taken"
        time.sleep(0.1)
    assert server.get("/ready").status == 200
    assert server.get("/version").json["model"]["name"] == "a"
    assert server.post({"text": "高血压"}, path="/tokenize").status == 200
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: result(server), range(4))) == [expected[0]] * 4
    assert states(server)["b"] == "asleep"
    assert result(server, model="b", samples=64, maxlength=100) == expected[1]
    assert server.stop() == 0


def resident_kb(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--model", f"a={MODEL}", "--model", f"a={MODEL}"], 2, "a stands twice"),
        (["--model", str(MODEL), "--model", str(MODEL)], 2, "final_model stands twice"),
        (["--model", f"a={MODEL}", "--model", "b=/nowhere"], 3, "/nowhere"),
    ],
)
def test_models_that_cannot_be_served_end_the_start(
    run_command: Callable[..., Any], arguments: list[str], code: int, named: str
) -> None:
    done = run_command("serve", "--port", "0", *arguments)
    assert done.returncode == code
    assert named in done.stderr.strip().splitlines()[-1]
