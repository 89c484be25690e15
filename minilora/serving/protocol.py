"""What may be asked over HTTP, field by field: OpenAI's chat completions and completions.

platform.openai.com/docs/api-reference is the specification; ``top_k`` is vLLM's addition. A type
here is three things at once: the check of what comes in, the description in ``/openapi.json``, and
the list of what this server can do.

**Nothing is ignored silently.** A field that would change the answer, and that this server cannot
do, is refused in words (``UNSUPPORTED``); its neutral value, which many clients send, is accepted.
A field that nobody knows is refused too: a misspelt ``max_token`` would otherwise cost an
afternoon. Numbers are numbers and texts are texts (``strict``): "1" is not 1.

Left out: images, sound, tools, forced JSON, penalties, ``logit_bias``, ``echo``, ``best_of``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .refusals import Refused

# What this server cannot do, the values that mean "do not", and what to do instead.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "this server answers in text and calls no tools: leave tools out"),
    "tool_choice": (("none", "auto"), "this server calls no tools: leave tool_choice out"),
    "parallel_tool_calls": ((True, False), "this server calls no tools"),
    "functions": (([],), "this server calls no functions: leave functions out"),
    "function_call": (("none", "auto"), "this server calls no functions: leave it out"),
    "response_format": (
        ({"type": "text"},),
        "this server cannot force a form on an answer: ask for the form in words, check what "
        "comes, and leave response_format out",
    ),
    "frequency_penalty": ((0,), "this server has no penalties: leave it out, or 0"),
    "presence_penalty": ((0,), "this server has no penalties: leave it out, or 0"),
    "logit_bias": (({},), "this server does not change logits: leave logit_bias out"),
    "best_of": ((1,), "this server ranks no answers: ask with n and choose yourself"),
    "echo": ((False,), "this server does not repeat the prompt: leave echo out"),
    "suffix": (("",), "this base was not trained to fill gaps: leave suffix out"),
    "modalities": ((["text"],), "this server answers in text only"),
    "audio": ((), "this server answers in text only"),
    "prediction": ((), "this server takes no predicted output"),
    "web_search_options": ((), "this server reads no web"),
    "reasoning_effort": (("none",), "these models answer without reasoning"),
    "store": ((False,), "this server keeps no answers"),
    "service_tier": (("auto", "default"), "this server has one tier"),
    # what clients send back when they repeat an assistant's message
    "refusal": ((), "this server takes no refusals"),
    "annotations": (([],), "this server takes no annotations"),
    "tool_calls": (([],), "this server calls no tools"),
}

SEEDS = 9_223_372_036_854_776_000  # OpenAI says so; 2**63, as JSON writes it
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Asked(BaseModel):
    """Fields are those listed; a value has its field's type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_unsupported(cls, data: Any) -> Any:
        """Take out neutral values of what is unsupported. Raises ``Refused`` for others."""
        if not isinstance(data, dict):
            return data
        kept = dict(data)
        for name in UNSUPPORTED.keys() & data.keys():
            neutral, reason = UNSUPPORTED[name]
            value = kept.pop(name)
            if value is not None and not any(same(value, each) for each in neutral):
                message = f"{name}: {reason}"
                raise Refused(400, message, param=name, code="unsupported_parameter")
        return kept


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are one; true is not 1.

    >>> same(0.0, 0), same(True, 1)
    (True, False)
    """
    return a == b and isinstance(a, bool) == isinstance(b, bool)


class StreamOptions(Asked):
    """``include_usage``: one more chunk at the end, with the counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="without effect")


class Sampled(Asked):
    """What both kinds of requests have."""

    model: Text = Field(description="the base's name, an adapter's, or auto: the router chooses")
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest; default 1")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=2**31)
    seed: int | None = Field(None, ge=-SEEDS, le=SEEDS, description="choice i draws with seed+i")
    n: int | None = Field(None, ge=1, le=16)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="without effect on no stream")
    user: str | None = Field(
        None, max_length=256, description="who asks, for experiments; not the tenant"
    )
    metadata: dict[str, str] | None = Field(None, description="without effect")

    def limit(self, usual: int) -> int:
        """The most new tokens."""
        return self.max_tokens or usual

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many tokens to list beside each; None: no logprobs."""
        return None


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Asked):
    """A message. ``developer`` is ``system``; ``name`` is without effect."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    param: ClassVar[str] = "messages"
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="more than 0: logprobs too")

    def limit(self, usual: int) -> int:
        """The most new tokens; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens or usual

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many tokens to list beside each; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None

    def prompts(self, tokenizer: Any) -> list[list[int]]:
        """One prompt's ids; a mark such as <|im_end|> that somebody types stays text."""
        messages = [message.plain() for message in self.messages]
        return [tokenizer.apply_chat_template(messages, add_generation_prompt=True)]

    def least_tokens(self, longest: int) -> list[int]:
        """The fewest tokens of the prompt, if one stands for at most ``longest`` bytes.

        A message has its marks besides its text.
        """
        size = sum(4 + len(message.plain()["content"].encode()) for message in self.messages)
        return [-(-size // longest)]

    @property
    def question(self) -> str:
        """What the router reads: the last message."""
        return self.messages[-1].plain()["content"]


class CompletionRequest(Sampled):
    """``POST /v1/completions``: one prompt or several, as texts or as token ids."""

    param: ClassVar[str] = "prompt"
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=16)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=16)]
    )
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many tokens to list beside each; None: no logprobs."""
        return self.logprobs

    @property
    def several(self) -> list[Any]:
        """The prompts; numbers side by side are one, in ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else list(self.prompt)

    def prompts(self, tokenizer: Any) -> list[list[int]]:
        """Each prompt's ids; a mark in a text stays text."""
        return [tokenizer.encode_text(p) if isinstance(p, str) else list(p) for p in self.several]

    def least_tokens(self, longest: int) -> list[int]:
        """The fewest tokens of each prompt, if one stands for at most ``longest`` bytes."""
        return [
            -(-len(prompt.encode()) // longest) if isinstance(prompt, str) else len(prompt)
            for prompt in self.several
        ]

    @property
    def question(self) -> str:
        """What the router reads."""
        first = self.prompt[0] if isinstance(self.prompt, list) else self.prompt
        return first if isinstance(first, str) else ""


class LoadRequest(Asked):
    """``POST /v1/load_lora_adapter``, vLLM's."""

    lora_name: Text = Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    lora_path: Text = Field(description="a folder under the server's root, or a name of its hub")
    load_inplace: bool = Field(False, description="take the name away from other weights")


class UnloadRequest(Asked):
    """``POST /v1/unload_lora_adapter``, vLLM's."""

    lora_name: Text
