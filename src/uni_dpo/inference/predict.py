"""`uni-dpo predict`: answer every question, keep what is done, write the file when all is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.questions import InputOptions, Question, read_questions
from uni_dpo.data.tables.writing import write_rows
from uni_dpo.graders.grading import Grader, check_references, load_grader
from uni_dpo.inference.loop import Ask, ask_all, replies_for
from uni_dpo.models.backends.base import Backend, Failure, Request, Sampling, make_backend, parse_model, weights_of
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.settings.options import fingerprinted
from uni_dpo.storage.identity import derive_seed, digest
from uni_dpo.storage.rowlog import Row


@dataclass(frozen=True)
class PredictReport:
    """What was answered.

    Attributes:
        output: the file that was written.
        rows: questions answered.
        labelled: those with a right answer in the file.
        correct: the sum of the grades of the labelled ones, each from 0 to 1.
        cut: answers that were cut at the limit of tokens.
    """

    output: Path
    rows: int
    labelled: int
    correct: float
    cut: int = 0

    @property
    def accuracy(self) -> float | None:
        """The mean grade of the labelled questions; None where there are none."""
        return self.correct / self.labelled if self.labelled else None

    def lines(self) -> list[str]:
        """The report, one line per fact."""
        lines = [f"questions answered: {self.rows:,}", f"output: {self.output}"]
        lines += [f"answers cut at the limit of tokens: {self.cut:,}; raise it"] if self.cut else []
        if self.accuracy is None:
            return lines
        return [*lines, f"accuracy: {self.accuracy:.1%} ({self.correct:g} of {self.labelled:,} with a label)"]


def predict_file(
    source: str | Path,
    output: str | Path,
    model: Mapping[str, Any],
    *,
    sampling: Sampling,
    grader: str = "exact",
    image_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    system: str | None = None,
) -> PredictReport:
    """Answer the questions in `source` and write them, sorted by id, with answers and labels to `output`.

    A row of `output` has `id, question, images, prediction`, and where the question has a right answer, `answer`
    and `correct`. What is answered is kept beside `output` in `OUTPUT.answers.jsonl` until the file is written, so
    a run that was stopped resumes.

    Args:
        source: a file that `uni_dpo.data.questions` reads: a question, its images, and maybe its answer per row.
        output: a .json, .jsonl or .parquet file.
        model: what an entry under `models:` of an engine config says.
        sampling: how answers are drawn, one per question.
        grader: exact, numeric, multiple_choice, or `package.module:function`.
        image_root: where image paths start, and which none may leave.
        limit: only the first so many questions.
        seed: of everything drawn.
        batch_size: questions per request to the backend.
        system: the system prompt of rows that have none of their own; None for what the chat template does by itself.

    Raises:
        UniDPOError: an output, question, image or reference that cannot be used (no model is loaded by then), or
            a question that the model's server did not answer.
    """
    output = Path(output)
    with replies_for(source, output, "answers") as done:
        grade = load_grader(grader)
        extracted = output.parent / f"{output.stem}_images"
        questions = read_questions(InputOptions(path=str(source), image_root=image_root, limit=limit), extracted)
        check_references(grader, [question for question in questions if question.reference is not None])
        _check_images(questions)
        backend, options = parse_model(model, "model")
        if backend in ("transformers", "vllm"):
            find_checkpoint(options.model, options.adapter)
        drawn = [fingerprinted(sampling), seed, *([system] if system else [])]
        asked = digest([backend, fingerprinted(options), weights_of(options), *drawn])
        keys = {question.id: digest([question.to_row(), asked]) for question in questions}
        ask_all(
            {keys[question.id]: question for question in questions},
            done,
            lambda: _asking(make_backend(model), sampling, seed, system),
            title="Answering",
            unit="questions",
            batch_size=batch_size,
            called=lambda question: question.id,
        )
        replies = [done.rows[keys[question.id]] for question in questions]
        rows = [_row(question, reply["text"], grade) for question, reply in zip(questions, replies, strict=True)]
        write_rows(output, rows)
    labelled = [row["correct"] for row in rows if "correct" in row]
    cut = sum(not reply.get("finished", True) for reply in replies)
    return PredictReport(output, len(rows), len(labelled), sum(labelled), cut)


def _asking(backend: Backend, sampling: Sampling, seed: int, system: str | None) -> Ask[Question]:
    def ask(batch: Sequence[Question]) -> list[Row | Failure]:
        requests = [Request(q.text, q.images, derive_seed(seed, q.id), q.system or system) for q in batch]
        return [
            reply if isinstance(reply, Failure) else {"text": reply[0].text, "finished": reply[0].finished}
            for reply in backend.generate(requests, sampling)
        ]

    return ask


def _check_images(questions: Sequence[Question]) -> None:
    checker = ImageChecker(Path())
    faults = []
    with checker.running():
        for question in questions:
            for place, state in enumerate(checker.states(question.images)):
                if state.kind:
                    field = f"question {question.id}, image {place}"
                    faults.append(Fault(state.kind, field, state.found, state.advice))
    if faults:
        raise PreferenceDataError.of(faults)


def _row(question: Question, prediction: str, grade: Grader) -> Row:
    row: Row = {"id": question.id, "question": question.text, "images": list(question.images)}
    if question.reference is None:
        return row | {"prediction": prediction}
    return row | {
        "answer": question.reference,
        "prediction": prediction,
        "correct": grade(prediction, question) or 0.0,
    }
