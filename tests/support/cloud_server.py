"""The loopback Anthropic server as Bedrock and Vertex show it: their paths, logins and refusals.

A call that its cloud would take is handed on to the Messages API under the vendor's own model id,
so that everything else (truth, faults, record) is the same. Signatures are recomputed from the
secret key with the cloud's own algorithm; a wrong one is refused as AWS refuses it.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.support.anthropic_server import AnthropicServer
from tests.support.loopback import Reply, Request, json_reply

if TYPE_CHECKING:
    from pathlib import Path

ACCESS_KEY, SECRET_KEY, REGION = "AKIALOOPBACK", "a-secret-that-signs", "eu-central-1"
INVOKE_VERSION = "bedrock-2023-05-31"
TOKEN = "a-token-of-google"
_INVOKE = re.compile(r"^/model/([^/]+)/invoke$")
_MANTLE = "/anthropic/v1/messages"
_VERTEX = re.compile(
    r"^/projects/([^/]+)/locations/([^/]+)/publishers/anthropic/models/([^/:]+):rawPredict$"
)
_OF_INVOKE = re.compile(r"^(?:us|eu|global)\.anthropic\.(claude-[a-z0-9-]+)-v1:0$")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call as it reached the cloud."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class CloudServer(AnthropicServer):
    """All three clouds at one address; `arrivals` has what came, accepted or not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrivals: list[Arrival] = []

    async def handle(self, request: Request) -> Reply:
        """Answer as the cloud whose path was called."""
        if request.path == "/token":
            return json_reply({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        if invoked := _INVOKE.match(request.path):
            body = self._arrived(request)
            if not signed(request, "bedrock"):
                return _refused(403, "The request signature we calculated does not match.")
            if body.get("anthropic_version") != INVOKE_VERSION:
                return _refused(400, "anthropic_version: this version is not supported")
            known = _OF_INVOKE.match(invoked[1])
            if known is None:
                return _refused(400, "The provided model identifier is invalid.")
            return await self._handed_on(request, body, known[1])
        if request.path == _MANTLE:
            body = self._arrived(request)
            if not signed(request, "bedrock-mantle"):
                return _refused(403, "The request signature we calculated does not match.")
            return await self._handed_on(request, body, body["model"].removeprefix("anthropic."))
        if called := _VERTEX.match(request.path):
            body = self._arrived(request)
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                error = {"code": 401, "message": "Request had invalid credentials.",
                         "status": "UNAUTHENTICATED"}  # fmt: skip
                return json_reply({"error": error}, status=401)
            return await self._handed_on(request, body, called[3].replace("@", "-"))
        return await super().handle(request)

    def _arrived(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = request.json()
        self.arrivals.append(Arrival(request.path, dict(request.headers), body))
        return body

    async def _handed_on(self, request: Request, body: dict[str, Any], model: str) -> Reply:
        plain = {k: v for k, v in body.items() if k != "anthropic_version"} | {"model": model}
        headers = {k: v for k, v in request.headers.items() if k != "authorization"}
        headers |= {"x-api-key": "test-key", "anthropic-version": "2023-06-01"}
        return await super().handle(
            replace(request, path="/v1/messages", headers=headers, body=json.dumps(plain).encode())
        )


def signed(request: Request, service: str) -> bool:
    """Whether the request bears the SigV4 signature of our key for this service and region."""
    given = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/([^/]+)/aws4_request, "
        r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        request.headers.get("authorization", ""),
    )
    if given is None or given.groups()[:3] != (ACCESS_KEY, REGION, service):
        return False
    auth_of = importlib.import_module("botocore.auth").SigV4Auth
    aws_request = importlib.import_module("botocore.awsrequest").AWSRequest
    credentials = importlib.import_module("botocore.credentials").Credentials
    again = aws_request(
        method=request.method,
        url=f"http://{request.headers['host']}{request.path}",
        headers={name: request.headers[name] for name in given[4].split(";")},
        data=request.body,
    )
    again.context["timestamp"] = request.headers["x-amz-date"]
    signer = auth_of(credentials(ACCESS_KEY, SECRET_KEY), service, REGION)
    to_sign = signer.string_to_sign(again, signer.canonical_request(again))
    return bool(signer.signature(to_sign, again) == given[5])


def service_account(folder: Path, server_url: str) -> Path:
    """Write a Google service account's key file whose tokens come from this server."""
    rsa = importlib.import_module("cryptography.hazmat.primitives.asymmetric.rsa")
    serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "service-account.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "loopback",
                "private_key_id": "1",
                "private_key": pem.decode(),
                "client_email": "fullpass@loopback.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": f"{server_url}/token",
            }
        )
    )
    return path


def _refused(status: int, message: str) -> Reply:
    return json_reply({"message": message}, status=status)
