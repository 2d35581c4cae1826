"""Reading what a chat server sent: an answer, or a fault with a name. Pure functions: no network, no clock."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uni_dpo.models.backends.base import Sample, logsumexp

MALFORMED = "malformed reply"
_CUT = ("length", "max_tokens", "model_length")
_BROKEN = ("error", "abort", "cancelled", "network_error", "insufficient_system_resource")
_FILTERED = ("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "sensitive")
"""What servers write as `finish_reason`, in any case, where an answer is not whole."""
_ROUNDING = 1e-3
"""Log-probabilities this far above 0 come of rounding; those above it are no probabilities."""
_REFUSED = re.compile(
    r"(?i)\b(?:un|not |n't )support|\bnot (?:permitted|allowed)|unrecogni[sz]ed|\bunknown\b|\bextra|forbidden"
    r"|\bmust be (?:at most )?1\b|\bat most 1\b|\bonly\b"
)
_ONLY_ONE = re.compile(r"(?:^|[\s'\"`(\[,])n(?:['\"`]|\s+(?:value|must|should|is|>|=|cannot)|\s*[>=])")
"""How servers say that they refuse `n`: n > 1 is not supported; 'n' must be at most 1; currently only n = 1."""


@dataclass
class UnusableReplyError(Exception):
    """A reply that did not arrive, or cannot be used; another attempt may bring a better one.

    Attributes:
        kind: names why, for the counts.
        detail: what came instead.
        redraw: whether another attempt needs another seed.
        wait: seconds until it, where the server says how many.
    """

    kind: str
    detail: str = ""
    redraw: bool = False
    wait: float | None = None


class LackingError(Exception):
    """A server that does not give what was asked for, however often it is asked; the text says what it does."""


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        UnusableReplyError: it holds none, one that is nested too deeply, or an error instead of an answer.
    """
    value = _parsed(body)
    if not isinstance(value, dict):
        raise UnusableReplyError(MALFORMED, detail=_beginning(body))
    if value.get("error") and not value.get("choices"):
        raise UnusableReplyError("error in place of an answer", detail=read_error(body)[0])
    return value


def read_samples(completion: Mapping[str, Any], *, join_parts: bool = False) -> list[Sample]:
    """Return the usable answers of a completion, in its order.

    Lone surrogates become U+FFFD, and an answer that the token limit cut is not `finished`. With `join_parts` the text
    parts of an answer that is a list of parts are taken together, and the others left out.

    Raises:
        LackingError: an answer is a list of parts, and they are not to be joined.
        UnusableReplyError: of all answers, a refusal, no text, nothing but reasoning, or no completion at all.
    """
    samples, faults = [], []
    for choice in _choices(completion):
        try:
            samples.append(_sample(choice, join_parts))
        except UnusableReplyError as fault:
            faults.append(fault)
    if not samples:
        raise faults[0]
    return samples


def _sample(choice: Mapping[str, Any], join_parts: bool) -> Sample:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise UnusableReplyError(MALFORMED, detail=_beginning(json.dumps(choice).encode()))
    ended = str(choice.get("finish_reason") or "").casefold()
    if message.get("refusal") or ended in _FILTERED:
        raise UnusableReplyError("refusal", redraw=True)
    if ended in _BROKEN:
        raise UnusableReplyError("answer broken off by the server", detail=f"finish_reason {ended}")
    text = _text(message.get("content"), join_parts)
    if not text and message.get("tool_calls"):
        raise UnusableReplyError("tool call in place of an answer", redraw=True)
    if not text and (message.get("reasoning_content") or message.get("reasoning")):
        cut = "the limit of tokens cut it" if ended in _CUT else ""
        raise UnusableReplyError("reasoning without an answer", redraw=True, detail=cut)
    if text is None:
        raise UnusableReplyError("empty answer", redraw=True)
    return Sample(text, 0, finished=ended not in _CUT)


def read_filled_samples(completion: Mapping[str, Any], *, join_parts: bool = False) -> list[Sample]:
    """As `read_samples`; where all answers are empty, that is a fault too."""
    samples = read_samples(completion, join_parts=join_parts)
    if not any(sample.text for sample in samples):
        raise UnusableReplyError("empty answer", redraw=True)
    return samples


def read_first_token(completion: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the alternatives reported for the first token, with their log-probabilities (natural).

    Raises:
        LackingError: the completion carries none.
        UnusableReplyError: it carries something else, or numbers that are no log-probabilities.
    """
    reported = _choices(completion)[0].get("logprobs")
    if not reported:
        raise LackingError("reports no log-probabilities of tokens")
    content = reported.get("content") if isinstance(reported, Mapping) else MALFORMED
    if content is None or content == []:
        raise LackingError("reports no log-probabilities of tokens")
    first = content[0] if isinstance(content, list) else None
    tops = first.get("top_logprobs") if isinstance(first, Mapping) else None
    if not isinstance(tops, list) or not all(
        isinstance(top, Mapping) and isinstance(top.get("token"), str) for top in tops
    ):
        raise UnusableReplyError(MALFORMED)
    if not tops:
        raise LackingError("reports no alternatives to a token (its top_logprobs are empty)")
    return [(top["token"], _logprob(top.get("logprob"))) for top in tops]


def read_prompt_logprobs(completion: Mapping[str, Any]) -> list[float]:
    """Give the log-probability (natural) of every token of the prompt, as vLLM's server reports them; 0 for the first.

    Raises:
        LackingError, UnusableReplyError: as `read_first_token`.
    """
    reported = completion.get("prompt_logprobs")
    if not reported:
        raise LackingError(
            "does not return prompt_logprobs, so it cannot score given answers; vLLM's server can, and so can the "
            "backends transformers and vllm"
        )
    if not isinstance(reported, list) or not all(token is None or isinstance(token, Mapping) for token in reported):
        raise UnusableReplyError(MALFORMED)
    tokens = [next(iter(token.values())) if token else {"logprob": 0.0} for token in reported]
    if not all(isinstance(token, Mapping) for token in tokens):
        raise UnusableReplyError(MALFORMED)
    return [_logprob(token.get("logprob")) for token in tokens]


def read_usage(completion: Mapping[str, Any]) -> tuple[int, int]:
    """Return tokens of prompt and answer; 0 for what is not told as a count."""
    used = completion.get("usage")
    told = used if isinstance(used, Mapping) else {}
    return _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))


def read_error(body: bytes) -> tuple[str, str]:
    """Return what an error says, and its code; the first 300 characters of a body of another form."""
    value = _parsed(body)
    error = value.get("error", value) if isinstance(value, Mapping) else None
    said, code = error, ""
    if isinstance(error, Mapping):
        said = next((error[name] for name in ("message", "detail", "msg", "error_msg") if error.get(name)), None)
        code = str(error.get("code", ""))
    if said is not None and not isinstance(said, str):
        said = json.dumps(said, ensure_ascii=False)
    return (said or _beginning(body) or "without a word")[:300], code


def refused_field(body: bytes, sent: Collection[str]) -> str | None:
    """Return which of the fields that were sent an error refuses as such; None where it is about something else."""
    said = body.decode("utf-8", errors="replace")
    if not _REFUSED.search(said):
        return None
    if "max_completion_tokens" in said and "max_tokens" in sent:
        return "max_tokens"
    quoted = (name for name in ("seed", "temperature", "top_p") if name in sent and re.search(rf"\b{name}\b", said))
    return next(quoted, "n" if "n" in sent and _ONLY_ONE.search(said) else None)


def sound(text: str) -> str:
    """Return the text with U+FFFD in place of surrogates that stand alone: UTF-8 has no room for them."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", text)


def sum_choices(reported: Sequence[tuple[str, float]], choices: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Log of each choice's summed probability, from tokens that a server names by their text.

    A token counts for the choice of which it is a form. Where no token is a whole form (small vocabularies
    spell `Yes` as `Y`, `es`), those that begin the forms of one choice only count for it.
    """
    whole = {
        name: [logprob for token, logprob in reported if _plain(token) in forms] for name, forms in choices.items()
    }
    if any(whole.values()):
        return {name: logsumexp(logprobs) for name, logprobs in whole.items()}
    begun: dict[str, list[float]] = {name: [] for name in choices}
    for token, logprob in reported:
        text = _plain(token)
        owners = [name for name, forms in choices.items() if any(form.startswith(text) for form in forms)]
        if text.strip() and len(owners) == 1:
            begun[owners[0]].append(logprob)
    return {name: logsumexp(logprobs) for name, logprobs in begun.items()}


def _choices(completion: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, Mapping) for choice in choices):
        raise UnusableReplyError(MALFORMED, detail=_beginning(json.dumps(completion).encode()))
    return choices


def _text(content: Any, join_parts: bool) -> str | None:
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) for part in content):
            raise UnusableReplyError(MALFORMED)
        if not join_parts:
            raise LackingError(
                "answers with a list of parts, not with a text; set join_parts: true for this model to take its text "
                "parts together"
            )
        texts = [part.get("text") for part in content if part.get("type") in ("text", "output_text")]
        if not all(isinstance(text, str) for text in texts):
            raise UnusableReplyError(MALFORMED)
        content = "".join(texts) if texts else None
    if content is not None and not isinstance(content, str):
        raise UnusableReplyError(MALFORMED)
    return None if content is None else sound(content).strip()


def _parsed(body: bytes) -> Any:
    """The JSON value in a body; None where it holds none, or one that is nested too deeply."""
    try:
        return json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _beginning(body: bytes) -> str:
    return " ".join(body[:300].decode("utf-8", errors="replace").split())[:300]


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > _ROUNDING:
        raise UnusableReplyError("log-probability that is none")
    return min(float(value), 0.0) if value > -1e300 else -math.inf


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _plain(token: str) -> str:
    """Some servers show the leading space of a token as the tokenizer's own mark."""
    return f" {token[1:]}" if token[:1] in ("Ġ", "▁") else token
