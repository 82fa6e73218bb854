"""A checkpoint comes back as it was saved, a damaged one is passed over for the one before, and a folder has one training at a time."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch

from promptgen.errors import DiskFault, FileFault
from promptgen.training import checkpoint
from promptgen.training.checkpoint import Checkpoint, State, clear, locked, newest, save

STATE = State(4, 1, 2, 900, 1.5, 3.25, 3.5, 0, {"seed": 0})


def saved(out: Path, step: int) -> Path:
    weights = {"w": torch.full((3, 2), float(step))}
    memory = {"w/exp_avg": torch.full((3, 2), 0.1 * step), "w/step": torch.tensor(float(step))}
    return save(out, Checkpoint(replace(STATE, step=step), weights, memory))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    found, faults = newest(tmp_path)
    assert not faults
    assert found is not None
    assert found.state == STATE
    assert torch.equal(found.weights["w"], torch.full((3, 2), 4.0))
    assert torch.equal(found.optimizer["w/step"], torch.tensor(4.0))


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 9):
        saved(tmp_path, step)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-00000009", "step-00000010"]
    assert (found := newest(tmp_path)[0]) is not None
    assert found.state.step == 10


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    saved(tmp_path, 2)
    path = saved(tmp_path, 4) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-1], "flipped": flipped, "empty": b""}[damage])
    found, faults = newest(tmp_path)
    if (name, damage) == ("manifest.json", "cut"):  # its last byte is the end of a line
        assert found is not None
        return
    assert found is not None
    assert found.state.step == 2
    assert len(faults) == 1
    assert "step-00000004" in faults[0]


def test_a_manifest_of_another_shape_is_no_traceback(tmp_path: Path) -> None:
    folder = saved(tmp_path, 4)
    for text in ("[]", "{}", "null", '{"weights.safetensors": 1}'):
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        found, faults = newest(tmp_path)
        assert found is None
        assert "is not" in faults[0]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 2)

    def full(point: str) -> None:
        if point == "optimizer":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "reached", full)
    with pytest.raises(DiskFault, match="the disk is full; make room and run the same command again") as caught:
        saved(tmp_path, 4)
    assert caught.value.exit_code == 5
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_half_a_checkpoint_is_none_and_is_swept_by_the_next(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / ".partial-00000004"
    partial.mkdir(parents=True)
    (partial / "weights.safetensors").write_bytes(b"half")
    assert newest(tmp_path) == (None, [])
    saved(tmp_path, 4)
    assert not partial.exists()
    clear(tmp_path)
    assert newest(tmp_path) == (None, [])


def test_a_second_training_in_a_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(
            FileFault, match="another training is running in this folder; wait for it, or give another --out"
        ),
        locked(tmp_path),
    ):
        pytest.fail("two at once")
    with locked(tmp_path):
        saved(tmp_path, 2)
    assert newest(tmp_path)[0] is not None
    with locked(tmp_path):
        clear(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    names = {path.name for path in saved(tmp_path, 4).iterdir()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert set(json.loads((tmp_path / "checkpoints/step-00000004/manifest.json").read_text())) == names - {
        "manifest.json"
    }


def test_a_lock_on_a_file_that_was_taken_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = checkpoint._lock, 0

    def after_another_ended(file: IO[str]) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:  # between opening the file and locking it
            shutil.rmtree(tmp_path / "checkpoints")
        return real(file)

    monkeypatch.setattr(checkpoint, "_lock", after_another_ended)
    with locked(tmp_path):
        assert calls == 2
        with pytest.raises(FileFault, match="another training is running in this folder"), locked(tmp_path):
            pytest.fail("two at once")
    assert not (tmp_path / "checkpoints").exists()


def test_make_goes_on_only_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    (script,) = re.findall(r"--resume \$\$\((.*)\)\n", makefile)
    script = script.replace("$(MODEL)", str(tmp_path))

    def said() -> str:
        return subprocess.run(["sh", "-c", script], capture_output=True, encoding="utf-8", check=True).stdout.strip()

    assert said() == "never"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".lock").touch()  # of a run that was killed before its first one
    assert said() == "never"
    saved(tmp_path, 2)
    assert said() == "auto"
