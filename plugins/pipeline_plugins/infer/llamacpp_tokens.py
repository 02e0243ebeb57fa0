"""A GGUF model's own tokenizer, to count a call's prompt tokens without asking llama.cpp.

Byte-level BPE is built from the file's vocabulary and merges; the text is first cut by the
pre-tokenizer that the file names. Whatever it makes of a varied text is compared with
llama.cpp's own tokens when the model is loaded: a tokenizer that differs is not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from pipeline import Call
from pipeline_plugins.infer.llamacpp_frames import Frames, learn
from pipeline_plugins.infer.llamacpp_loopback import Loopback, LoopbackError
from pipeline_plugins.infer.llamacpp_request import Limits, messages_of
from pipeline_plugins.infer.llamacpp_schema import outline
from pipeline_plugins.infer.models import Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS, MERGES, TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type"))
ARRAYS = frozenset({TOKENS, MERGES, TYPES})
"""The arrays of a GGUF's header that make a tokenizer."""

_WHOLE = frozenset({2, 3, 4})
"""Types of tokens that are found as they are in a text: unknown, control, defined by the user."""

_GPT2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ANYCASE = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_ANYCASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}"
_LLAMA3 = rf"{_ANYCASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}"

CUTS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9]{3}"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "llama-bpe": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "lfm2": (_LLAMA3,),
}
"""By the name of a pre-tokenizer: expressions that cut the text, each what the one before left whole.

What the names stand for is in llama.cpp's `src/llama-vocab.cpp`.
"""

_WORDS_FIRST = frozenset({"llama-bpe", "falcon3", "lfm2"})
"""Those where a word that is a token is taken as it is, without merging."""

CHECK = (
    "It's we'll THEY'RE 'S \u017f'\u017f 12 345 6789012 3.14 x=1;\n\n\n"
    "    def f(a,b):\r\n\treturn a!=b  # ok...\n"
    "na\u00efve \u00dcbergr\u00f6\u00dfe \u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\uff0c\u4e16\u754c"
    " \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u0661\u0662 \u00bd \u2167"
    " \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u00a0\u2003\u3000x \ufffd"
    ' x\x04\x06y\x00!\x1d! {"a": [1, null]} <|im_end|> <s> </s> https://example.com/?q=a&b   \t \n end  \n'
)
"""A text with something of everything that tokenizers disagree about."""


def build(header: Header) -> Tokenizer | None:
    """The tokenizer that a GGUF describes, its `ARRAYS` read; None for a kind that is not known here.

    Takes about 0.1 s for 50,000 tokens.
    """
    values = header.values
    name = values.get("tokenizer.ggml.pre", "default")
    cuts = CUTS.get(name) if isinstance(name, str) else None
    tokens, merges = values.get(TOKENS), values.get(MERGES)
    if values.get("tokenizer.ggml.model") != "gpt2" or cuts is None or not tokens or not merges:
        return None
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    except ImportError:
        return None
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if not all(a in vocabulary and b in vocabulary and a + b in vocabulary for a, b in pairs):
        return None
    made = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=name in _WORDS_FIRST))
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if missing := sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()):
        # Bytes that are no token vanish, and what is around them is not merged.
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, missing))), "removed"))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    kinds = values.get(TYPES) or ()
    whole = [token for token, kind in zip(tokens, kinds, strict=False) if kind in _WHOLE]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in whole])
    return made


class Counter:
    """Counts the prompt tokens of calls to one model.

    Exact for plain conversations and for prompts given as text or tokens. Tools, and calls of
    them, are counted by their texts, which a template may write in its own way.

    around     tokens that every prompt gets
    per_call   tokens that a call of a tool has besides its name and arguments
    """

    def __init__(
        self, tokenizer: Tokenizer, limits: Limits, plain: Frames, tooled: Frames | None, around: int
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._plain = plain
        self._tooled = tooled
        self.around = around
        self.per_call = 0

    def __call__(self, call: Call) -> int:
        """Prompt tokens. Raises what the call itself would for messages that can't be read."""
        body = call.body
        if call.operation == "chat":
            return self.around + self.of_chat(messages_of(body["messages"], self._limits), _tools(body))
        given = body["prompt"]
        prompts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        return sum(self.around + self.of_text(one) if isinstance(one, str) else len(one) for one in prompts)

    def of_text(self, text: str) -> int:
        """Tokens of a text: 0.3 ms for a KiB of prose, 1 ms for one of digits."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def of_chat(self, messages: list[dict[str, Any]], tools: list[str]) -> int:
        """Tokens of a conversation and its tools, without those around every prompt."""
        frames = self._tooled if tools and self._tooled is not None else self._plain
        tokens = 0
        if tools and not frames.contain(PROBE):
            # The template writes tools in a way of its own: about as long.
            tokens = sum(map(self.of_text, tools))
            tokens -= self.of_text(PROBE) if frames is self._tooled else 0
        tokens += self.of_text(frames.render(messages, (PROBE, "\n".join(tools))))
        for message in messages:
            for called in message.get("tool_calls") or ():
                function = called["function"]
                arguments = json.dumps(orjson.loads(function["arguments"]), ensure_ascii=False)
                tokens += self.per_call + self.of_text(function["name"]) + self.of_text(arguments)
        return tokens

    def learn_calls(self, server: Loopback) -> None:
        """Find how many tokens a template spends on a call of a tool. Raises `LoopbackError`."""
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "What is new?"},
            {"role": "assistant", "content": "", "tool_calls": [_CALLED]},
            {"role": "tool", "content": "Nothing.", "tool_call_id": _CALLED["id"]},
        ]
        text = server.render(messages, [_TOOL])
        self.per_call = self.of_text(text) - self.of_chat(messages, [PROBE])


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}
_CALLED = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"query":"news"}'},
}


def counter(header: Header, server: Loopback, limits: Limits) -> Counter | None:
    """What counts the tokens of the model that `server` has loaded.

    None where it can't be exact: another kind of tokenizer, one that cuts a text otherwise
    than llama.cpp does, or a template that writes a message otherwise by what comes later.
    """
    tokenizer = build(header)
    if tokenizer is None:
        return None
    try:
        plain = learn(server.render)
        if plain is None:
            return None
        messages = [{"role": role, "content": CHECK} for role in ("user", "assistant", "user")]
        text = plain.render(messages)
        expected = server.tokenize(text)
        if (
            text != server.render(messages)
            or tokenizer.encode(text, add_special_tokens=False).ids != expected
        ):
            return None
        around = len(server.tokenize(text, whole=True)) - len(expected)
    except LoopbackError:
        return None
    tooled = learn(lambda messages: server.render(messages, [_TOOL]))
    made = Counter(tokenizer, limits, plain, tooled, around)
    with suppress(LoopbackError):  # a template without tools: calls with some are refused
        made.learn_calls(server)
    return made


def _tools(body: dict[str, Any]) -> list[str]:
    """The tools of a request that the model is told of, each as the text that templates write."""
    tools: Iterable[dict[str, Any]] = body.get("tools") or ()
    choice = body.get("tool_choice") or "auto"
    if choice == "none":
        return []
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        tools = [tool for tool in tools if (tool.get("function") or {}).get("name") == name]
    return [_json(tool, brief=choice == "auto") for tool in tools]


def _json(tool: dict[str, Any], *, brief: bool = False) -> str:
    function = tool.get("function") or {}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if brief:
        parameters = {"type": "object", **outline(parameters)}
    told = {
        "name": function.get("name"),
        "description": function.get("description") or "",
        "parameters": parameters,
    }
    return json.dumps({"type": "function", "function": told}, ensure_ascii=False)


PROBE = _json(_TOOL)
"""The text of the tool that frames are learned with."""
