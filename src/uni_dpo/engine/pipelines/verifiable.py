"""Answers graded against a reference, for data with ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uni_dpo.data.questions import Question
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Scored, ScoredAnswer
from uni_dpo.graders.grading import check_references, load_grader
from uni_dpo.models.backends.base import Backend, Failure


@dataclass(frozen=True)
class VerifiableOptions:
    """Settings under `reward:`.

    Attributes:
        grader: `exact`, `numeric`, `multiple_choice`, `math`, `vqa`, or `package.module:function` (see `graders`).
        low, high: the scores of the grades 0 and 1.
        keep_ungradable: an answer in which the grader finds nothing gets the lowest score; otherwise it is
            put aside. It is counted either way.
    """

    grader: str = "exact"
    low: float = 0.0
    high: float = 10.0
    keep_ungradable: bool = True


class Verifiable(Pipeline):
    """Score = low + (high − low) · grade."""

    RewardOptions = VerifiableOptions

    def __init__(self, reward: VerifiableOptions, models: Mapping[str, Backend], seed: int) -> None:
        super().__init__(reward, models, seed)
        self.grade = load_grader(reward.grader)

    def check(self, questions: Sequence[Question]) -> None:
        """See `Pipeline.check`."""
        check_references(self.options.grader, questions)

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        return [self._score(item) for item in items]

    def _score(self, item: Answered) -> Scored:
        answers, aside = [], []
        for text in item.answers:
            grade = self.grade(text, item.question)
            if grade is None:
                aside.append(Aside("nothing to grade", text))
                if not self.options.keep_ungradable:
                    continue
            answers.append(ScoredAnswer(text, self.on_scale(grade or 0.0), {"grade": grade}))
        return Scored(tuple(answers), tuple(aside))


PIPELINE = Verifiable
