"""Prompt templates, asking for a reply of a fixed form, and how probable it is that an image answers with yes."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from uni_dpo.data.videos import Video
from uni_dpo.engine.records import Aside
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import without_reasoning
from uni_dpo.models.backends.base import Backend, Failure, Request, Sample, Sampling
from uni_dpo.storage.identity import derive_seed

T = TypeVar("T")
_HEADING = re.compile(
    r"(?:#{1,6}\s*(?P<title>[^:]*)|\**(?:facts|claims|statements|questions?|modified sentences)\**):?\**\s*", re.I
)
_BULLET = re.compile(r"(?:[-*•]|\d+[.)])\s+(?P<text>.+)")


def ask(
    backend: Backend,
    requests: Sequence[Request],
    parse: Callable[[str], T | None],
    *,
    what: str,
    max_tokens: int,
    attempts: int = 2,
) -> list[T | Failure | Aside]:
    """Return one parsed reply per request; equal requests are put once and share it.

    Args:
        parse: what a reply says outside of its reasoning → value, or None where that has not the form that was asked
            for. A reply that the limit of tokens cut has it not: its last claim or grade may be half of one.
        what: names the expected thing in the reason of an `Aside`.
        attempts: how often each request is put, at most.

    Returns:
        Per request the value, the backend's `Failure`, or the last reply that could not be parsed.
    """
    results: dict[Request, T | Failure | Aside] = {}
    waiting = list(dict.fromkeys(requests))
    for attempt in range(attempts):
        # The first attempt takes the likeliest reply; another has to be able to differ from it.
        sampling = Sampling(temperature=0.7 if attempt else 0.0, max_tokens=max_tokens)
        put = [replace(request, seed=derive_seed(request.seed, attempt)) for request in waiting]
        replies = backend.generate(put, sampling) if put else []
        results |= {request: _parsed(reply, parse, what) for request, reply in zip(waiting, replies, strict=True)}
        waiting = [request for request in waiting if isinstance(results[request], Aside)]
    return [results[request] for request in requests]


def _parsed(reply: list[Sample] | Failure, parse: Callable[[str], T | None], what: str) -> T | Failure | Aside:
    if isinstance(reply, Failure):
        return reply
    said = reply[0]
    text = without_reasoning(said.text) if said.finished else None
    if text is None or (value := parse(text.strip())) is None:
        return Aside(f"no {what}" if said.finished else f"{what} cut at max_tokens", said.text)
    return value


PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Template:
    """A prompt with gaps such as `{question}`; other braces are plain text."""

    text: str

    def render(self, **values: str) -> str:
        """Fill every gap in one pass, so that braces inside a value stay as they are."""
        pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
        return re.sub(pattern, lambda gap: values[gap.group()[1:-1]], self.text).strip()


def load_template(name_or_path: str, *, gaps: tuple[str, ...]) -> Template:
    """Return the prompt of that name, or the text of the user's file, which holds all `gaps` in braces.

    Raises:
        UniDPOError: no such prompt, one that is not UTF-8, or a gap is missing from it.
    """
    built_in = PROMPTS / f"{name_or_path}.txt"
    path = built_in if built_in.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.txt")))
        raise UniDPOError(f"prompt {name_or_path!r}: no such file; built-in prompts: {known}")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UniDPOError(f"prompt {path} is not UTF-8 ({error}); save it as UTF-8") from error
    missing = [gap for gap in gaps if f"{{{gap}}}" not in text]
    if missing:
        raise UniDPOError(f"prompt {path}: {{{missing[0]}}} has to stand somewhere in it")
    return Template(text)


def listed_lines(reply: str) -> tuple[list[str], bool]:
    """Return the filled lines of a reply, without bullets, and whether all of them had one.

    Of a reply with headings (`### Facts:`), as RLAIF-V's published models write them, only what stands under the last
    heading with lines counts.
    """
    parts: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, reply.splitlines())):
        heading = _HEADING.match(line)
        if heading and (heading.group("title") is not None or heading.end() == len(line)):
            parts.append([])
            line = line[heading.end() :]
        parts[-1] += [line] if line else []
    lines = next(filter(None, reversed(parts)), [])
    found = [_BULLET.fullmatch(line) for line in lines]
    texts = [match.group("text").strip() if match else line for match, line in zip(found, lines, strict=True)]
    return texts, all(found)


@dataclass(frozen=True)
class Check:
    """A yes/no question about images and videos."""

    question: str
    images: tuple[str, ...] = ()
    videos: tuple[Video, ...] = ()


class Checker(ABC):
    """Base of all checkers. A subclass names the `roles` of the models that it asks."""

    roles: ClassVar[tuple[str, ...]] = ("checker",)

    def __init__(self, models: Mapping[str, Backend], template: Template, seed: int) -> None:
        self.models = models
        self.template = template
        self.seed = seed

    @abstractmethod
    def check(self, checks: Sequence[Check]) -> list[float | Failure | Aside]:
        """Return P(yes) in [0, 1] for each check, in order; an `Aside` where the model says neither yes nor no."""


def word_forms(word: str) -> tuple[str, ...]:
    """Return a word in all casings, with and without a leading space: models spell their first token in any of them."""
    casings = dict.fromkeys((word.lower(), word.capitalize(), word.upper()))
    return tuple(f"{space}{casing}" for space in ("", " ") for casing in casings)


YES_NO = {"yes": word_forms("yes"), "no": word_forms("no")}


def probability_of_yes(logprobs: Mapping[str, float]) -> float | None:
    """Return P(yes) ÷ (P(yes) + P(no)) from the two log-probabilities; None where both are -inf."""
    yes, no = logprobs["yes"], logprobs["no"]
    if yes == no == -math.inf:
        return None
    gap = no - yes
    return 1 / (1 + math.exp(gap)) if gap < 700 else 0.0


class FirstTokenChecker(Checker):
    """Reads P(yes) against P(no) from the log-probabilities of the reply's first token; equal checks are made once."""

    def check(self, checks: Sequence[Check]) -> list[float | Failure | Aside]:
        """See `Checker.check`."""
        distinct = list(dict.fromkeys(checks))
        requests = [
            Request(
                self.template.render(question=check.question),
                check.images,
                derive_seed(self.seed, check.question),
                videos=check.videos,
            )
            for check in distinct
        ]
        replies = self.models["checker"].choice_logprobs(requests, YES_NO)
        results: dict[Check, float | Failure | Aside] = {}
        for check, reply in zip(distinct, replies, strict=True):
            said = reply if isinstance(reply, Failure) else probability_of_yes(reply)
            results[check] = Aside("neither yes nor no", check.question) if said is None else said
        return [results[check] for check in checks]
