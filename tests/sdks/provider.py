"""A provider on loopback that answers each model call in the dialect of its path and keeps its own bill."""

from __future__ import annotations

import json
import threading
from urllib.parse import SplitResult, urlsplit

from tests.sdks import dialects
from tests.sdks.dialects import Dialect, Json, Tokens
from tests.servers import Connection, Server, chunked, whole

MISTRAL, MISTRAL_EU = "http://api.mistral.ai", "http://api.eu.mistral.ai"
"""Mistral's own hosts, two of the three its SDK knows, to be reached with the provider as proxy: it is by them that
its dialect is told apart."""

# The first end of a path that fits.
ROUTES = {
    "/openai/v1/chat/completions": dialects.GROQ,
    "/v1/chat/completions": dialects.CHAT,
    "/v1/responses": dialects.RESPONSES,
    "/v1/embeddings": dialects.EMBEDDINGS,
    "/v1/messages": dialects.MESSAGES,
    ":generateContent": dialects.GEMINI,
    ":streamGenerateContent": dialects.GEMINI,
    "/v2/chat": dialects.COHERE,
    "/api/chat": dialects.OLLAMA,
}


class Provider(Server):
    """Counts ``calls``, adds up the ``bill`` in tokens, and keeps as ``strays`` whatever is no call of a model."""

    def __init__(self) -> None:
        super().__init__(self._serve)
        self.bill = self.calls = 0
        self.strays: list[str] = []
        self._books = threading.Lock()

    def _serve(self, connection: Connection) -> None:
        while (request := connection.read()) is not None:
            line = request[0].partition("\r\n")[0]
            method, target, _ = line.split()
            dialect = _dialect(urlsplit(target)) if method == "POST" else None
            if dialect is None:
                self.strays.append(line)
                connection.write(whole(b"{}", status="404 Not Found"))
            else:
                connection.write(self._answer(dialect, target, request[1]))

    def _answer(self, dialect: Dialect, target: str, body: bytes) -> bytes:
        said = json.loads(body)
        if dialect is dialects.MISTRAL and "stream_options" in said:  # it refuses what it does not know
            return whole(b'{"detail": "extra_forbidden"}', status="422 Unprocessable Entity")
        tokens = self._billed(dialect, body)
        if dialect.streamed is not None and _is_streamed(said, target):
            return chunked(dialect.streamed(said, tokens), f"content-type: {dialect.kind}")
        return whole(json.dumps(dialect.plain(said, tokens)).encode(), "content-type: application/json")

    def _billed(self, dialect: Dialect, body: bytes) -> Tokens:
        """Other tokens for each call, so that no two bills are equal by chance."""
        with self._books:
            self.calls += 1
            given, made = len(body) // 3, 0 if dialect is dialects.EMBEDDINGS else 6 + 5 * self.calls
            self.bill += given + made
        return Tokens(given, given // 4, made, made // 3)


def _dialect(target: SplitResult) -> Dialect | None:
    if (target.hostname or "").endswith(".mistral.ai"):
        return dialects.MISTRAL
    return next((dialect for end, dialect in ROUTES.items() if target.path.endswith(end)), None)


def _is_streamed(said: Json, target: str) -> bool:
    return said.get("stream") is True or ":stream" in target
