"""The protocol that every backend keeps, the records it speaks, and the backends that rate answers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge

from uni_dpo.data.checks.rows import MEDIA_TOKENS
from uni_dpo.data.videos import Video
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.settings import BUILT_IN, RATERS
from uni_dpo.models.checkpoint import adapter_base, is_adapter
from uni_dpo.models.rewards import load_process_model, load_reward_model
from uni_dpo.models.rewards.options import Conversation, ProcessModelOptions, RewardModelOptions
from uni_dpo.settings.options import Count, NotNegative, Positive, TopP, added, check_ranges, parse
from uni_dpo.settings.reading import SettingsError
from uni_dpo.settings.registry import find
from uni_dpo.storage.identity import WEIGHTS, file_stamps


@dataclass(frozen=True)
class Request:
    """One user turn: a text after its images and videos, or items in the order of the asker.

    Attributes:
        prompt: the text of the turn, without placeholders.
        images: paths of the images, which stand before the text.
        seed: decides everything drawn for this request, whatever else is in its batch.
        system: the system prompt; None for what the chat template does by itself.
        content: items `{"type": "image" | "video", ...}` and `{"type": "text", "text": ...}`, in place of the others;
            images and videos carry their own `min_pixels` and `max_pixels`, as `qwen_vl_utils` reads them.
        videos: they stand between the images and the text.
    """

    prompt: str = ""
    images: tuple[str, ...] = ()
    seed: int = 0
    system: str | None = None
    content: tuple[Mapping[str, Any], ...] = ()
    videos: tuple[Video, ...] = ()

    def items(self) -> list[dict[str, Any]]:
        """Return the turn as content items, in order."""
        if self.content:
            return [dict(item) for item in self.content]
        images = [{"type": "image", "image": path} for path in self.images]
        videos = [{"type": "video", "video": video} for video in self.videos]
        return [*images, *videos, {"type": "text", "text": self.prompt}]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    `temperature` 0 takes the likeliest token each time; `top_k` 0 means all; `repetition_penalty` 1 changes nothing.
    """

    n: Count = 1
    temperature: NotNegative = 1.0
    top_p: TopP = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    max_tokens: Count = 256
    repetition_penalty: Positive = added(1.0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.n > 1 and self.temperature == 0:
            raise UniDPOError(f"sampling: temperature 0 gives the same answer {self.n} times; raise it")


@dataclass(frozen=True)
class Sample:
    """One answer: its text, its tokens without the end-of-turn token, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class AnswerLogprob:
    """Log-probability (natural) of a given answer, summed over its `tokens` tokens; end-of-turn not counted."""

    total: float
    tokens: int


@dataclass(frozen=True)
class Failure:
    """A request that got no reply after all retries."""

    reason: str


@dataclass
class Usage:
    """What a backend has done so far; `cost` is in the currency of the configured prices."""

    requests: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Usage") -> None:
        """Add another count to this one."""
        for item in fields(self):
            if item.name != "faults":
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        for kind, count in other.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count


class Backend(Protocol):
    """A model that can be asked. Replies come in the order of the requests, one per request.

    Attributes:
        usage: what has been asked so far.
        comfortable_batch: requests to hand over at once where the user has not said how many.
    """

    usage: Usage
    comfortable_batch: int = 64

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """Return `sampling.n` answers to each request."""
        ...

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """Yield the place of a request and its answers as they are finished, in any order."""
        yield from enumerate(self.generate(requests, sampling))

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """Return log-probability that the reply's first token begins one of a choice's forms.

        Args:
            choices: name → forms of the word, such as ("yes", "Yes", " yes").

        Returns:
            Per request: name → log of the summed probability of the forms; -inf where it was not reported.

        Raises:
            UniDPOError: this backend tells no probabilities.
        """
        raise UniDPOError(f"{type(self).__name__} does not tell how probable a first token is; take another backend")

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """Return log-probability of `answers[i]` as the reply to `requests[i]`.

        Raises:
            UniDPOError: this backend tells no probabilities.
        """
        raise UniDPOError(f"{type(self).__name__} does not tell how probable an answer is; take another backend")


def logsumexp(values: Sequence[float]) -> float:
    """Return log Σ exp(values); -inf for none."""
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))


def first_tokens(
    encode: Callable[[str], Sequence[int]], choices: Mapping[str, Sequence[str]], model: str
) -> dict[str, list[int]]:
    """Return first tokens of each choice's forms, less those with which another choice begins too.

    Raises:
        UniDPOError: a choice is left without a token of its own.
    """
    firsts = {name: {ids[0] for ids in map(encode, forms) if ids} for name, forms in choices.items()}
    own = {
        name: sorted(tokens.difference(*(others for other, others in firsts.items() if other != name)))
        for name, tokens in firsts.items()
    }
    for name, tokens in own.items():
        if not tokens:
            raise UniDPOError(f"{model}: no first token tells {name!r} from the other choices")
    return own


def parse_model(raw: Mapping[str, Any], where: str, rater: str | None = None) -> tuple[str, Any]:
    """Return the backend's name and the parsed options of one entry under `models:`.

    Args:
        where: what messages call it, `models.sampler` for example.
        rater: the backend that alone fills this role; None for a role that any model fills which writes text.
    """
    if not isinstance(raw, Mapping):
        raise SettingsError([(where, f"a mapping with `backend` and `model` is expected, not {raw!r}")])
    settings = dict(raw)
    name = str(settings.pop("backend", rater or "transformers"))
    if name != rater and (rater or name in RATERS):
        wanted = f"only the backend {rater} fits this role" if rater else "it rates answers and writes none"
        raise SettingsError([(f"{where}.backend", f"{name} does not fit here; {wanted}")])
    options = BUILT_IN[name] if name in BUILT_IN else find("backend", name).Options
    return name, parse(options, settings, where)


def weights_of(options: Any) -> list[list[Any]]:
    """Stamp the weight files that the parsed options of a model name, an adapter's and its base's included.

    Returns:
        See `file_stamps`; nothing for a name on the hub or on a server.
    """
    model = str(getattr(options, "model", ""))
    folders = [model, str(getattr(options, "adapter", None) or "")]
    if model and is_adapter(Path(model)):
        folders.append(str(adapter_base(Path(model))))
    return [stamp for folder in folders for stamp in file_stamps(folder, WEIGHTS)]


def make_backend(raw: Mapping[str, Any]) -> Backend:
    """Load the model that one entry under `models:` describes."""
    name, options = parse_model(raw, "model")
    if hasattr(options, "check"):
        options.check(images=True)
    backend: Backend = find("backend", name)(options)
    if name == "openai":
        backend.check()  # type: ignore[attr-defined]  # a server that is not there is named before it is asked
    return backend


class _Rater:
    """Rates answers in batches and counts them."""

    def __init__(self, options: Any, model: Any) -> None:
        self.usage = Usage()
        self.batch_size = options.batch_size
        self.model = model

    def _in_batches(self, rate: Callable[[Sequence[Any]], list[Any]], answers: Sequence[Any]) -> list[Any]:
        starts = range(0, len(answers), self.batch_size)
        ratings = [rating for start in starts for rating in rate(answers[start : start + self.batch_size])]
        self.usage.add(Usage(requests=len(ratings)))
        return ratings


class RewardModelBackend(_Rater):
    """A reward model: LlamaFactory's value head, or a sequence classifier."""

    Options = RewardModelOptions

    def __init__(self, options: RewardModelOptions) -> None:
        super().__init__(options, load_reward_model(options))

    def rate(self, requests: Sequence[Request], answers: Sequence[str]) -> list[float]:
        """Tell how good `answers[i]` is as the reply to `requests[i]`, on the model's own scale."""
        image, video = MEDIA_TOKENS["images"], MEDIA_TOKENS["videos"]
        conversations = [
            Conversation(
                image * len(request.images) + video * len(request.videos) + request.prompt,
                answer,
                request.images,
                request.system or "",
                videos=request.videos,
            )
            for request, answer in zip(requests, answers, strict=True)
        ]
        return self._in_batches(self.model.rate, conversations)


class ProcessRewardBackend(_Rater):
    """A process reward model: a token classifier, read at the token that closes each step."""

    Options = ProcessModelOptions

    def __init__(self, options: ProcessModelOptions) -> None:
        super().__init__(options, load_process_model(options))

    def rate_steps(self, requests: Sequence[Request], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return P(right) of every step of `answers[i]`, which is not without steps, as the reply to `requests[i]`."""
        solutions = [(request.prompt, steps) for request, steps in zip(requests, answers, strict=True)]
        return self._in_batches(self.model.rate_steps, solutions)
