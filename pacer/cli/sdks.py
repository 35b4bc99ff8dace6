"""The SDKs by which people call models, as data: what sends their calls, and where a BudgetTransport goes in.

Which HTTP library an SDK stands on changes with its versions, so that is read from what the installed one requires. The
table has what cannot be read there. The only importer of packaging.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import metadata
from typing import Literal

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

Cover = Literal["yes", "partly", "no", "unknown"]

LIBRARIES = ("httpx2", "httpx", "grpcio", "botocore", "aiohttp", "requests")
"""What sends calls; an SDK that requires several has its calls sent by the first of them."""
SEEN = ("httpx2", "httpx")
"""Those that a transport goes into."""


class Gap(msgspec.Struct, frozen=True):
    """Calls of an SDK that ``library`` sends, if what it ``needs`` is installed, and what to do about that.

    ``counts`` is false for those that nobody makes by chance.
    """

    calls: str
    library: str
    cure: str
    needs: tuple[str, ...] = ()
    counts: bool = True


class Sdk(msgspec.Struct, frozen=True):
    """One distribution. ``library`` where its requirements do not tell, ``through`` the SDKs that make its calls.

    ``transport`` is where a BudgetTransport goes, ``cure`` what to do while its library is one that nobody sees.
    """

    name: str
    transport: str = ""
    library: str = ""
    through: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    cure: str = ""


class Found(msgspec.Struct, frozen=True):
    """One that is installed. ``covered``: by ``pacer run`` and ``install()``, and by a transport that is put into it;
    unknown, where what it requires does not tell, or none of those is there ``through`` which it could call.
    """

    name: str
    version: str
    library: str
    through: tuple[str, ...]
    covered: Cover
    transport: str
    gaps: tuple[Gap, ...]
    cure: str


def _realtime(calls: str) -> Gap:
    return Gap(calls, "websockets", "they cannot be paced", ("websockets",), counts=False)


_NEWER = "install a newer release, which stands on httpx"
_USUAL = ("openai", "anthropic", "google-genai", "mistralai", "cohere", "groq", "ollama", "huggingface-hub", "litellm")
_BEDROCK = "call Bedrock by anthropic's AnthropicBedrock or by litellm, which send by httpx"

SDKS = (
    Sdk("openai", "OpenAI(http_client=)", gaps=(_realtime("realtime sessions"),), cure=_NEWER),
    Sdk("anthropic", "Anthropic(http_client=)", cure=_NEWER),
    Sdk(
        "google-genai",
        "HttpOptions(httpx_client=, httpx_async_client=)",
        gaps=(
            Gap(
                "async calls",
                "aiohttp",
                "HttpOptions(httpx_async_client=httpx2.AsyncClient()), of httpx before release 3, or uninstall aiohttp",
                ("aiohttp",),
            ),
            _realtime("live sessions"),
        ),
        cure=_NEWER,
    ),
    Sdk("mistralai", "Mistral(client=, async_client=)", gaps=(_realtime("realtime sessions"),), cure=_NEWER),
    Sdk("cohere", "ClientV2(httpx_client=)", cure=_NEWER),
    Sdk("groq", "Groq(http_client=)", cure=_NEWER),
    Sdk("ollama", "Client(transport=)", cure=_NEWER),
    Sdk("huggingface-hub", "set_client_factory(), set_async_client_factory()", cure=_NEWER),
    Sdk("together", "Together(http_client=)", cure=_NEWER),
    Sdk("litellm", "litellm.client_session, .aclient_session, or client= of each call", cure=_NEWER),
    Sdk("boto3", library="botocore", cure=_BEDROCK),
    Sdk("xai-sdk", library="grpcio", cure="call xAI by openai with base_url=https://api.x.ai/v1"),
    Sdk("google-generativeai", library="grpcio", cure="google-genai takes its place"),
    Sdk(
        "google-cloud-aiplatform",
        through=("google-genai",),
        gaps=(Gap("calls by vertexai and aiplatform", "grpcio", "call Vertex by google-genai", ("grpcio",)),),
    ),
    Sdk("langchain-openai", "ChatOpenAI(http_client=, http_async_client=)", through=("openai",)),
    Sdk("langchain-anthropic", "nowhere", through=("anthropic",)),
    Sdk("langchain-google-genai", through=("google-genai",)),
    Sdk("langchain-mistralai", "ChatMistralAI(client=, async_client=)"),
    Sdk("langchain-groq", "ChatGroq(http_client=, http_async_client=)", through=("groq",)),
    Sdk("langchain-cohere", through=("cohere",)),
    Sdk("langchain-ollama", "ChatOllama(client_kwargs={'transport': })", through=("ollama",)),
    Sdk("langchain-aws", through=("boto3",)),
    Sdk(
        "langgraph", "the chat model of its nodes", through=("langchain-openai", "langchain-anthropic", "langchain-aws")
    ),
    Sdk("pydantic-ai-slim", "the http_client= of its provider", through=(*_USUAL[:-1], "boto3")),
    Sdk("openai-agents", "the AsyncOpenAI of its model", through=("openai", "litellm")),
    Sdk("crewai", through=(*_USUAL, "boto3")),
    Sdk("llama-index-core", through=(*_USUAL, "boto3")),
    Sdk("llama-index-llms-openai", "OpenAI(http_client=, async_http_client=)", through=("openai",)),
    Sdk("agno", "OpenAIChat(http_client=), of httpx", through=(*_USUAL, "boto3")),
    Sdk("haystack-ai", through=_USUAL),
    Sdk(
        "dspy",
        "what litellm has, with engine='litellm'",
        through=("litellm",),
        gaps=(Gap("calls of its own engine (the default)", "lm15", "dspy.LM(engine='litellm')", ("dspy>=3.4",)),),
    ),
    Sdk(
        "smolagents",
        "OpenAIModel(client_kwargs={'http_client': })",
        through=("openai", "huggingface-hub", "litellm", "boto3"),
    ),
    Sdk(
        "strands-agents",
        "OpenAIModel(client_args={'http_client': })",
        through=(*_USUAL, "boto3"),
        gaps=(Gap("calls of its default model (Bedrock)", "botocore", "OpenAIModel, AnthropicModel, LiteLLMModel"),),
    ),
    Sdk("autogen-ext", through=_USUAL),
)


def installed(names: Collection[str] | None = None) -> tuple[Found, ...]:
    """Those of the table (of the ``names``) that are there."""
    asked = [sdk for sdk in SDKS if names is None or sdk.name in names]
    return tuple(_found(sdk, version) for sdk in asked if (version := version_of(sdk.name)) is not None)


def _found(sdk: Sdk, version: str) -> Found:
    through = tuple(name for name in sdk.through if version_of(name) is not None)
    library = sdk.library or ("" if sdk.through else _library(sdk.name))
    gaps = tuple(gap for gap in sdk.gaps if all(map(is_met, gap.needs)))
    cure = "" if library in SEEN else sdk.cure
    return Found(sdk.name, version, library, through, _covered(library, through, gaps), sdk.transport, gaps, cure)


def _covered(library: str, through: tuple[str, ...], gaps: tuple[Gap, ...]) -> Cover:
    covers: set[Cover] = {one.covered for one in installed(through)}
    if library:
        covers.add("yes" if library in SEEN else "no")
    if any(gap.counts for gap in gaps):
        covers.add("no")
    return "partly" if len(covers) > 1 else next(iter(covers), "unknown")


def _library(name: str) -> str:
    there = {canonicalize_name(requirement.name) for requirement in required(name)}
    return next((library for library in LIBRARIES if library in there), "")


# -------------------------------------------------------------------- what is installed


def version_of(name: str) -> str | None:
    """The version that is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required(name: str, extras: tuple[str, ...] = ("",)) -> Iterator[Requirement]:
    """What a distribution requires here, with some of its extras. Raises: PackageNotFoundError."""
    for text in metadata.requires(name) or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # there are old ones
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def is_met(requirement: str | Requirement) -> bool:
    """Whether something is installed in a version that fits."""
    asked = Requirement(requirement) if isinstance(requirement, str) else requirement
    version = version_of(asked.name)
    try:
        return version is not None and asked.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False
