"""Writes the files of a folder under `*.partial` names and renames them at the end, all or none.

Who has the old files open or mapped keeps them. The manifest (meta.json) is taken away before the first file is renamed and comes back last: a
folder without it is not whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from promptgen.errors import DiskFault

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StagedFile:
    """A file being written; `sha256` is that of what was written so far."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.partial = folder / f"{name}.partial"
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self.partial.open("wb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        with _disk_faults(self.partial):
            self._file.write(data)
        self._digest.update(data)

    def finish(self) -> None:
        """Everything is on the disk after this."""
        with _disk_faults(self.partial):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Takes the file away. A fault of that is passed over: the one before it is to be told of."""
        with suppress(OSError):
            self._file.close()  # flushes again, and may fail again
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)


class Staging:
    """The files of one folder. Left without `commit`, it takes away what it wrote. Raises DiskFault whatever the disk refuses."""

    def __init__(self, folder: Path, manifest: str) -> None:
        self._folder = folder
        self._manifest = manifest
        self._files: list[StagedFile] = []

    def __enter__(self) -> Staging:
        with _disk_faults(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def open(self, name: str) -> StagedFile:
        with _disk_faults(self._folder / name):
            self._files.append(StagedFile(self._folder, name))
        return self._files[-1]

    def write(self, name: str, data: bytes) -> None:
        self.open(name).write(data)

    def commit(self, obsolete: Iterable[Path] = ()) -> None:
        """Renames everything, the manifest last, and takes away the `obsolete` files of an earlier time."""
        for file in self._files:
            file.finish()
        with _disk_faults(self._folder):
            (self._folder / self._manifest).unlink(missing_ok=True)
            for path in obsolete:
                path.unlink(missing_ok=True)
            for file in sorted(self._files, key=lambda file: file.name == self._manifest):
                file.partial.replace(self._folder / file.name)
        self._files = []

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.discard()


@contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        advice = (
            "free some space there or name another folder with --out"
            if fault.errno in _NO_ROOM
            else "name a folder that can be written to with --out"
        )
        raise DiskFault(f"{path}: cannot be written: {fault.strerror}; {advice}, then run the command again") from fault
