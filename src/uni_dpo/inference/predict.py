"""`uni-dpo predict`: answer every question, keep what is done, write the file when all is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.questions import InputOptions, Question, read_questions
from uni_dpo.data.tables.reading import source_files
from uni_dpo.data.tables.writing import keep_inputs, write_rows
from uni_dpo.engine.records import Row
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import Grader
from uni_dpo.models.backends.base import Failure, Request, Sampling, make_backend, parse_model
from uni_dpo.settings.options import fingerprinted
from uni_dpo.settings.registry import find
from uni_dpo.storage.identity import derive_seed, digest, weight_files
from uni_dpo.storage.rowlog import RowLog


@dataclass(frozen=True)
class PredictReport:
    """What was answered.

    Attributes:
        output: the file that was written.
        rows: questions answered.
        labelled: those with a right answer in the file.
        correct: the sum of the grades of the labelled ones, each from 0 to 1.
    """

    output: Path
    rows: int
    labelled: int
    correct: float

    @property
    def accuracy(self) -> float | None:
        """The mean grade of the labelled questions; None where there are none."""
        return self.correct / self.labelled if self.labelled else None

    def lines(self) -> list[str]:
        """The report, one line per fact."""
        lines = [f"questions answered: {self.rows:,}", f"output: {self.output}"]
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
) -> PredictReport:
    """Answer the questions in `source` and write them, sorted by id, with answers and labels to `output`.

    A row of `output` has `id, question, images, prediction`, and where the question has a right answer, `answer`
    and `correct`. What is answered is kept beside `output` in `OUTPUT.answers.jsonl` until the file is written, so
    a run that was stopped goes on where it stopped.

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

    Raises:
        UniDPOError: a question or image that cannot be used (no model is loaded by then), or a question that the
            model's server did not answer.
    """
    output = Path(output)
    keep_inputs(output, source_files(source))
    grade: Grader = find("grader", grader)
    extracted = output.parent / f"{output.stem}_images"
    questions = read_questions(InputOptions(path=str(source), image_root=image_root, limit=limit), extracted)
    _check_images(questions)
    backend, options = parse_model(model, "model")
    asked = digest([backend, fingerprinted(options), weight_files(str(options.model)), sampling.__dict__, seed])
    keys = {question.id: digest([question.to_row(), asked]) for question in questions}
    done = RowLog(output.with_name(f"{output.name}.answers.jsonl"))
    waiting = [question for question in questions if keys[question.id] not in done.rows]
    if waiting:
        _answer(waiting, keys, len(questions), done, model, sampling, seed, batch_size)
    rows = [_row(question, str(done.rows[keys[question.id]]["text"]), grade) for question in questions]
    write_rows(output, rows)
    done.path.unlink(missing_ok=True)
    labelled = [row["correct"] for row in rows if "correct" in row]
    return PredictReport(output, len(rows), len(labelled), sum(labelled))


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


def _answer(
    waiting: Sequence[Question],
    keys: Mapping[str, str],
    total: int,
    done: RowLog,
    model: Mapping[str, Any],
    sampling: Sampling,
    seed: int,
    batch_size: int,
) -> None:
    backend = make_backend(model)
    failures: list[str] = []
    with tqdm(desc="Answering", unit=" questions", total=total, initial=total - len(waiting)) as bar:
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            requests = [Request(q.text, q.images, derive_seed(seed, q.id)) for q in batch]
            rows: list[Row] = []
            for question, reply in zip(batch, backend.generate(requests, sampling), strict=True):
                if isinstance(reply, Failure):
                    failures.append(f"{question.id}: {reply.reason}")
                else:
                    rows.append({"id": keys[question.id], "text": reply[0].text})
            done.append(rows)
            bar.update(len(batch))
    if failures:
        shown = "\n".join(f"  {failure}" for failure in failures[:20])
        raise UniDPOError(
            f"{len(failures):,} questions have no answer; run the same command again to ask them:\n{shown}"
        )


def _row(question: Question, prediction: str, grade: Grader) -> Row:
    row: Row = {"id": question.id, "question": question.text, "images": list(question.images)}
    if question.reference is None:
        return row | {"prediction": prediction}
    return row | {
        "answer": question.reference,
        "prediction": prediction,
        "correct": grade(prediction, question) or 0.0,
    }
