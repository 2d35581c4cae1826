"""Divide and conquer for drawn pictures: descriptions taken apart by rule, claims checked by what a tiny model sees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uni_dpo.demo.scene_judges import COUNTED, HOW_MANY, KINDS, NOTHING, parts
from uni_dpo.demo.scenes import PLACES
from uni_dpo.engine.asking import Check, Checker, word_forms
from uni_dpo.engine.records import Aside
from uni_dpo.models.backends.base import Backend, Failure, Request, Sample, Sampling, Usage, logsumexp
from uni_dpo.storage.identity import derive_seed


@dataclass(frozen=True)
class RuleOptions:
    """Settings of `Rule`; the model may have any name."""

    model: str = "rule"


class Rule(Backend):
    """Splits a description (`Split: …`) and turns a claim into a question (`Ask: …`), without a model.

    Descriptions of drawn pictures have one form. Copying them is more than the tiny model learns in minutes.
    """

    Options = RuleOptions

    def __init__(self, options: RuleOptions) -> None:
        self.options = options
        self.usage = Usage()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        self.usage.requests += len(requests)
        return [[_by_rule(request.prompt)] for request in requests]


def _by_rule(prompt: str) -> Sample:
    task, _, given = prompt.partition(": ")
    said = "\n".join(f"- {claim}" for claim in parts(given)) if task == "Split" else f"{given.removesuffix('.')}?"
    return Sample(said, len(said.split()), True)


class Looking(Checker):
    """P(yes) of `Red top left?` is the probability of `Red` as the reply to `Colour top left?`.

    To see a colour is learnt within a minute. To compare it with a word of the question is what so small a model
    hardly begins to learn: asked for yes or no it guesses.
    """

    def check(self, checks: Sequence[Check]) -> list[float | Failure | Aside]:
        """See `Checker.check`; equal questions are asked once. What is no claim about a picture is an `Aside`."""
        asked = {check: opened(check.question) for check in dict.fromkeys(checks)}
        results: dict[Check, float | Failure | Aside] = {
            check: Aside("no claim about a picture", check.question) for check, found in asked.items() if not found
        }
        for words in (COUNTED, *((*words, NOTHING) for words in KINDS.values())):
            these = [(check, *found) for check, found in asked.items() if found and found[1] in words]
            requests = [
                Request(self.template.render(question=question), check.images, derive_seed(self.seed, question))
                for check, question, _ in these
            ]
            choices = {word: word_forms(word) for word in words}
            replies = self.models["checker"].choice_logprobs(requests, choices) if requests else []
            for (check, _, word), reply in zip(these, replies, strict=True):
                results[check] = reply if isinstance(reply, Failure) else _share(word, reply)
        return [results[check] for check in checks]


def _share(word: str, logprobs: Mapping[str, float]) -> float | Aside:
    total = logsumexp(list(logprobs.values()))
    return math.exp(logprobs[word] - total) if total > -math.inf else Aside("none of the words", word)


def opened(question: str) -> tuple[str, str] | None:
    """Return the open question that a yes/no question closes, and the word that answers it with yes.

    None where it is no question about a picture.
    """
    word, _, rest = question.lower().partition(" ")
    if word in COUNTED and rest in ("shape?", "shapes?"):
        return HOW_MANY, word
    kind = next((kind for kind, words in KINDS.items() if word in words), None)
    return (f"{kind} {rest}", word) if kind and rest.removesuffix("?") in PLACES else None
