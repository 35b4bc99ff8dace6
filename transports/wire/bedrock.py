"""Amazon Bedrock: Converse, ``POST /model/{id}/converse[-stream]``, and ``/model/{id}/invoke*`` of any maker's model.

Streams are AWS frames. Converse ends with a ``metadata`` frame that carries the usage; the last frame of an invoked
model carries ``amazon-bedrock-invocationMetrics``. Cached input is beside ``inputTokens``, as the total shows.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f

INVOKE_ENDS = ("/invoke", "/invoke-with-response-stream")
CONVERSE_ENDS = ("/converse", "/converse-stream")


class _Conversation(msgspec.Struct):
    inferenceConfig: Any = None


class _Invocation(msgspec.Struct):
    max_tokens: Any = None
    max_gen_len: Any = None
    inferenceConfig: Any = None
    textGenerationConfig: Any = None


class _Wrapped(msgspec.Struct):
    bytes: str = ""


class _Event(msgspec.Struct):
    usage: Any = None
    delta: Any = None


class _Metrics(msgspec.Struct, rename={"metrics": "amazon-bedrock-invocationMetrics"}):
    metrics: Any = None


_conversation = msgspec.json.Decoder(_Conversation)
_invocation = msgspec.json.Decoder(_Invocation)
_wrapped = msgspec.json.Decoder(_Wrapped)
_event = msgspec.json.Decoder(_Event)
_metrics = msgspec.json.Decoder(_Metrics)


def unwrapped(data: bytes) -> bytes:
    """The event of an invoked model inside the payload of a frame; nothing if there is none."""
    said = f.decoded(_wrapped, data)
    try:
        return base64.b64decode(said.bytes, validate=True) if said is not None else b""
    except (binascii.Error, ValueError):
        return b""


def _read_converse(body: bytes) -> f.Call:
    said = f.decoded(_conversation, body)
    return f.Call() if said is None else f.call(None, _max_tokens(said.inferenceConfig))


def _max_tokens(config: object) -> tuple[f.Path, object]:
    return ("inferenceConfig", "maxTokens"), f.inside(config, "maxTokens")


def _read_invoke(body: bytes) -> f.Call:
    said = f.decoded(_invocation, body)
    if said is None:
        return f.Call()
    call = f.call(
        None,
        (("max_tokens",), said.max_tokens),
        (("max_gen_len",), said.max_gen_len),  # Llama
        _max_tokens(said.inferenceConfig),  # Nova
        (("textGenerationConfig", "maxTokenCount"), f.inside(said.textGenerationConfig, "maxTokenCount")),  # Titan
    )
    if call.output_cap is None:
        call.cap_at = None  # each maker has its own word for it
    return call


def _read_converse_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_event, data)
    if said is None:
        return False
    tally.seen_output += said.delta is not None
    if said.usage is not None:
        f.believed(tally, said.usage)
    return False


def _read_invoke_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_metrics, unwrapped(data))
    if said is None:
        return False
    if said.metrics is None:
        tally.seen_output += 1
    else:
        metrics = said.metrics if isinstance(said.metrics, dict) else {}
        f.believed(tally, {name.replace("Count", "s"): value for name, value in metrics.items()})
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    given, output = f.tokens(said.get("inputTokens")), f.tokens(said.get("outputTokens"))
    rest = f.parts(said, "cacheReadInputTokens", "cacheWriteInputTokens", "totalTokens")
    if given is None or output is None or rest is None or given + output + sum(rest) == 0:
        return None
    read, written, total = rest
    if total != given + output:  # else the cached part is inside: some models count it so
        given += read + written
    return Usage(given, output, min(read, given), tokens=total, written=written)


CONVERSE = f.Wire(
    "aws.bedrock",
    CONVERSE_ENDS,
    _read_converse,
    f.usage_of,
    _read_converse_event,
    _usage,
    f.model_before(*CONVERSE_ENDS),
    mark=b'"usage"',
)
INVOKE = f.Wire(
    "aws.bedrock",
    INVOKE_ENDS,
    _read_invoke,
    f.usage_of,
    _read_invoke_event,
    _usage,
    f.model_before(*INVOKE_ENDS),
    lambda path, body: "/model/" in path,
)
