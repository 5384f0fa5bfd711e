"""Spans to an OpenTelemetry collector and errors to Sentry, each only where its variable is set.

Owns what leaves the process by these two doors: names of steps, ids, counts, types of errors and
places in the code. Promises that no message text does (promise 11): an error's words go only where
they are our own, masked; no variable of a frame, no argument, no query, no prompt, no header ever.
Both libraries are extras, imported here and nowhere else, and set up without the integrations that
would reach for what others say. Leaves to the libraries that a collector which is slow or away
costs nothing but the spans.
"""

from __future__ import annotations

import importlib
import os
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from daemon import __version__, instruments
from daemon.database import first_line
from daemon.errors import FullpassError, GiveUp, Stop, UsageError, Wait
from daemon.logs import get_logger, masked
from daemon.ops.discreet import without_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from daemon.settings import Settings

_log = get_logger()
_FLUSH_SECONDS = 2.0
_OUR_OWN_WORDS = 300


@contextmanager
def telemetry(settings: Settings) -> Iterator[None]:
    """Send spans and errors for as long as this is open, where the settings say so.

    An extra that is not installed is said once and done without: platforms set these variables for
    every container, and work must not depend on who watches it.
    """
    with ExitStack() as stack:
        spans = errors = None
        if settings.otel_exporter_otlp_endpoint and _installed("otel", "opentelemetry.sdk"):
            spans = stack.enter_context(_exporting(settings.otel_exporter_otlp_endpoint))
        if settings.sentry_dsn and _installed("sentry", "sentry_sdk"):
            errors = stack.enter_context(_reporting(settings.sentry_dsn.get_secret_value()))
        if spans or errors:
            instruments.install(_Witness(spans, errors))
            stack.callback(instruments.install, None)
        yield


def _installed(extra: str, module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        _log.warning("telemetry.off", remedy=f"pip install 'fullpass[{extra}]'")
        return False
    return True


@contextmanager
def _exporting(endpoint: str) -> Iterator[Any]:
    """Give a tracer of our own provider.

    It is not made the process's: libraries that trace by themselves (the vendor's SDK can put whole
    conversations into its spans) find none to write to.
    """
    trace = importlib.import_module("opentelemetry.sdk.trace")
    batching = importlib.import_module("opentelemetry.sdk.trace.export")
    resources = importlib.import_module("opentelemetry.sdk.resources")
    otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    about = {"service.version": __version__}
    if not any(os.environ.get(name) for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES")):
        about["service.name"] = "fullpass"
    provider = trace.TracerProvider(
        resource=resources.Resource.create(about), shutdown_on_exit=False
    )
    exporter = otlp.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(batching.BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("fullpass", __version__)
    finally:
        # It sends what is left, and heeds no time limit while a collector only listens.
        ending = threading.Thread(target=provider.shutdown, name="telemetry", daemon=True)
        ending.start()
        ending.join(_FLUSH_SECONDS)


@contextmanager
def _reporting(dsn: str) -> Iterator[ModuleType]:
    sdk = importlib.import_module("sentry_sdk")
    try:
        sdk.init(
            dsn=dsn,
            release=f"fullpass@{__version__}",
            default_integrations=False,
            auto_enabling_integrations=False,
            send_default_pii=False,
            include_local_variables=False,
            include_source_context=False,
            max_breadcrumbs=0,
            max_request_body_size="never",
            auto_session_tracking=False,
            send_client_reports=False,
            before_send=_scrubbed,
        )
    except sdk.utils.BadDsn:
        raise UsageError(
            "SENTRY_DSN: must be a Sentry DSN, https://key@host/project"
        ) from None  # whose text would show the key
    try:
        yield sdk
    finally:
        sdk.get_client().close(timeout=_FLUSH_SECONDS)


class _Witness:
    """Takes spans to one and errors to both, as far as they are there."""

    def __init__(self, tracer: Any, sentry: Any) -> None:
        self._tracer = tracer
        self._sentry = sentry

    @contextmanager
    def span(self, name: str, attributes: dict[str, str | int]) -> Iterator[None]:
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(
            name,
            attributes={f"fullpass.{key}": value for key, value in attributes.items()},
            # What it would record holds the message and the traceback of whatever was raised.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:  # noted on the span, and raised again
                span.set_attribute("error.type", type(error).__name__)
                # To wait, to be drained or cancelled is no failure.
                if isinstance(error, Exception) and not isinstance(error, (Wait, Stop)):
                    api = importlib.import_module("opentelemetry.trace")
                    span.set_status(api.Status(api.StatusCode.ERROR, _own_words(error)))
                raise

    def error(self, error: Exception, attributes: dict[str, str | int]) -> None:
        if self._sentry is None:
            return
        with self._sentry.new_scope() as scope:
            for key, value in attributes.items():
                scope.set_tag(key, value)
            # An export that cannot be read is its owner's business, not a defect of ours.
            scope.set_level("warning" if isinstance(error, GiveUp) else "error")
            scope.capture_exception(error)


def _own_words(error: BaseException) -> str | None:
    """Return an error's message where it is ours: what others say may quote what they were given.

    A parser quotes the text it stumbled over, the database the row that it refused.
    """
    if not isinstance(error, FullpassError) or error.__cause__ is not None:
        return None
    # A path, as its owner wrote it, may hold their address.
    return without_addresses(masked(first_line(error)))[:_OUR_OWN_WORDS]


def _scrubbed(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
    """Build anew what may leave, from what Sentry put together: types, places in code, our ids."""
    raised = hint.get("exc_info")
    if raised is None:
        return None
    chain = _chain(raised[1])
    values = event.get("exception", {}).get("values", [])
    scrubbed = []
    for value in values:
        own = next((e for e in chain if type(e).__name__ == value.get("type")), None)
        frames = value.get("stacktrace", {}).get("frames", [])
        scrubbed.append(
            {
                "type": value.get("type"),
                "module": value.get("module"),
                "value": None if own is None else _own_words(own),
                "stacktrace": {
                    "frames": [
                        {k: frame.get(k) for k in ("filename", "function", "module", "lineno",
                                                   "in_app")}
                        for frame in frames
                    ]
                },
            }
        )  # fmt: skip
    kept = ("event_id", "timestamp", "platform", "level", "tags", "release", "environment", "sdk")
    return {k: event[k] for k in kept if k in event} | {"exception": {"values": scrubbed}}


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
