"""Makes a shared library of kernels.cpp for this machine, once, and keeps it.

    library = find_library(folder)                  None when there is none for this source and machine, or it is damaged
    library = compile_library(folder, "auto")       a few seconds; raises KernelsUnavailable

A machine without a compiler may have one from the package index: ziglang is Clang with its libraries in a wheel, which needs minutes, as it
first makes its own C++ library. Its kernels are as fast as GCC's. A library's name is a digest of source, flags and processor; a manifest beside it holds its own digest, written last, so a file that is
cut, foreign or changed is never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
TIMEOUT_S = 600  # ziglang takes a minute alone, some beside a busy service
ZIGLANG = "ziglang >= 0.17.1, < 0.18"  # as in setup.cfg
_log = logging.getLogger(__name__)


class KernelsUnavailable(Exception):
    """There is no library and none can be made; the message says why."""


def find_library(folder: Path) -> Path | None:
    """The library for this machine, if it is whole."""
    library = folder / f"{_name()}.so"
    manifest = library.with_suffix(".json")
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        if told["sha256"] == hashlib.sha256(library.read_bytes()).hexdigest():
            return library
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    _log.warning("the compiled kernels %s are damaged; they are made anew", library)
    return None


def compiler_command(compiler: str) -> list[str]:
    """How to call a compiler: a program of that name, or for "auto" c++, else that of the package ziglang.

    Raises KernelsUnavailable if there is none.
    """
    program = shutil.which("c++" if compiler == "auto" else compiler)
    if program is not None:
        return [program]
    if compiler != "auto":
        raise KernelsUnavailable(f"there is no C++ compiler {compiler!r}")
    if find_spec("ziglang") is None:
        raise KernelsUnavailable(
            f"there is no C++ compiler; Debian's package g++ is one, or: {sys.executable} -m pip install {ZIGLANG!r}"
        )
    return [sys.executable, "-m", "ziglang", "c++"]


def compile_library(folder: Path, compiler: str) -> Path:
    """Compiles and keeps the library. Raises KernelsUnavailable: no compiler, one that fails, a folder that cannot be written."""
    command = compiler_command(compiler)
    told = " ".join(command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-", ignore_cleanup_errors=True) as place:
            made = Path(place) / "kernels.so"
            # Low priority: the service answers meanwhile. What ziglang keeps for another time would be hundreds of megabytes.
            done = subprocess.run(
                [*_low_priority(), *command, *FLAGS, str(SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": place, "ZIG_LOCAL_CACHE_DIR": place},
            )
            if done.returncode:
                last = next((line for line in reversed(done.stderr.splitlines()) if "error" in line.lower()), "")
                raise KernelsUnavailable(f"{told} ended with {done.returncode} {last.strip()}".strip())
            if not made.exists():
                raise KernelsUnavailable(f"{told} ended well and made nothing")
            library = folder / f"{_name()}.so"
            manifest = Path(place) / "kernels.json"
            manifest.write_text(
                json.dumps({"sha256": hashlib.sha256(made.read_bytes()).hexdigest(), "flags": FLAGS}), encoding="utf-8"
            )
            os.replace(made, library)
            os.replace(manifest, library.with_suffix(".json"))
            return library
    except subprocess.TimeoutExpired as fault:
        raise KernelsUnavailable(f"{told} took longer than {TIMEOUT_S} s") from fault
    except OSError as fault:
        raise KernelsUnavailable(f"{folder} cannot be used: {fault.strerror or fault}") from fault


def _sweep(folder: Path) -> None:
    """Removes what compilations left whose process was killed."""
    for place in folder.glob("making-*"):
        with contextlib.suppress(OSError):
            if time.time() - place.stat().st_mtime > TIMEOUT_S:
                shutil.rmtree(place, ignore_errors=True)


def _low_priority() -> list[str]:
    return ["nice", "-n", "10"] if shutil.which("nice") else []


def _name() -> str:
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(repr((FLAGS, platform.machine(), _processor())).encode())
    return f"kernels-{digest.hexdigest()[:16]}"


def _processor() -> list[str]:
    """What -march=native depends on."""
    lines: list[str] = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
        for line in info:
            if not line.strip():
                break  # the first processor is enough
            if line.startswith(("model name", "flags", "Features", "cpu family", "model\t")):
                lines.append(line.strip())
    return lines
