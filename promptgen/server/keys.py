"""Who may call, and how much: keys, read again on SIGHUP, and what each of them may ask for.

A caller is known by a name made of its key, which does not tell the key. Limits are for callers with keys: an address says little behind a proxy.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import hdrs, web

from promptgen.config import ServeSettings
from promptgen.errors import UsageError
from promptgen.server.faults import HttpFault

_MINUTE_S = 60.0
Digests = tuple[bytes, ...]


class Keys:
    """The keys as they are now: those of callers, and those that may change which models are loaded, which are keys of callers too."""

    def __init__(self, settings: ServeSettings) -> None:
        """Raises UsageError for a key file that cannot be used."""
        self._settings = settings
        self._callers: Digests = ()
        self._admins: Digests = ()
        self.reload()

    @property
    def are_wanted(self) -> bool:
        return self._is_wanted

    def reload(self) -> None:
        """Reads the files again. Raises UsageError, and then the keys stay as they were."""
        callers, admins = read_keys(self._settings), read_admin_keys(self._settings)
        self._is_wanted = bool(callers)
        self._callers, self._admins = _digests([*callers, *admins]), _digests(admins)

    def caller(self, request: web.Request) -> str | None:
        """A name for the key that was sent; None if none fits."""
        fitting = _fitting(request, self._callers)
        return hashlib.sha256(fitting[0]).hexdigest()[:16] if fitting else None

    def check_admin(self, request: web.Request) -> None:
        """Raises HttpFault 401 or 403 for whoever may not change what is served."""
        if not self._admins:
            message = "no admin key is set: PROMPTGEN_ADMIN_KEYS or --admin-key-file"
            raise HttpFault(403, "admin_disabled", message)
        if _fitting(request, self._admins):
            return
        if self._is_wanted and _fitting(request, self._callers):
            raise HttpFault(403, "admin_key_required", "this key may not do that; send an admin key")
        raise unauthorized()


def unauthorized() -> HttpFault:
    message = "send a valid key as Authorization: Bearer or X-Api-Key"
    return HttpFault(401, "invalid_api_key", message, headers={hdrs.WWW_AUTHENTICATE: "Bearer"})


@dataclass(slots=True)
class _Use:
    """What one caller asked for: when, within the last minute, and how much runs."""

    times: deque[float] = field(default_factory=deque)
    num_running: int = 0


@dataclass(slots=True)
class Limits:
    """So many requests in any minute, and so many at once, for each caller; 0 is no limit."""

    per_minute: int
    at_once: int
    clock: Callable[[], float] = time.monotonic
    _uses: dict[str, _Use] = field(default_factory=dict)

    @contextmanager
    def using(self, caller: str) -> Iterator[None]:
        """For as long as a request takes. Raises HttpFault 429."""
        if not (self.per_minute or self.at_once):
            yield
            return
        use = self._uses.setdefault(caller, _Use())
        now = self.clock()
        while use.times and now - use.times[0] >= _MINUTE_S:
            use.times.popleft()
        if self.at_once and use.num_running >= self.at_once:
            raise _over(f"this key may have {self.at_once} requests at once", 1.0)
        if self.per_minute and len(use.times) >= self.per_minute:
            raise _over(f"this key may send {self.per_minute} requests a minute", use.times[0] + _MINUTE_S - now)
        if self.per_minute:
            use.times.append(now)
        use.num_running += 1
        try:
            yield
        finally:
            use.num_running -= 1


def limits_of(settings: ServeSettings, keys: Keys) -> Limits:
    """Raises UsageError for limits that would hold nobody, as there are no keys."""
    limits = Limits(settings.requests_per_minute, settings.requests_at_once)
    if (limits.per_minute or limits.at_once) and not keys.are_wanted:
        raise UsageError(
            "--requests-per-minute and --requests-at-once are limits of a key; set PROMPTGEN_API_KEYS or --api-key-file"
        )
    return limits


def _over(message: str, wait_s: float) -> HttpFault:
    retry_after = max(1, min(60, math.ceil(wait_s)))
    return HttpFault(429, "rate_limited", message, headers={hdrs.RETRY_AFTER: str(retry_after)})


def read_keys(settings: ServeSettings) -> list[str]:
    """The keys of environment and file. Raises UsageError for a key file that cannot be read or holds none."""
    return _read(settings.api_keys, settings.api_key_file, "PROMPTGEN_API_KEYS")


def read_admin_keys(settings: ServeSettings) -> list[str]:
    """The same for keys that may change which models are loaded."""
    return _read(settings.admin_keys, settings.admin_key_file, "PROMPTGEN_ADMIN_KEYS")


def _read(given: str, file: Path | None, variable: str) -> list[str]:
    keys = [key.strip() for key in given.split(",") if key.strip()]
    if given and not keys:
        raise UsageError(f"{variable} is set but holds no key; unset it to serve without keys")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as fault:
            raise UsageError(f"{file}: the key file cannot be read ({fault})") from fault
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{file}: the key file holds no key")
        keys += found
    return keys


def _digests(keys: Sequence[str]) -> Digests:
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def _fitting(request: web.Request, digests: Digests) -> list[bytes]:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = [token.strip() if scheme.lower() == "bearer" else "", request.headers.get("X-Api-Key", "")]
    sent = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in given]
    # No short cut: every key is compared, in constant time.
    return [known for digest in sent for known in digests if hmac.compare_digest(digest, known)]
