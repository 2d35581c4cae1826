"""What the stages are: their order, what each depends on, and what it leaves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from uni_dpo.align.choice import choose, read_grades, write_choice
from uni_dpo.align.commands import PLACEHOLDERS, Command, Commands
from uni_dpo.align.config import AlignConfig, training
from uni_dpo.align.contents import Contents
from uni_dpo.align.layout import Arm, WorkLayout
from uni_dpo.align.summary import write_summary
from uni_dpo.engine.config import EngineConfig
from uni_dpo.settings.losses import compares, written
from uni_dpo.settings.options import fingerprinted
from uni_dpo.settings.registry import find, own_code
from uni_dpo.storage.identity import WEIGHTS, file_stamps

ENGINE_STAGES = {"sample": "sample", "score": "reward", "pair": "pair"}
"""Kind of stage → the engine's name for it."""


@dataclass(frozen=True)
class AlignStage:
    """One stage.

    Attributes:
        name: as `1/train`.
        says: what it does, for a table.
        settings: what its result depends on, beside the stages before it.
        after: names of those stages.
        outputs: files and folders that are put aside when it is done anew.
        commands: what is to be run; it is asked when the stages before are done.
        own: what this process does after that.
        follows: whether it is done again by itself where a stage before it changed.
    """

    name: str
    says: str
    settings: Mapping[str, Any]
    after: tuple[str, ...]
    outputs: tuple[Path, ...]
    commands: Callable[[], list[Command]] = list
    own: Callable[[], None] | None = None
    follows: bool = False

    @property
    def kind(self) -> str:
        """One of `launch.KINDS`, or what this program does by itself: `choose`, `summary`."""
        return self.name.rpartition("/")[2]


def _run(*words: object) -> Callable[[], list[Command]]:
    """The one command of a stage, whose words are known from the start."""
    return lambda: [Command(tuple(map(str, words)))]


class AlignStages:
    """The stages of a configuration in their order."""

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self.settings = config.settings
        self.layout = WorkLayout(config)
        self.commands = Commands(self.layout)
        self.contents = Contents(config.work)

    def __iter__(self) -> Iterator[AlignStage]:
        """Yield every stage; after one is done, those that follow from its result."""
        work = self.config.work
        if self.config.splits:
            yield self._split()
        if self.settings.warm_up:
            options = {**self.commands.warm_up_options(), **self._weights(), "seed": self.settings.seed}
            options["data"] = self.contents.dataset(options)
            says, outputs = "a training before the first round", (work / "warm-up",)
            yield AlignStage("warm-up", says, options, (), outputs, self.commands.warm_up)
        start: tuple[str, ...] = ("warm-up",) if self.settings.warm_up else ()
        yield self._before("validate", "validation", start)
        yield self._before("test", "test", start)
        ends = ["test"]
        for number in range(1, self.settings.rounds + 1):
            yield from self._sampling(number, start)
            yield from self._dataset(number)
            for arm in self.layout.arms(number):
                yield from self._training(number, arm, start)
                ends.append(f"{arm.name}/test")
            start = (f"{number}/choose",)
            choice = self.layout.arms(number)[0].choice()
            if choice is not None and not choice.goes_on:
                break
        if self.settings.benchmarks:
            says, options = f"before and after on {', '.join(self.settings.benchmarks)}", self._benchmarks()
            outputs, run = (work / "benchmarks",), self.commands.benchmarks
            yield AlignStage("benchmarks", says, options, tuple(ends), outputs, run, follows=True)
            ends.append("benchmarks")
        says, outputs, run = "the trainings, their curves and pairs", (work / "report.html",), self.commands.report
        place = {"work_dir": str(work)}  # both name files in it, and are made again where it was moved
        yield AlignStage("report", says, place, tuple(ends), outputs, run, follows=True)
        pages, summarize = (work / "summary.md", work / "summary.json"), partial(write_summary, self.layout)
        after = (*ends, "report")
        yield AlignStage("summary", "what came of it", place, after, pages, own=summarize, follows=True)

    def _split(self) -> AlignStage:
        shares, folder = self.config.shares(), self.config.work / "questions"
        asked = {**self._training_questions(), "shares": shares, "seed": self.settings.seed}
        says = f"{len(shares)} files of questions; no image stands in two"
        parts = [f"--part={folder / name}.jsonl={share:.10g}" for name, share in shares.items()]
        source = Path(self.config.questions.path).absolute()
        root = ("--image-root", self.config.image_root)
        run = _run("data", "split", source, *parts, *root, "--seed", self.settings.seed)
        return AlignStage("split", says, asked, (), (folder,), run)

    def _before(self, kind: str, part: str, start: tuple[str, ...]) -> AlignStage:
        """The model before the first round."""
        folder = self.config.work / "base" / part
        asked = {**self._asked(part), **({} if self.settings.warm_up else self._weights())}
        says = f"the model before the first round, on the {part} questions"
        after = (*start, *(("split",) if self.config.splits else ()))
        return AlignStage(
            kind, says, asked, after, (folder,),
            lambda: self.commands.ask(part, {"model": self.layout.base()}, folder), partial(self._graded, folder),
        )  # fmt: skip

    def _sampling(self, number: int, start: tuple[str, ...]) -> Iterator[AlignStage]:
        """The engine's three stages."""
        described = EngineConfig(self.commands.engine_options(number, PLACEHOLDERS))
        source = {**self._training_questions(), "limit": self.config.questions.limit}
        source |= {} if start else self._weights()
        folder = self.layout.engine(number)
        says = {
            "sample": f"answers of the model, seed {self.layout.seed(number)}",
            "score": f"scores by {self.settings.engine['pipeline']}",
            "pair": "pairs of better and worse answers",
        }
        after = (*start, *(("split",) if self.config.splits else ()))
        for place, (kind, stage) in enumerate(ENGINE_STAGES.items()):
            asked = {**described.describe(stage), **(source if place == 0 else {})}
            output = folder / f"{place}-{stage}.jsonl" if place < 2 else folder / "dataset" / "pairs.json"
            name, run = f"{number}/{kind}", partial(self.commands.engine, number, place)
            yield AlignStage(name, says[kind], asked, after, (output,), run)
            after = (name,)

    def _dataset(self, number: int) -> Iterator[AlignStage]:
        """From pairs to a dataset that has no faults."""
        after, scale, folder = f"{number}/pair", self.settings.calibrate, self.layout.dataset(number)
        if scale is not None:
            says, output = f"scores onto {scale.low:g} … {scale.high:g}", folder / "calibrated.json"
            options = ("--method", scale.method, "--low", f"{scale.low:g}", "--high", f"{scale.high:g}")
            name, run = f"{number}/calibrate", _run("data", "calibrate", folder / "pairs.json", output, *options)
            yield AlignStage(name, says, fingerprinted(scale), (after,), (output,), run)
            run = _run("data", "register", "calibrated", output, "--dataset-dir", folder, "--replace")
            after = f"{number}/register"
            yield AlignStage(after, "the pairs as a dataset", {}, (name,), (), run)
        given = training(self.settings.train)
        limits = {"--qual-eta": given.get("uni_dpo_qual_eta", 0.7), "--tau-good": given.get("uni_dpo_tau_good", 2.5)}
        page = self.layout.round(number) / "check.html"
        words = ("--dataset-dir", folder, "--html", page, *chain.from_iterable(limits.items()))
        run = _run("data", "check", self.layout.dataset_name, *words)
        yield AlignStage(f"{number}/check", "every fault of the pairs", limits, (after,), (page,), run)

    def _training(self, number: int, arm: Arm, start: tuple[str, ...]) -> Iterator[AlignStage]:
        """Train, choose, test."""
        seed, loss = self.layout.seed(number), written(arm.options["pref_loss"])
        reference = self.settings.reference if number > 1 and compares(loss) else None
        asked = {"seed": seed, **arm.options, **({"reference": reference} if reference else {})}
        says = loss + (f", reference: the {reference} model" if reference else "")
        validation, test = arm.folder / "validation", arm.folder / "test"
        train, validate, name = f"{arm.name}/train", f"{arm.name}/validate", f"{arm.name}/choose"
        yield AlignStage(
            train, says, asked, (f"{number}/check", *start), (arm.model,),
            lambda: self.commands.train(number, arm),
        )  # fmt: skip
        yield AlignStage(
            validate, "every checkpoint, on the validation questions", self._asked("validation"),
            (train, "validate"), (validation,), lambda: self.commands.ask("validation", arm.candidates(), validation),
            partial(self._graded, validation),
        )  # fmt: skip
        yield AlignStage(
            name, "the best checkpoint, by the validation questions", {"go_on": self.settings.go_on},
            (validate, *start), (arm.folder / "choice.json",), own=lambda: self._choose(number, arm), follows=True,
        )  # fmt: skip
        yield AlignStage(
            f"{arm.name}/test", "the chosen checkpoint, on the test questions", self._asked("test"),
            (name, "test"), (test,), lambda: self._test(arm, test), partial(self._graded, test),
        )  # fmt: skip

    def _choose(self, number: int, arm: Arm) -> None:
        paths, by = arm.candidates(), self.settings.evaluate.by
        choice = choose(
            self.layout.grades_before(number),
            {name: read_grades(arm.folder / "validation" / name, by) for name in paths},
            paths,
            self.layout.start(number),
            go_on="always" if arm.baseline else self.settings.go_on,
            seed=self.settings.seed,
            unit=self.layout.unit,
        )
        write_choice(arm.folder / "choice.json", choice)

    def _test(self, arm: Arm, folder: Path) -> list[Command]:
        choice = arm.choice()
        return self.commands.ask("test", {"model": choice.model}, folder) if choice is not None and choice.kept else []

    def _graded(self, folder: Path) -> None:
        """See that every question got a reply and a grade."""
        by = self.settings.evaluate.by
        for name in {path.stem for path in folder.glob("*.jsonl" if by == "answers" else "*.yaml")}:
            read_grades(folder / name, by)

    def _asked(self, part: str) -> dict[str, Any]:
        """What an evaluation depends on beside the model."""
        given, evaluate = getattr(self.config, part), self.settings.evaluate
        asked = {**fingerprinted(evaluate), "seed": self.settings.seed}
        if evaluate.by == "score":
            scoring = EngineConfig(self.commands.scoring_options(part, PLACEHOLDERS))
            asked |= {"sampling": scoring.describe("sample"), "scoring": scoring.describe("reward")}
        else:
            sampling = EngineConfig(self.config.engine(PLACEHOLDERS)).describe("sample")
            asked |= {name: sampling[name] for name in ("prompt", "models.sampler") if name in sampling}
            asked |= {"code": code} if (code := own_code(find("grader", evaluate.grader))) else {}
        root = self.config.image_root
        return asked | (self.contents.questions(given, root) if isinstance(given, str) else {})

    def _training_questions(self) -> dict[str, Any]:
        return self.contents.questions(self.config.questions.path, self.config.image_root)

    def _benchmarks(self) -> dict[str, Any]:
        """The benchmarks with what their files hold."""
        found = {}
        for name, options in self.settings.benchmarks.items():
            path = options.get("path")
            held = {"content": self.contents.table(path)} if isinstance(path, str) and Path(path).exists() else {}
            found[name] = {**options, **held}
        return found

    def _weights(self) -> dict[str, Any]:
        return {"model": self.settings.model, "weights": file_stamps(self.settings.model, WEIGHTS)}
