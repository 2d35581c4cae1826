"""`uni-dpo predict`: answer every question, keep what is done, write the file when all is done, say how good it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.image_state import OddImages
from uni_dpo.data.images import ImageChecker, ImagePaths
from uni_dpo.data.questions import InputOptions, Question, read_questions
from uni_dpo.data.tables.writing import write_rows
from uni_dpo.engine.asking import Template, load_template
from uni_dpo.graders.grading import check_references, load_grader
from uni_dpo.inference.loop import Ask, ask_all, replies_for
from uni_dpo.inference.settings import PredictSettings
from uni_dpo.models.backends import Backend, Failure, Request, Sample, Sampling, make_backend
from uni_dpo.models.backends.base import parse_model, weights_of
from uni_dpo.models.backends.settings import check_videos
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.report.statistics import mean_interval
from uni_dpo.settings.options import fingerprinted
from uni_dpo.storage.identity import contents, derive_seed, digest
from uni_dpo.storage.rowlog import Row


@dataclass(frozen=True)
class PredictReport:
    """What was answered.

    Attributes:
        output: the file that was written.
        rows: questions answered.
        grades: of each question with a right answer in the file those of its samples, each from 0 to 1.
        cut: answers that were cut at the limit of tokens.
        seed: of the interval.
        warnings: what the user should know, one line each.
    """

    output: Path
    rows: int
    grades: tuple[tuple[float, ...], ...]
    cut: int = 0
    seed: int = 0
    warnings: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        lines = [f"warning: {line}" for line in self.warnings]
        lines += [f"questions answered: {self.rows:,}", f"output: {self.output}"]
        lines += [f"answers cut at the limit of tokens: {self.cut:,}; raise it"] if self.cut else []
        return lines + (accuracy_lines(self.grades, seed=self.seed) if self.grades else [])


def predict_file(settings: PredictSettings) -> PredictReport:
    """Answer the questions in `source` and write them, sorted by id, with answers and labels to `output`.

    A row of `output` has `id, question, images, prediction`, where the question has some `videos`, and where it has a
    right answer, `answer` and `correct`; with several samples also `predictions` and `grades`, of which `correct` is
    the mean. What is answered is kept beside `output` in `OUTPUT.answers.jsonl` until the file is written, so a run
    that was stopped resumes.

    Raises:
        UniDPOError: an output, question, image or reference that cannot be used (no model is loaded by then), or
            a question that the model's server did not answer.
    """
    output, seed, system = settings.output, settings.seed, settings.system
    model: dict[str, Any] = {"batch_size": settings.batch_size} if settings.backend == "transformers" else {}
    model |= {**settings.model_options, "backend": settings.backend, "model": settings.model}
    model |= {"base_url": settings.base_url} if settings.base_url else {}
    sampling = Sampling(settings.samples, settings.temperature, settings.top_p, max_tokens=settings.max_tokens)
    with replies_for(settings.source, output, "answers") as done:
        grade = load_grader(settings.grader)
        template = load_template(settings.prompt, gaps=("question",)) if settings.prompt else None
        backend, options = parse_model(model, "model_options")
        image_root = str(settings.image_root) if settings.image_root else None
        questions = read_questions(
            InputOptions(str(settings.source), image_root, settings.limit), output.parent / f"{output.stem}_images"
        )
        check_references(settings.grader, [question for question in questions if question.reference is not None])
        odd = _check_images(questions)
        check_videos(backend, options, questions)
        if backend in ("transformers", "vllm"):
            find_checkpoint(options.model, options.adapter)
        drawn = [fingerprinted(sampling), seed, *([system] if system else []), *([template.text] if template else [])]
        asked = digest([backend, fingerprinted(options), weights_of(options), *drawn])
        keys = {question.id: digest([question.to_row(), asked, *contents(question.images)]) for question in questions}
        ask_all(
            {keys[question.id]: question for question in questions},
            done,
            lambda: _asking(make_backend(model), sampling, seed, system, template),
            title="Answering",
            unit="questions",
            batch_size=settings.batch_size,
            called=lambda question: question.id,
        )
        replies = [done.rows[keys[question.id]] for question in questions]
        texts = [[part["text"] for part in (reply, *reply.get("more", ()))] for reply in replies]
        grades = [
            tuple(grade(text, question) or 0.0 for text in answers) if question.reference is not None else ()
            for question, answers in zip(questions, texts, strict=True)
        ]
        rows = [_row(*answered) for answered in zip(questions, texts, grades, strict=True)]
        write_rows(output, rows)
    cut = sum(not part.get("finished", True) for reply in replies for part in (reply, *reply.get("more", ())))
    return PredictReport(output, len(rows), tuple(filter(None, grades)), cut, seed, odd.warnings())


def _asking(
    backend: Backend, sampling: Sampling, seed: int, system: str | None, template: Template | None
) -> Ask[Question]:
    def ask(batch: Sequence[Question]) -> list[Row | Failure]:
        texts = [template.render(question=q.text) if template else q.text for q in batch]
        requests = [
            Request(text, q.images, derive_seed(seed, q.id), q.system or system, videos=q.videos)
            for text, q in zip(texts, batch, strict=True)
        ]
        return [
            reply if isinstance(reply, Failure) else _logged(reply) for reply in backend.generate(requests, sampling)
        ]

    return ask


def _logged(samples: Sequence[Sample]) -> Row:
    """A reply as it is kept: the first sample, and the others where there are some."""
    first, *more = ({"text": sample.text, "finished": sample.finished} for sample in samples)
    return {**first, "more": more} if more else first


def _check_images(questions: Sequence[Question]) -> OddImages:
    checker, odd = ImageChecker(ImagePaths()), OddImages()
    faults = []
    with checker.running():
        for question in questions:
            for place, state in enumerate(checker.states(question.images)):
                field = f"question {question.id}, image {place}"
                odd.add(state.odd, field)
                if state.kind:
                    faults.append(Fault(state.kind, field, state.found, state.advice))
    if faults:
        raise PreferenceDataError.of(faults)
    return odd


def _row(question: Question, texts: Sequence[str], grades: Sequence[float]) -> Row:
    row: Row = {"id": question.id, "question": question.text, "images": list(question.images)}
    row |= {"videos": question.to_row()["videos"]} if question.videos else {}
    row |= {"answer": question.reference} if grades else {}
    row |= {"prediction": texts[0]} | ({"predictions": list(texts)} if len(texts) > 1 else {})
    if grades:
        row |= {"correct": sum(grades) / len(grades)} | ({"grades": list(grades)} if len(grades) > 1 else {})
    return row


def pass_at(k: int, samples: Sequence[Sequence[float]]) -> float:
    """Estimate how probably at least one of k samples is right, without bias (arXiv 2107.03374, eq. 1).

    Args:
        k: from 1 to the number of samples of every question.
        samples: the grades of each question's samples; 1 is right, anything less is wrong.

    Raises:
        ValueError: a question has fewer than k samples, or there are none.
    """
    if not samples or k < 1 or any(len(grades) < k for grades in samples):
        raise ValueError(f"pass@{k} needs questions with at least {k} samples each")
    chances = []
    for grades in samples:
        wrong = sum(grade < 1 for grade in grades)
        chances.append(1 - comb(wrong, k) / comb(len(grades), k))
    return sum(chances) / len(chances)


def accuracy_lines(samples: Sequence[Sequence[float]], *, seed: int = 0) -> list[str]:
    """Say how right the answers are, a line per figure, from the grades (0 to 1) of each question's samples."""
    means = [sum(grades) / len(grades) for grades in samples]
    mean = sum(means) / len(means)
    low, high = mean_interval(means, seed=seed)
    fewest = min(map(len, samples))
    total = f"{sum(means):g} of {len(samples):,} with a label"
    drawn = "" if fewest == 1 else f", mean of {fewest} samples"
    lines = [f"accuracy: {mean:.1%} ({total}{drawn}; 95 % interval {low:.1%} to {high:.1%})"]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < fewest] + [fewest]
    return lines + ([f"pass@{k}: {pass_at(k, samples):.1%}" for k in ks] if fewest > 1 else [])
