"""How much the tests try: a little in `make test`, and with HEAVY=1 in the environment as much as `make fuzz` wants."""

from __future__ import annotations

import os

IS_HEAVY = os.environ.get("HEAVY", "0") not in ("", "0")


def cases(usual: int, heavy: int) -> int:
    return heavy if IS_HEAVY else usual
