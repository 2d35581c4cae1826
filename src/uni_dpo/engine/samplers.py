"""Stage 0: where the answers to a question come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from uni_dpo.data.questions import Question
from uni_dpo.engine.asking import load_template
from uni_dpo.engine.records import Aside
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Backend, Failure, Request, Sample, Sampling, Usage
from uni_dpo.settings.options import Count, NotNegative, TopP
from uni_dpo.storage.identity import derive_seed

CUT = "answer cut at max_tokens"
"""How the usage counts answers that did not end by themselves."""


@dataclass(frozen=True)
class Sampled:
    """The usable answers to one question, the replies that were not, and the places of answers that were cut."""

    answers: tuple[str, ...]
    aside: tuple[Aside, ...] = ()
    cut: tuple[int, ...] = ()


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
        """Return answers to each question, in order. What is drawn may depend on a question's id, not its place."""


@dataclass(frozen=True)
class ModelSamplerOptions:
    """Settings under `sample:` for answers from the model in the role `sampler`.

    Attributes:
        n: answers per question, 8 unless told otherwise; with `seeds`, answers per seed, and 1.
        seeds: ask each question once per seed. What a seed draws does not depend on the others.
        prompt: built-in name or file; gap {question}.
    """

    n: Count | None = None
    seeds: tuple[int, ...] = ()
    temperature: NotNegative = 1.0
    top_p: TopP = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    max_tokens: Count = 256
    prompt: str = "answer"


class ModelSampler(Sampler):
    """Draws answers to every question from one model."""

    Options = ModelSamplerOptions
    roles = ("sampler",)

    def __init__(self, options: ModelSamplerOptions, models: Mapping[str, Backend], seed: int) -> None:
        super().__init__(options, models, seed)
        self.template = load_template(options.prompt, gaps=("question",))
        n = options.n if options.n is not None else (1 if options.seeds else 8)
        self.sampling = Sampling(n, options.temperature, options.top_p, options.top_k, options.max_tokens)
        if len(set(options.seeds)) != len(options.seeds):
            raise UniDPOError(f"sample.seeds: a seed is given twice ({', '.join(map(str, options.seeds))})")
        if len(options.seeds) > 1 and options.temperature == 0:
            raise UniDPOError("sample.seeds: temperature 0 gives the same answer for every seed; raise it")

    def sample(self, questions: Sequence[Question]) -> list[Sampled | Failure]:
        """See `Sampler.sample`. Empty answers are put aside."""
        requests = [request for question in questions for request in self._requests(question)]
        replied = self.models["sampler"].generate(requests, self.sampling)
        cut = sum(not sample.finished for reply in replied if not isinstance(reply, Failure) for sample in reply)
        if cut:
            self.models["sampler"].usage.add(Usage(faults={CUT: cut}))
        replies = iter(replied)
        times = len(self.options.seeds) or 1
        return [_merge(list(islice(replies, times))) for _ in questions]

    def _requests(self, question: Question) -> list[Request]:
        prompt = self.template.render(question=question.text)
        parts = (self.seed, "sample", question.id)
        seeds = [derive_seed(*parts, seed) for seed in self.options.seeds] or [derive_seed(*parts)]
        system, videos = question.system or None, question.videos
        return [Request(prompt, question.images, seed, system, videos=videos) for seed in seeds]


def _merge(replies: Sequence[list[Sample] | Failure]) -> Sampled | Failure:
    """All answers to one question; a failure where one of its requests failed, so that all are put again."""
    samples: list[Sample] = []
    for reply in replies:
        if isinstance(reply, Failure):
            return reply
        samples += reply
    filled = [sample for sample in samples if sample.text]
    return Sampled(
        tuple(sample.text for sample in filled),
        (Aside("empty answer", ""),) * (len(samples) - len(filled)),
        tuple(place for place, sample in enumerate(filled) if not sample.finished),
    )


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
                advice = "; ten short answers count as references unless input.answers is given"
                hint = advice if question.references else ""
                raise UniDPOError(f"{question.called}: the sampler `given` needs a list in `answers`{hint}")
        return [Sampled(tuple(answer for answer in q.answers if answer.strip())) for q in questions]
