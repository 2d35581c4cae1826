"""Where things lie in a work dir, and which model a round begins with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uni_dpo.align.choice import Choice, read_choice, read_grades
from uni_dpo.align.config import AlignConfig, training
from uni_dpo.storage import read_json

LAST = "final"
"""What a training's last state is called among its checkpoints."""


@dataclass(frozen=True)
class Arm:
    """One training on a round's pairs: the model's own, or a baseline's.

    Attributes:
        name: what its stages' names begin with, as `1` or `1/DPO`.
        folder: of all that it leaves.
        options: LlamaFactory's settings.
        baseline: whether it is only compared with.
    """

    name: str
    folder: Path
    options: Mapping[str, Any]
    baseline: bool

    @property
    def model(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "model"

    def candidates(self) -> dict[str, str]:
        """Return name → folder of the checkpoints of its finished training, first the earliest, last the `final`."""
        last = read_json(self.model / "trainer_state.json").get("global_step")
        found = {folder.name: str(folder) for step, folder in checkpoints(self.model) if step != last}
        return {**found, LAST: str(self.model)}

    def choice(self) -> Choice | None:
        """Return what was chosen of it, once that is known; its model where the work dir is now."""
        choice = read_choice(self.folder / "choice.json")
        if choice is None or not choice.kept:
            return choice
        return replace(choice, model=str(self.model if choice.candidate == LAST else self.model / choice.candidate))


class WorkLayout:
    """The paths of a configuration's work dir, and what they hold so far."""

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self.settings = config.settings
        self.work = config.work

    def round(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.work / f"round-{number}"

    def engine(self, number: int) -> Path:
        """Return the engine's work dir in a round."""
        return self.round(number) / "engine"

    def dataset(self, number: int) -> Path:
        """Return the folder of a round's pairs and their `dataset_info.json`."""
        return self.engine(number) / "dataset"

    @property
    def dataset_name(self) -> str:
        """What is trained on, in `dataset_info.json`."""
        return "pairs" if self.settings.calibrate is None else "calibrated"

    def seed(self, number: int) -> int:
        """Of a round's samples and training."""
        return self.settings.seed + number - 1

    @property
    def unit(self) -> float:
        """What a grade is multiplied by, for people: answers are right in per cent, scores keep their scale."""
        return 100.0 if self.settings.evaluate.by == "answers" else 1.0

    def arms(self, number: int) -> list[Arm]:
        """Return the trainings of a round; the first is the model's own."""
        folder = self.round(number)
        own = Arm(str(number), folder, training(self.settings.train), False)
        return [own] + [
            Arm(f"{number}/{name}", folder / "baselines" / name, training(options), True)
            for name, options in self.config.baselines.items()
        ]

    def baselines(self) -> list[Arm]:
        """Return the baselines of all rounds."""
        return [arm for number in range(1, self.settings.rounds + 1) for arm in self.arms(number)[1:]]

    def base(self) -> str:
        """Return the model that the first round begins with."""
        if self.settings.warm_up:
            return str(self.work / "warm-up" / "model")
        folder = Path(self.settings.model)
        return str(folder.absolute()) if folder.is_dir() else self.settings.model

    def start(self, number: int) -> str:
        """Return the model that a round begins with."""
        choices = (self.arms(earlier)[0].choice() for earlier in range(number - 1, 0, -1))
        return next((choice.model for choice in choices if choice is not None and choice.kept), self.base())

    def final(self) -> str:
        """Return the best model so far."""
        return self.start(self.settings.rounds + 1)

    def grades_before(self, number: int) -> dict[str, float]:
        """Return validation question → grade of the model that a round begins with."""
        by = self.settings.evaluate.by
        for earlier in range(number - 1, 0, -1):
            arm = self.arms(earlier)[0]
            choice = arm.choice()
            if choice is not None and choice.kept:
                return read_grades(arm.folder / "validation" / choice.candidate, by)
        return read_grades(self.work / "base" / "validation" / "model", by)

    def questions(self, part: str, number: int = 1) -> Path:
        """Return the file of the questions for `training` (in a round), `validation` or `test`."""
        config = self.config
        given = {"training": config.questions.path, "validation": config.validation, "test": config.test}[part]
        if isinstance(given, str) and (part != "training" or not config.splits):
            return Path(given).absolute()
        several = part == "training" and config.parts > 1
        return self.work / "questions" / f"{part}-{number}.jsonl" if several else self.work / f"questions/{part}.jsonl"


def checkpoints(model: Path) -> list[tuple[int, Path]]:
    """Return the step and the folder of each of a training's checkpoints, in their order."""
    named = ((folder.name.partition("-")[2], folder) for folder in model.glob("checkpoint-*"))
    return sorted((int(step), folder) for step, folder in named if step.isdecimal())
