"""docs/clients.md tells of the clients and versions that tests/clients tries, and of each what came of it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.json_model import WAYS, is_held_out, people
from tests.clients.run import clients

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([\w-]+) \| ([\w.]+) \| (passed|failed) \| (.*) \|$", re.MULTILINE)


def test_the_table_has_every_client_in_its_pinned_version() -> None:
    rows = {name: version for name, version, _, _ in ROW.findall((ROOT / "docs" / "clients.md").read_text("utf-8"))}
    assert rows == {client.name: client.version for client in clients().values()}


def test_every_client_has_a_check_and_is_pinned() -> None:
    for client in clients().values():
        assert (ROOT / "tests" / "clients" / "checks" / client.check).exists()
        assert all(re.fullmatch(r"[\w\[\],-]+(==|@)[\d.]+", spelled) for spelled in (*client.packages, *client.npm))


def test_the_people_asked_for_are_none_that_were_shown() -> None:
    asked = people()
    assert len(asked) >= 8
    assert all(is_held_out(str(one["name"]), int(str(one["age"]))) for one in asked)
    assert {one["text"] for one in asked} <= {
        way.format(name=one["name"], age=one["age"]) for one in asked for way in WAYS
    }
