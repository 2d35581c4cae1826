"""Stage 0: where the answers to a question come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from uni_dpo.engine.backends.base import Backend, Failure, Request, Sampling
from uni_dpo.engine.records import Aside, Question, derive_seed
from uni_dpo.engine.templates import load_template
from uni_dpo.errors import UniDPOError


@dataclass(frozen=True)
class Sampled:
    """The usable answers to one question, and the replies that were not."""

    answers: tuple[str, ...]
    aside: tuple[Aside, ...] = ()


class Sampler(ABC):
    """Base of all samplers. A subclass names its `Options` dataclass and the `roles` of the models it asks.

    The constructor checks the options: it is also called, without models, before any model is loaded.
    """

    Options: ClassVar[type]
    roles: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, models: Mapping[str, Backend], seed: int) -> None:
        self.options = options
        self.models = models
        self.seed = seed

    @abstractmethod
    def sample(self, questions: Sequence[Question]) -> list[Sampled | Failure]:
        """Answers to each question, in order. What is drawn may depend on a question's id, not its place."""


@dataclass(frozen=True)
class ModelSamplerOptions:
    """`n` answers per question from the model in the role `sampler`; `prompt` has the gap {question}."""

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    prompt: str = "answer"


class ModelSampler(Sampler):
    """Draws `n` answers per question from one model."""

    Options = ModelSamplerOptions
    roles = ("sampler",)

    def __init__(self, options: ModelSamplerOptions, models: Mapping[str, Backend], seed: int) -> None:
        super().__init__(options, models, seed)
        self.template = load_template(options.prompt, gaps=("question",))
        self.sampling = Sampling(options.n, options.temperature, options.top_p, options.top_k, options.max_tokens)

    def sample(self, questions: Sequence[Question]) -> list[Sampled | Failure]:
        """See `Sampler.sample`. Empty answers are put aside."""
        requests = [
            Request(
                self.template.render(question=question.text),
                question.images,
                derive_seed(self.seed, "sample", question.id),
            )
            for question in questions
        ]
        results: list[Sampled | Failure] = []
        for reply in self.models["sampler"].generate(requests, self.sampling):
            if isinstance(reply, Failure):
                results.append(reply)
                continue
            texts = tuple(sample.text for sample in reply if sample.text)
            empty = Aside("empty answer", "")
            results.append(Sampled(texts, (empty,) * (len(reply) - len(texts))))
        return results


@dataclass(frozen=True)
class GivenSamplerOptions:
    """Nothing to set."""


class GivenSampler(Sampler):
    """Takes the answers that came with the data, in their column `answers`."""

    Options = GivenSamplerOptions

    def sample(self, questions: Sequence[Question]) -> list[Sampled | Failure]:
        """See `Sampler.sample`."""
        for question in questions:
            if not question.answers:
                raise UniDPOError(f"question {question.id}: the sampler `given` needs a list in `answers`")
        return [Sampled(tuple(answer for answer in q.answers if answer.strip())) for q in questions]
