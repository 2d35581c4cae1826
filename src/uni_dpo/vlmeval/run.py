"""The runner: every check first, then answers in batches, then VLMEvalKit's own scores, then one table."""

import gc
import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import without_reasoning
from uni_dpo.models.checkpoint import QWEN_FAMILIES, find_checkpoint
from uni_dpo.settings.reading import FaultCollector
from uni_dpo.storage.writing import holding, replacing
from uni_dpo.vlmeval.config import Config, ModelSettings, describe, parse_benchmark
from uni_dpo.vlmeval.kit import import_kit, texts_as_they_are
from uni_dpo.vlmeval.load import Loaded, load_benchmark
from uni_dpo.vlmeval.page import AnsweredRow, answered_rows, write_evaluation_page
from uni_dpo.vlmeval.results import Line, Results, write_results
from uni_dpo.vlmeval.rows import (
    AskedRow,
    Journal,
    Ranks,
    build_questions,
    checkpoint_identity,
    is_first_process,
    keep_whole_units,
    progress_bar,
    questions_digest,
)
from uni_dpo.vlmeval.score import EXACT, check_judge, score

if TYPE_CHECKING:
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat


@dataclass(frozen=True)
class Options:
    """How to run, apart from what is run."""

    judge: str = EXACT
    limit: int | None = None
    batch_size: int | None = None
    """`None` for `auto`."""
    checkout: Path | None = None
    """A VLMEvalKit checkout to use instead of the installed package."""
    allow_modified_data: bool = False
    skip_bad_rows: bool = False
    download: bool = False
    seed: int = 0
    """Of the bootstrap intervals."""


@dataclass(frozen=True)
class Job:
    """One model's questions from one benchmark."""

    loaded: Loaded
    questions: Sequence[AskedRow]
    skipped: int
    journal: Journal


def evaluate(config: Config, work_dir: str | Path, options: Options | None = None) -> Results:
    """Evaluate every model of a configuration on every benchmark of it.

    Answers, VLMEvalKit's files and the results are kept in `work_dir`. What a run has finished is used again by the
    next one with the same checkpoint, settings, rows and limit, and by no other.

    Returns:
        The table, also written to `results.json`, `results.md` and `results.csv`. Under torchrun only the first
        process has it complete.

    Raises:
        UniDPOError: an input is at fault, or another run is at work in `work_dir`; found before any weights are loaded.
    """
    options = options or Options()
    if (options.limit is not None and options.limit < 1) or (options.batch_size is not None and options.batch_size < 1):
        raise UniDPOError("limit and batch size must be at least 1")
    for settings in config.models.values():
        if settings.backend != "openai":
            find_checkpoint(settings.model_path, settings.adapter).of(QWEN_FAMILIES)
    work_dir = Path(work_dir)
    alone = holding(work_dir / ".lock", str(work_dir)) if is_first_process() else nullcontext()
    with alone:  # a second run would mix its answers with ours
        return _evaluate(config, work_dir, options)


def _evaluate(config: Config, work_dir: Path, options: Options) -> Results:
    version = import_kit(options.checkout)
    ranks = Ranks()
    check_judge(options.judge)
    loaded, faults = [], FaultCollector()
    allowed = {"allow_modified": options.allow_modified_data, "download": options.download}
    for benchmark in config.benchmarks.values():
        with faults.collecting():
            loaded.append(load_benchmark(benchmark, work_dir / "images", **allowed))
    faults.raise_any()
    if not ranks.first:
        ranks.wait()  # the first process unpacks the images
    models = {name: _model(settings) for name, settings in config.models.items()}
    jobs = {name: _plan(model, name, loaded, work_dir, options, ranks, version) for name, model in models.items()}
    if ranks.first:
        ranks.wait()
    lines = []
    answered: dict[tuple[str, str], list[AnsweredRow]] = {}
    for name in list(models):
        model = models.pop(name)
        for job in jobs[name]:
            lines.append(_run(model, name, job, options, ranks))
            if ranks.first:
                dataset = job.loaded.dataset
                rows = answered_rows(job.questions, dataset.data, job.journal.read(), str(dataset.TYPE))
                answered[name, job.loaded.benchmark.name] = rows
        del model
        gc.collect()  # free one model's memory before the next is loaded
    results = Results(lines, version, options.seed)
    if ranks.first:
        write_results(results, work_dir)
        write_evaluation_page(results, answered, work_dir)
    ranks.leave()
    return results


def evaluate_tables(
    models: Mapping[str, str | Path | Mapping[str, Any]],
    tables: Mapping[str, str | Path | Mapping[str, Any]],
    work_dir: str | Path,
    options: Options | None = None,
) -> Results:
    """Evaluate models on tables of one's own: `evaluate` without a configuration file.

    Args:
        models: name → model path, or settings as in the file.
        tables: name → TSV, or an entry as in the file (`path`, `type`, `prompt`, …).
        work_dir, options: as for `evaluate`.
    """
    entries = {name: m if isinstance(m, Mapping) else {"model_path": str(m)} for name, m in models.items()}
    data = {name: dict(t) if isinstance(t, Mapping) else {"path": str(t)} for name, t in tables.items()}
    config = Config(
        {name: ModelSettings.parse(entry, f"model.{name}") for name, entry in entries.items()},
        {name: parse_benchmark(name, entry, f"data.{name}", Path.cwd()) for name, entry in data.items()},
    )
    return evaluate(config, work_dir, options)


def _model(settings: ModelSettings) -> "Qwen2VLChat":
    from uni_dpo.vlmeval import qwen2_vl

    given = dict(vars(settings))
    model: Qwen2VLChat = getattr(qwen2_vl, given.pop("class_name"))(lazy=True, **given)
    if settings.backend == "openai":
        _ = model.backend  # is the server there?
    return model


def _plan(
    model: "Qwen2VLChat",
    name: str,
    loaded: Sequence[Loaded],
    work_dir: Path,
    options: Options,
    ranks: Ranks,
    version: str,
) -> list[Job]:
    """Build every question of one model and open the journal of each benchmark."""
    jobs, reasons = [], FaultCollector()
    for one in loaded:
        with reasons.collecting():
            questions, faults = build_questions(model, one, options.limit)
            faults = {**one.faults, **faults}
            if faults and not options.skip_bad_rows:
                raise UniDPOError(f"{_report(one.benchmark.name, faults)}. --skip-bad-rows evaluates the others")
            asked = keep_whole_units(one, questions, faults)
            if not asked:
                raise UniDPOError(f"{one.benchmark.name}: no row can be asked")
            if faults:
                ranks.say(f"left out: {_report(one.benchmark.name, faults)}")
            if alone := len(questions) - len(asked):
                ranks.say(f"{one.benchmark.name}: {alone} more rows left out, scored only with others")
            fingerprint = _fingerprint(model, one, asked, version)
            journal = Journal(work_dir / name / one.benchmark.name, fingerprint, ranks.rank)
            jobs.append(Job(one, asked, len(faults), journal))
    reasons.raise_any()
    return jobs


def _report(name: str, faults: Mapping[str, str]) -> str:
    first = "; ".join(itertools.islice(faults.values(), 3))
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f"{name}: {len(faults)} bad row{'s' * (len(faults) > 1)}: {first}{more}"


def _fingerprint(model: "Qwen2VLChat", loaded: Loaded, asked: Sequence[AskedRow], version: str) -> dict[str, Any]:
    served = {"server's name": model.model_path}
    return {
        "checkpoint": served if model.checkpoint is None else checkpoint_identity(model.checkpoint),
        "settings": model.settings.identity() | {"prompt_style": str(model.style)},
        "benchmark": describe(loaded.benchmark) | {"file": loaded.digest, "rows": len(asked)},
        "questions": questions_digest(asked),
        "vlmevalkit": version,
    }


def _run(model: "Qwen2VLChat", name: str, job: Job, options: Options, ranks: Ranks) -> Line:
    """Answer what is open and score; a failure of this benchmark leaves the others standing."""
    benchmark = job.loaded.benchmark.name
    line = Line(
        model=name,
        benchmark=benchmark,
        rows=len(job.questions),
        skipped=job.skipped,
        limit=options.limit,
        data=job.loaded.source,
        prompt_style=str(model.style or "server's"),
        wording=model.class_name,
    )
    try:
        answer(model, job, options, ranks, f"{name} on {benchmark}")
    except UniDPOError as error:
        if ranks.world > 1:
            raise  # the others wait for this process's rows; torchrun ends them
        return replace(line, reason=str(error))
    ranks.wait()
    if not ranks.first:
        return line
    asked = {question.index for question in job.questions}
    replies = job.journal.read()
    reasoned = sum(without_reasoning(replies[index]) != replies[index] for index in asked)
    line = replace(line, cut=len(job.journal.cut() & asked), reasoned=reasoned)
    try:
        with texts_as_they_are():
            return replace(line, score=score(job.loaded, write_predictions(job, name), options.judge))
    except UniDPOError as error:
        return replace(line, reason=str(error))


def answer(model: "Qwen2VLChat", job: Job, options: Options, ranks: Ranks, title: str) -> None:
    """Ask the questions that have no answer yet, longest first, and journal every batch."""
    done = job.journal.read()
    ordered = sorted(job.questions, key=lambda question: (-question.length(model), question.index))
    share = ordered[ranks.rank :: ranks.world]
    still_open = [question for question in share if question.index not in done]
    if not still_open:
        return
    dataset = job.loaded.dataset.dataset_name
    _ = model.backend  # load the weights before the clock of the progress bar starts
    finished_before = len(share) - len(still_open)
    with progress_bar(title, len(share), done=finished_before, shown=ranks.first) as progress:
        size = options.batch_size or model.backend.comfortable_batch
        for batch in (still_open[start : start + size] for start in range(0, len(still_open), size)):
            for position, said in model.answers([question.message for question in batch], dataset):
                job.journal.append(batch[position].index, said.text, cut=not said.finished)
                progress.update()


def write_predictions(job: Job, model_name: str) -> Path:
    """Write VLMEvalKit's own prediction file: rows without images, and `prediction` without reasoning."""
    from vlmeval.smp import dump, get_pred_file_format

    answers = job.journal.read()
    asked = {question.index for question in job.questions}
    frame = job.loaded.dataset.data
    frame = frame[[str(index) in asked for index in frame["index"]]].copy()
    frame["prediction"] = [without_reasoning(answers[str(index)]) or "" for index in frame["index"]]
    frame = frame.drop(columns="image", errors="ignore")
    path = job.journal.folder / f"{model_name}_{job.loaded.benchmark.name}.{get_pred_file_format()}"
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / path.name  # `dump` goes by the suffix, which the temporary file lacks
        dump(frame, str(named))
        shutil.copyfile(named, temporary)
    return path
