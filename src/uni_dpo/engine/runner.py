"""Running a config: sample → reward → pair, resumed where it stopped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uni_dpo.data.checks.rows import MEDIA_TOKENS, MODEL_MARKERS
from uni_dpo.data.questions import Question, check_media, read_questions, sort_questions
from uni_dpo.engine.config import STAGES, EngineConfig
from uni_dpo.engine.pairing import Choosable, may_be_chosen, write_dataset
from uni_dpo.engine.records import Pair, Row, ScoredAnswer
from uni_dpo.engine.samplers import CUT
from uni_dpo.engine.workdir import StageLog, WorkDir, plan_stages, settle_stages
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage
from uni_dpo.storage.identity import derive_seed, versions_of
from uni_dpo.storage.writing import write_text

UNTRAINABLE = (*MEDIA_TOKENS.values(), *MODEL_MARKERS)
"""Texts that make an answer one that no training can read: it would look for an image there."""
PACKAGES = ("uni-dpo", "torch", "transformers", "vllm", "openai", "ray")
"""Packages whose versions the manifest holds."""
ENOUGH_TO_JUDGE = 20
"""Questions that have to be tried before a high share of failures ends a stage early."""


@dataclass(frozen=True)
class EngineResult:
    """What a run left behind.

    Attributes:
        pairs: path of `pairs.json`; None where the run ended before the last stage.
        report: per stage its counts; for the pair stage the pairs kept and those dropped for balance.
        warnings: lines that the user should read.
    """

    pairs: Path | None
    report: dict[str, dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def run_engine(
    config: EngineConfig | Mapping[str, Any] | str | Path,
    work_dir: str | Path,
    *,
    questions: Sequence[Question] | None = None,
    run_stage: int | None = None,
    continue_from_stage: int | None = None,
    debug: bool = False,
) -> EngineResult:
    """Run an engine config, or what is left of it to do.

    Args:
        config: a parsed config, the mapping of one, or the path of a YAML file.
        work_dir: holds every stage's rows and, in the end, `dataset/pairs.json`.
        questions: instead of those in `input.path`.
        run_stage: run this stage only (0 sample, 1 reward, 2 pair).
        continue_from_stage: run this stage and those after it, anew where the config has changed.
        debug: keep every request and reply under `work_dir/debug`.

    Raises:
        UniDPOError: a fault of config or input, a stage that the config has made stale, too many failures.
    """
    if run_stage is not None and continue_from_stage is not None:
        raise UniDPOError("--run-stage and --continue-from-stage exclude each other")
    if isinstance(config, str | Path):
        config = EngineConfig.load(config)
    elif not isinstance(config, EngineConfig):
        config = EngineConfig(config)
    work = WorkDir(work_dir)
    with work.locked():
        return _Run(config, work, questions, debug).go(run_stage, continue_from_stage)


class _Run:
    def __init__(self, config: EngineConfig, work: WorkDir, questions: Sequence[Question] | None, debug: bool) -> None:
        self.config = config
        self.work = work
        self.debug = work.debug if debug else None
        self.questions = _by_id(config, work, questions)
        self.manifest = work.manifest()
        self.report: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []

    def go(self, only: int | None, continue_from: int | None) -> EngineResult:
        wanted = range(continue_from or 0, len(STAGES)) if only is None else [only]
        for number in wanted:
            self.config.check_models(STAGES[number], list(self.questions.values()))
            if self.questions.keys() - self._log(number).rows.keys():
                self.config.check_servers(STAGES[number])
            if STAGES[number] == "reward":
                self.config.check_questions(list(self.questions.values()))
        known = self.manifest.get("stages", {})
        planned = plan_stages(self.config, self.questions.values(), known)
        self.manifest = {
            "versions": versions_of(PACKAGES),
            "seed": self.config.settings.seed,
            "questions": len(self.questions),
            "config": self.config.shown(),
            "stages": settle_stages(planned, known, self.work, only, continue_from),
        }
        self.work.write_manifest(self.manifest)
        pairs = None
        for number in wanted:
            if number == 0:
                self._collect(0, self._inputs())
            elif number == 1:
                self._collect(1, self._inputs(self._finished(0)))
            else:
                pairs = self._pair(self._finished(1))
        return EngineResult(pairs, self.report, self.warnings)

    def _log(self, number: int) -> StageLog:
        return StageLog(self.work.stage_path(number))

    def _inputs(self, sampled: Mapping[str, Row] | None = None) -> list[Row]:
        """Input rows of a stage, in the order of ids; with `sampled`, those that have answers."""
        rows = {key: {"id": key, "question": question.to_row()} for key, question in self.questions.items()}
        if sampled is None:
            return list(rows.values())
        answered = ((row, sampled[key]) for key, row in rows.items() if key in sampled)
        return [{**row, "answers": given["answers"], "cut": given.get("cut", [])} for row, given in answered]

    def _finished(self, number: int) -> dict[str, Row]:
        """The good rows of a stage that went through all of its input."""
        log = self._log(number)
        expected = self.questions.keys() if number == 0 else self._log(number - 1).succeeded().keys()
        if not log.succeeded() or expected - log.rows.keys():
            raise UniDPOError(
                f"stage {number} ({STAGES[number]}) is not finished in {self.work.folder}; "
                f"run without --run-stage, or --run-stage {number} first"
            )
        return log.succeeded()

    def _collect(self, number: int, inputs: list[Row]) -> None:
        """Do what is left of a stage, batch by batch, and note its counts."""
        log = self._log(number)
        done = log.succeeded()
        size = self.config.settings.batch_size
        parts = (inputs[start : start + size] for start in range(0, len(inputs), size))
        batches = ([row for row in part if row["id"] not in done] for part in parts)
        left = [batch for batch in batches if batch]
        count = sum(row["id"] in done for row in inputs)
        if left:
            self._check_cost(number, log)
        with tqdm(total=len(inputs), initial=count, desc=f"{number} {STAGES[number]}", unit="question") as bar:
            for index, (rows, usage) in enumerate(self._stream(STAGES[number], left), start=1):
                log.commit(rows, usage)
                bar.update(sum("failed" not in row for row in rows))
                if index < len(left):
                    self._check_cost(number, log)
                    self._check_failures(number, log)
        self._note_collected(number, log)
        self._check_failures(number, log, final=True)

    def _stream(self, stage: str, batches: list[list[Row]]) -> Iterator[tuple[list[Row], Usage]]:
        if not batches:
            return
        if self.config.settings.engine == "ray" and self.config.roles(stage):
            from uni_dpo.engine.cluster import stream

            yield from stream(self.config, stage, batches, self.debug)
        else:
            from uni_dpo.engine.worker import Worker

            yield from map(Worker(self.config.raw, stage, self.debug), batches)

    def _check_cost(self, number: int, log: StageLog) -> None:
        limit = self.config.settings.max_cost
        others = [entry for stage, entry in self.manifest["stages"].items() if stage != STAGES[number]]
        spent = log.usage.cost + sum(e.get("counts", {}).get("usage", {}).get("cost", 0.0) for e in others)
        if limit is not None and spent >= limit:
            raise UniDPOError(
                f"spent {spent:.4f} of max_cost {limit:g}: stopped. What is done is kept; raise max_cost and run again"
            )

    def _check_failures(self, number: int, log: StageLog, *, final: bool = False) -> None:
        """Stop where too many questions failed or left no usable answer: the data set would be too small."""
        tried = len(log.rows)
        if not final and tried < ENOUGH_TO_JUDGE:
            return
        reasons = [reason for row in log.rows.values() if (reason := _why_empty(row)) is not None]
        limit = self.config.settings.max_failed_share
        counted = f"stage {number} ({STAGES[number]}): {len(reasons)} of {tried} questions yielded nothing"
        if len(reasons) > limit * tried:
            commonest = max(sorted(set(reasons)), key=reasons.count)
            raise UniDPOError(
                f"{counted}, more than max_failed_share {limit:g} allows. Most often: {commonest}. "
                "What is done is kept: run again when the cause is removed"
            )
        if final and reasons:
            self.warnings.append(counted)

    def _note_collected(self, number: int, log: StageLog) -> None:
        """Write what was put aside to its own file, and the counts to report and manifest."""
        good = log.succeeded()
        aside = [{"id": key, **item} for key, row in sorted(good.items()) for item in row["aside"]]
        failed = [{"id": key, "reason": row["failed"]} for key, row in sorted(log.rows.items()) if key not in good]
        path = self.work.aside_path(number)
        if aside or failed or path.is_file():
            write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*aside, *failed]))
        reasons = [item["reason"] for item in aside]
        counts: dict[str, Any] = {
            "questions": len(good),
            "answers": sum(len(row["answers"]) for row in good.values()),
            "failed": len(failed),
            "aside": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "usage": asdict(log.usage),
        }
        if cut := log.usage.faults.get(CUT, 0):
            marked = sum(len(row.get("cut", ())) for row in good.values())
            known = marked + reasons.count("empty answer") >= cut  # an earlier version counted them and marked none
            never = known and not getattr(self.config.pairs, "allow_cut_answers", False)
            fate = "are never chosen, unless pairs.allow_cut_answers is true" if never else "may be chosen as they are"
            self.warnings.append(f"{cut:,} answers were cut at sample.max_tokens and {fate}; raise it to let them end")
        if STAGES[number] == "reward":
            counts["summary"] = self.config.pipeline_class.summarize([row["detail"] for row in good.values()])
        self._note(STAGES[number], counts)

    def _note(self, stage: str, counts: dict[str, Any]) -> None:
        self.report[stage] = counts
        self.manifest["stages"][stage]["counts"] = counts
        self.work.write_manifest(self.manifest)

    def _pair(self, scored: Mapping[str, Row]) -> Path:
        config = self.config
        pairs: list[Pair] = []
        rated: list[ScoredAnswer] = []
        choosable = may_be_chosen(config.pairs)
        unfit = 0
        for key in self.questions.keys() & scored.keys():
            found = [ScoredAnswer(**answer) for answer in scored[key]["answers"]]
            answers = [answer for answer in found if not any(token in answer.text for token in UNTRAINABLE)]
            unfit += len(found) - len(answers)
            rated += answers
            seed = derive_seed(config.settings.seed, "pair", key)
            made = config.pipeline_class.pair(key, answers, config.pairs, seed)
            barred = {answer.text for answer in answers if not choosable(answer)}
            pairs += [pair for pair in made if pair.chosen not in barred]
        pairs.sort(key=lambda pair: pair.question_id)
        kept = config.pipeline_class.balance(pairs, config.pairs)
        of = len({pair.question_id for pair in kept})
        cut = sum(answer.cut for answer in rated)
        self._note("pair", {"questions": of, "pairs": len(kept), "dropped": len(pairs) - len(kept), "cut answers": cut})
        cause = config.pipeline_class.undecided(rated)
        lost = [item for row in scored.values() for item in row["aside"]]
        if not kept:
            raise UniDPOError(f"no pairs came of {len(scored)} questions: {_why_none(rated, lost, choosable, cause)}")
        self.warnings += [cause] if cause else []
        if unfit:
            self.warnings.append(
                f"{unfit:,} answers hold a placeholder such as {UNTRAINABLE[0]}, which training takes for an image: "
                "they are left out"
            )
        name, instruction = config.settings.dataset.name, config.instruction
        path, warnings = write_dataset(self.work.dataset, name, self.questions, kept, instruction)
        self.warnings += warnings
        return path


def _by_id(config: EngineConfig, work: WorkDir, given: Sequence[Question] | None) -> dict[str, Question]:
    options = config.settings.input
    ordered = read_questions(options, work.images) if given is None else sort_questions(given, options.limit)
    check_media(ordered)
    by_id = {question.id: question for question in ordered}
    if len(by_id) != len(ordered):
        raise UniDPOError(f"of {len(ordered)} questions only {len(by_id)} have an id of their own")
    return by_id


def _why_empty(row: Row) -> str | None:
    """Why a row holds no usable answer; None where it holds one, or where nothing went wrong."""
    if "failed" in row:
        return str(row["failed"])
    if row["answers"] or not row["aside"]:
        return None
    return "; ".join(sorted({item["reason"] for item in row["aside"]}))


def _why_none(rated: Sequence[ScoredAnswer], lost: Sequence[Row], choosable: Choosable, cause: str | None) -> str:
    """Why no two answers of a whole run made a pair, and what to do about it; `lost` are replies put aside."""
    if len(lost) >= max(1, len(rated)):
        such = f"such as {lost[0]['reason']} in {lost[0]['text'][:80]!r}"
        return f"{len(lost):,} replies could not be read, {such}; look at aside, or take another model or prompt"
    barred, cut = sum(not choosable(answer) for answer in rated), "were cut at sample.max_tokens"
    let = "raise it, or set pairs.allow_cut_answers: true"
    if rated and barred == len(rated):
        return f"all {barred:,} answers {cut}, and a cut answer is never chosen; {let}"
    if cause:
        return f"{cause}; take another model, or other prompts"
    also = f"; {barred:,} of {len(rated):,} answers {cut} and never chosen: {let}" if barred else ""
    do = "look at 1-reward.jsonl, then lower pairs.min_gap or raise sample.n or sample.temperature"
    return f"the scores of their answers differ too little; {do}{also}"
