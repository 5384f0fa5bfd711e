"""Logs: one event a line, bound to its job, with secrets masked by construction.

Owns how anything said in a log is shaped: JSON for machines, a readable line for a terminal, and
third-party libraries through the same door. Promises that no registered secret, no value under a
secret-looking name and no well-known credential shape gets through, and that no value is long
enough to carry a conversation (promise 11). Never raises into the work it reports on. Leaves to
others what is worth saying.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import quote
from uuid import UUID

from daemon.lean import without

with without("rich", "pygments"):
    import structlog

if TYPE_CHECKING:
    from types import TracebackType

LONGEST_VALUE_CHARACTERS = 500
"""A longer text is cut, saying how long it was; a conversation cannot pour into a log."""

_LONGEST_NESTED_CHARACTERS = 2_000
_SEARCHED_CHARACTERS = 4 * LONGEST_VALUE_CHARACTERS
_MOST_ITEMS = 50
_DEEPEST = 6
_SHORTEST_SECRET_CHARACTERS = 4
"""Shorter secrets are not searched for in running text: masking each `pg` would blind the log."""
_MASK = "***"

_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|credential|authorization|cookie"
    r"|(api|service|access|private|signing)[_-]?key"
    r"|(^|[_-])(token|auth|jwt|bearer|dsn)$",
    re.IGNORECASE,
)
# Each starts at a fixed text, so that a long hostile value costs linear time.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?<=://)([^\s:/@]*):[^\s/]*@"), rf"\1:{_MASK}@"),
    (re.compile(r"\bsk-(ant-[\w-]+|[\w-]{20,})"), _MASK),
    (re.compile(r"\bsb_secret_[\w-]+"), _MASK),
    (re.compile(r"\bwhsec_[\w+/=-]+"), _MASK),
    (re.compile(r"\beyJ[\w-]{10,}(\.[\w-]*){0,2}"), _MASK),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), _MASK),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{_MASK}"),
    (
        re.compile(r"(?i)(password|api[_-]?key)(\"?'?\s?[=:]\s?\"?'?)(?!not set\b)[^\s'\",&]+"),
        rf"\1\2{_MASK}",
    ),
)

_OWN_ROOT = Path(__file__).resolve().parent

_registered: frozenset[str] = frozenset()
_registered_pattern: re.Pattern[str] | None = None
_registering = threading.Lock()


class LogStream(Protocol):
    """What lines are written to: any text file, or something that stands in for one."""

    def write(self, text: str, /) -> object:
        """Take a whole line, its end included."""

    def flush(self) -> object:
        """Let what was written be seen."""

    def isatty(self) -> bool:
        """Whether a person reads along."""
        ...


def configure_logs(
    *,
    log_format: Literal["json", "console"] | None = None,
    level: str = "INFO",
    stream: LogStream | None = None,
) -> None:
    """Send every log line to `stream` (stderr), at `level` and above; third parties at WARNING.

    `log_format` None means json unless the stream is a terminal. May be called again: the last
    call counts, for loggers made earlier too.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    threshold = logging.getLevelNamesMapping()[level.upper()]
    as_json = log_format == "json" or (log_format is None and not terminal)
    renderer: Any = _as_json if as_json else structlog.dev.ConsoleRenderer(colors=terminal)
    writer = _Writer(stream)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _account_for_error,
            _make_safe,
            *([] if as_json else [_make_visible]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Adoption)]:
        root.removeHandler(handler)
    # The level stands on the handler: a library that turns its own logger up to DEBUG (request
    # bodies hold conversation text) still says nothing here.
    root.addHandler(_Adoption(max(threshold, logging.WARNING)))
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def get_logger(**bound: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger; may be made at import time, before `configure_logs` is called."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(**bound))


@contextmanager
def bind_job(
    *,
    job_id: UUID | str,
    user_id: UUID | str,
    attempt: int,
    lease_epoch: int,
    worker_id: str,
) -> Iterator[None]:
    """While this is open, every line logged from this task and the tasks it starts names the job.

    Threads started elsewhere do not inherit it: they name the job themselves.
    """
    with structlog.contextvars.bound_contextvars(
        job_id=str(job_id),
        user_id=str(user_id),
        attempt=attempt,
        lease_epoch=lease_epoch,
        worker_id=worker_id,
    ):
        yield


@contextmanager
def bind_step(step: str) -> Iterator[None]:
    """While this is open, every line of this task names the step of the pass."""
    with structlog.contextvars.bound_contextvars(step=step):
        yield


def mask_secrets(*values: str) -> None:
    """Register strings that no log may show from now on, in plain or percent-encoded spelling.

    Feed it `Settings.secret_values()` before the first line is logged.
    """
    global _registered, _registered_pattern  # noqa: PLW0603 - one process, one set of secrets
    spellings = {s for value in values for s in (value, quote(value, safe=""))}
    with _registering:
        _registered |= {s for s in spellings if len(s) >= _SHORTEST_SECRET_CHARACTERS}
        # Longest first: a secret that contains another must vanish whole.
        ordered = sorted(_registered, key=len, reverse=True)
        if ordered:
            _registered_pattern = re.compile("|".join(re.escape(s) for s in ordered))


def masked(text: str) -> str:
    """Return the text without secrets; also for errors and alerts that leave by another door."""
    if _registered_pattern is not None:
        text = _registered_pattern.sub(_MASK, text)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def where(error: BaseException) -> str | None:
    """Return `file:line function` of the innermost frame of ours that the error passed through."""
    own = innermost = None
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        path = Path(code.co_filename)
        if path.is_relative_to(_OWN_ROOT):
            own = f"{path.relative_to(_OWN_ROOT.parent)}:{frame.tb_lineno} {code.co_name}"
        innermost = f"{path.parent.name}/{path.name}:{frame.tb_lineno} {code.co_name}"
        frame = frame.tb_next
    return own or innermost


class _Writer:
    """Writes finished lines, whole, from any thread."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                # A full disk, a closed pipe or a closed stream: a log that cannot be written must
                # not end a pass that can go on.
                return

    log = debug = info = warn = warning = error = critical = fatal = exception = msg


class _Adoption(logging.Handler):
    """Takes in what third parties log the standard way, so that it is shaped and masked too."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            message = str(record.msg)  # arguments that do not fit: the library's own mistake
        event = {"logger": record.name, "exc_info": record.exc_info or None}
        get_logger().log(record.levelno, message, **event)


def _account_for_error(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Turn `exc_info`, or an exception given as `error`, into error_type, error and `at`."""
    given = event.pop("exc_info", None)
    if isinstance(given, tuple):
        given = given[1]
    elif given is True:
        given = sys.exc_info()[1]
    error = given if isinstance(given, BaseException) else event.get("error")
    if not isinstance(error, BaseException):
        return event
    # A task group wraps what happened; with a single cause the wrapping says nothing.
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    event["error_type"] = type(error).__name__
    event["error"] = str(error)
    place = where(error)
    if place is not None:
        event["at"] = place
    return event


def _make_safe(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask, cut and make plain every value; what people look for first stands first."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {_safe_text(str(n)): _safe(n, v) for n, v in (first | dict(event)).items()}


def _safe(name: object, value: object) -> object:
    plain = _plain(name, value, depth=0)
    if isinstance(plain, (dict, list)):
        text = json.dumps(plain)
        if len(text) > _LONGEST_NESTED_CHARACTERS:
            return _cut(text, length=len(text))
    return plain


def _plain(name: object, value: object, *, depth: int) -> object:
    """Return the value as JSON knows it, masked; whatever it is, this does not fail."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(name, str) and _SECRET_NAME.search(name):
        return _MASK
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return _safe_text(value)
    if isinstance(value, (Mapping, Collection)):
        return _plain_items(name, value, depth=depth)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return _safe_text(_described(value))


def _plain_items(
    name: object, value: Mapping[object, object] | Collection[object], *, depth: int
) -> object:
    if depth >= _DEEPEST:
        return "…"
    more = len(value) - _MOST_ITEMS
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_MOST_ITEMS]
        plain = {_safe_text(str(k)): _plain(k, v, depth=depth + 1) for k, v in pairs}
        return plain | ({"…": f"{more} more"} if more > 0 else {})
    items = [_plain(name, item, depth=depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return items + ([f"… {more} more"] if more > 0 else [])


def _described(value: object) -> str:
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str(value) if isinstance(value, (UUID, Path)) else repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ may raise anything; a log line must not
        return f"<{type(value).__name__}>"


def _safe_text(text: str) -> str:
    # Masked before it is cut: a cut must not leave half a secret that no pattern knows any more.
    # Only what could be shown is searched, so that a huge value costs no more than a long one, and
    # what stands near the end of the searched part, where a secret may be torn, is not shown.
    if len(text) <= _SEARCHED_CHARACTERS:
        safe = masked(text)
        return _cut(safe, length=len(safe))
    whole = masked(text[:_SEARCHED_CHARACTERS])[:-LONGEST_VALUE_CHARACTERS]
    return _cut(whole, length=len(text))


def _make_visible(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Spell out what a terminal would obey or a line would break at; JSON escapes it by itself."""
    return {_visible(name): _visible(value) for name, value in event.items()}


def _visible(value: Any) -> Any:
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value
    )


def _cut(text: str, *, length: int) -> str:
    """Cut a text, and say the `length` it had, if it is too long or was cut before."""
    if max(len(text), length) <= LONGEST_VALUE_CHARACTERS:
        return text
    note = f"… ({length} characters)"
    return text[: LONGEST_VALUE_CHARACTERS - len(note)] + note


def _as_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    # ASCII only: any stream can carry it, whatever its encoding, lone surrogates included.
    return json.dumps(event)
