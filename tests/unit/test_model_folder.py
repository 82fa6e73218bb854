"""A file of a model folder is the old one or the new one, whole, whatever the disk does meanwhile."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from promptgen.training import model_folder
from promptgen.training.model_folder import put


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    synced: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(model_folder, "sync", lambda partial: synced.append((partial.read_bytes(), path.read_bytes())))
    put(path, b"new")
    assert synced == [(b"new", b"old")]
    assert path.read_bytes() == b"new"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_part_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")

    def full(_: Path, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "config.json.partial").write_bytes(b"ne")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        put(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert path.read_bytes() == b"old"
