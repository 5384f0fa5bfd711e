"""What an OpenTelemetry collector and Sentry would be sent, taken in on loopback."""

from __future__ import annotations

import gzip
import json
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.loopback import LoopbackServer, Reply, Request


class Collector(LoopbackServer):
    """Accepts everything, and keeps it as it came off the wire, unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[tuple[str, bytes]] = []

    @property
    def dsn(self) -> str:
        """What SENTRY_DSN is set to."""
        return self.url.replace("http://", "http://public-key@") + "/1"

    async def handle(self, request: Request) -> Reply:
        body = request.body
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append((request.path, body))
        self.changed()
        return Reply(200, b"{}")

    def everything(self) -> bytes:
        """Return all that left, for a search."""
        return b"\n".join(body for _, body in self.bodies)

    def spans(self) -> list[dict[str, Any]]:
        """Return every span's name, attributes and status."""
        found = []
        for path, body in self.bodies:
            if path != "/v1/traces":
                continue
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                found += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "id": span.span_id.hex(),
                        "status": span.status.code,
                        **{
                            a.key: a.value.string_value or a.value.int_value
                            for a in span.attributes
                        },
                    }
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return found

    def events(self) -> list[dict[str, Any]]:
        """Return every Sentry event."""
        return [
            json.loads(line)
            for path, body in self.bodies
            if path.endswith("/envelope/")
            for line in body.splitlines()
            if b'"exception"' in line
        ]
