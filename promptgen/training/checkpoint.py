"""Checkpoints that survive a kill at any instant.

    OUT/checkpoints/step-00001200/   weights.safetensors     fp32 weights of the model
                                     optimizer.safetensors   memory of the optimizers
                                     state.json              where the run stands, and what it is a run of
                                     manifest.json           size and SHA-256 of the three, written last

A checkpoint is written under a temporary name, every file synced, the manifest last; then the folder is renamed. A resume takes the newest
that verifies. There is no pickle in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptgen.errors import DiskFault, FileFault

FOLDER = "checkpoints"
KEPT = 2
_LOCK = ".lock"
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands after `step` steps; `identity` is the configuration and the data it is a run of."""

    step: int
    epoch: int
    batch: int  # of the epoch, the next one
    num_tokens: int
    seconds: float
    smooth_loss: float | None
    best_loss: float | None
    worse_validations: int
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    state: State
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def reached(point: str) -> None:
    """Does nothing. Named instants of saving, where the tests kill the process."""


def save(out: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint into out/checkpoints, then drops all but the newest. Raises DiskFault, the older ones kept, if there is no room."""
    folder = out / FOLDER
    final = folder / f"step-{checkpoint.state.step:08}"
    partial = folder / f".partial-{checkpoint.state.step:08}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop(partial)
        partial.mkdir()
        reached("begun")
        save_file(checkpoint.weights, partial / _FILES[0])
        reached("weights")
        save_file(checkpoint.optimizer, partial / _FILES[1])
        reached("optimizer")
        (partial / _FILES[2]).write_text(json.dumps(asdict(checkpoint.state), indent=1) + "\n", encoding="utf-8")
        manifest = {name: _fingerprint(partial / name) for name in _FILES}
        reached("before manifest")
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for name in (*_FILES, "manifest.json"):
            sync(partial / name)
        sync(partial)
        reached("manifest")
        if final.exists():
            _drop(final)
        partial.rename(final)
        reached("renamed")
        sync(folder)
    except (OSError, SafetensorError) as fault:
        with contextlib.suppress(OSError):
            _drop(partial)
        raise _disk_fault(folder, fault) from fault
    for old in _complete(folder)[KEPT:]:
        _drop(old)
    reached("dropped")
    return final


def newest(out: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and a line for each that does not."""
    faults: list[str] = []
    for folder in _complete(out / FOLDER):
        try:
            return _load(folder), faults
        except FileFault as fault:
            faults.append(str(fault))
    return None, faults


def clear(out: Path) -> None:
    """Drops all checkpoints: the run is over, or shall begin anew."""
    for folder in [*(out / FOLDER).glob("step-*"), *(out / FOLDER).glob(".partial-*")]:
        _drop(folder)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the folder for one training. Raises FileFault if another has it; a killed one leaves nothing behind."""
    folder = out / FOLDER
    with _locked_file(out):
        try:
            yield
        finally:
            if not _complete(folder):
                _drop(folder)


def sync(path: Path) -> None:
    """Forces a file or folder to the disk (folders only where the system can)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _load(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name in _FILES:
            if manifest[name] != _fingerprint(folder / name):
                raise FileFault(folder / name, "is not what was saved; the checkpoint before it is used")
        state = State(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        return Checkpoint(state, load_file(folder / _FILES[0]), load_file(folder / _FILES[1]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise FileFault(folder, f"is not a whole checkpoint ({fault!r})") from fault


def _complete(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _drop(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _disk_fault(folder: Path, fault: Exception) -> DiskFault:
    is_full = (isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space" in str(fault)
    advice = "the disk is full; make room" if is_full else f"cannot be written ({fault})"
    return DiskFault(f"{folder}: {advice} and run the same command again: it goes on from the checkpoint before")


def _locked_file(out: Path) -> IO[str]:
    """The folder's lock, held. A training that ends meanwhile takes the file away: a lock on that one would keep nobody out."""
    path = out / FOLDER / _LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("w")
        except FileNotFoundError:
            continue
        if not _lock(file):
            file.close()
            raise FileFault(out, "another training is running in this folder; wait for it, or give another --out")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _lock(file: IO[str]) -> bool:
    """Whether the lock was free. It goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
