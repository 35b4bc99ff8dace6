"""How providers count calls against their own rate limits: data, in one place, for users who set those as their rates.

Off unless chosen by ``profile=``. What a profile changes is what the buckets take and get back, never the books.
Sources are the providers' pages on rate limits, November 2026; they change.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from pacer.usage import Estimate, Usage


class Profile(msgspec.Struct, frozen=True):
    """One provider's way of counting.

    At arrival the expected input counts and, of the output, what ``arrival`` says: its ``cap`` (the one that is held,
    where none is declared), what is ``expected``, or ``nothing``; with ``larger_only`` the larger of both sides instead
    of their sum. At the end ``cached`` and ``written`` input and ``output`` count by these factors; without ``refunds``
    it stays at what counted at arrival.
    """

    arrival: Literal["cap", "expected", "nothing"] = "expected"
    larger_only: bool = False
    cached: float = 1.0
    written: float = 1.0
    output: float = 1.0
    refunds: bool = True

    def arriving(self, call: Estimate) -> Estimate:
        """The call with what the provider counts when it arrives."""
        output = {"cap": call.output_cap, "expected": call.output, "nothing": 0}[self.arrival]
        if self.larger_only:
            output = max(0, output - call.input)
        return replace(call, output=output)

    def counted(self, call: Estimate, usage: Usage) -> Usage:
        """What the provider counts when the call has ended; ``call`` as it arrived."""
        if not self.refunds:
            return Usage(call.input, call.output)
        fresh = max(0, usage.input - usage.cached - usage.written)
        given = fresh + round(self.cached * usage.cached + self.written * usage.written)
        # What only the total tells, such as reasoning that is counted apart, was produced too.
        return Usage(given, round(self.output * max(usage.output, usage.tokens - usage.input)))


_AS_IT_IS = Profile()
_BEDROCK = Profile(arrival="cap", cached=0.0)
_BEDROCK_CLAUDE = Profile(arrival="cap", cached=0.0, output=5.0)
PROFILES: dict[str, Profile] = {
    # The larger of max_tokens and an estimate of the input. What counts in the end is not documented: nothing is given
    # back. OpenAI, "Rate limits".
    "openai": Profile(arrival="cap", larger_only=True, refunds=False),
    # Prompt and max_tokens, until the minute is over. Azure OpenAI, "Manage quota".
    "azure": Profile(arrival="cap", refunds=False),
    # The input, cache reads apart; the output as it is made, max_tokens not. Anthropic, "Rate limits".
    "anthropic": Profile(arrival="nothing", cached=0.0),
    # The input only. Gemini, "Rate limits".
    "gemini": Profile(arrival="nothing", output=0.0),
    # Input and max_tokens, corrected in the end. Amazon Bedrock, "How tokens are counted".
    "bedrock": _BEDROCK,
    # Cached tokens do not count. Groq, "Rate limits".
    "groq": Profile(cached=0.0),
}
_HOSTS = {
    "api.openai.com": "openai",
    ".openai.azure.com": "azure",
    ".cognitiveservices.azure.com": "azure",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "aiplatform.googleapis.com": "gemini",
    ".amazonaws.com": "bedrock",
    "api.groq.com": "groq",
}


def profile_of(name: str, call: Estimate) -> Profile:
    """The profile ``name``, or with ``host`` that of the server called; of Bedrock's Claudes their own."""
    if name == "host":
        found = next((known for end, known in _HOSTS.items() if call.server.endswith(end)), None)
    else:
        found = name
    if found == "bedrock" and "claude" in call.model:  # each token of output counts five times
        return _BEDROCK_CLAUDE
    return PROFILES.get(found or "none", _AS_IT_IS)
