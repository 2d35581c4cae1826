"""A first configuration for what lies in a folder: questions with images, or pairs; a checkpoint; a GPU or none."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Any, Literal

from uni_dpo.data.checks.lengths import model_limits
from uni_dpo.data.image_state import ImageLimits
from uni_dpo.data.questions import InputOptions, Question, questions_in_order
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.machine import has_accelerator
from uni_dpo.settings.options import as_number
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text

Language = Literal["en", "zh"]
TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_MODEL = "Qwen/Qwen2-VL-2B-Instruct"
TABLES = (".jsonl", ".json", ".parquet", ".csv", ".arrow")
"""How the names of files of rows end."""
_LOOKED_AT = 200
_HELD_OUT = re.compile(r"(test|val|valid|validation|dev|eval|held_out)(?![a-z])", re.IGNORECASE)
"""How the names of files begin that are not there to learn from."""
_TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl", "llava": "llava"}
"""`model_type` → LlamaFactory's template."""


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        file: of questions or pairs.
        kind: which of them.
        rows: the first of its questions; none of pairs.
        model: a checkpoint in the folder or beside the file.
    """

    file: Path
    kind: Literal["questions", "pairs"]
    rows: tuple[Question, ...]
    model: Path | None


def write_config(
    folder: str | Path, *, language: Language = "en", model: str | None = None, judge: str | None = None,
    judge_model: str = "judge",
) -> tuple[Path, list[str]]:  # fmt: skip
    """Write a commented configuration for what is in a folder.

    Args:
        folder: where the data lie; `align.yaml`, or for pairs `train.yaml`, is written there.
        language: of the comments.
        model: folder or hub name of the checkpoint; without it, one that lies there.
        judge: address of a server that scores answers, up to `/v1`; without it right answers do, where there are some.
        judge_model: the judge's name on its server.

    Returns:
        The file, and the commands that come next.

    Raises:
        UniDPOError: nothing in the folder can be used, or the file is there already.
    """
    folder = Path(folder)
    found = look(folder)
    name = "align" if found.kind == "questions" else "train"
    path = folder / f"{name}.yaml"
    if path.exists():
        raise UniDPOError(f"{path} is there already; delete it, or rename it, to begin again")
    chosen = model or str(found.model or DEFAULT_MODEL)
    words = _machine(language) | _model(chosen) | {"config": _typed(path), "found": _said(found, language)}
    words |= {"folder": _typed(folder), "work_dir": _scalar(str(folder / "outputs"))}
    if found.kind == "pairs":
        words |= {"pairs": _typed(found.file), "dataset_dir": _scalar(str(folder))}
        follow = [line.removeprefix("#   ") for line in _text("train", "en", words).splitlines() if line[:4] == "#   "]
    else:
        words |= _questions(found, judge, judge_model) | {
            "pixels": indent(words["pixels"], "  ", lambda line: line != "#-")
        }
        file = words["config"]
        follow = [f"uni-dpo doctor {file}", f"uni-dpo align {file} --plan", f"uni-dpo align {file}"]
    text = "\n".join(line for line in _text(name, language, words).splitlines() if line.strip() != "#-")
    write_text(path, text + "\n")
    return path, follow


def look(folder: Path) -> Found:
    """Find the first file of questions or pairs in a folder, and a checkpoint; those called after a test come last.

    Raises:
        UniDPOError: there is no such folder, or nothing to use in it; the message says what was looked at.
    """
    if not folder.is_dir():
        raise UniDPOError(f"{folder}: there is no such folder; name one with questions and images, or with pairs")
    models = [place for place in _folders(folder) if "model_type" in read_json(place / "config.json")]
    model = models[0] if models else None
    looked: list[str] = []
    places = [place for place in _folders(folder) if place not in models]
    files = [file for place in places for file in sorted(place.iterdir()) if file.suffix in TABLES and file.is_file()]
    for file in sorted(files, key=lambda file: _HELD_OUT.match(file.stem) is not None):
        try:
            first = next(iter_rows(file), None)
        except UniDPOError:
            first = None
        if first is None:
            looked.append(f"{file}: holds no rows that can be read")
            continue
        if "chosen" in first and "rejected" in first:
            return Found(file, "pairs", (), model)
        try:
            asked = questions_in_order(InputOptions(path=str(file)), folder / "images")
            if rows := tuple(question for question, _ in islice(asked, _LOOKED_AT)):
                return Found(file, "questions", rows, model)
        except UniDPOError as error:
            faults = getattr(error, "faults", ())
            looked.append(str(faults[0]) if faults else str(error).splitlines()[0])
    reasons = "".join(f"\n  {reason}" for reason in looked)
    raise UniDPOError(
        f"{folder}: there is no file of questions (columns `question`, `images`) or of pairs (`chosen`, `rejected`) in "
        f"it; files may end in {', '.join(TABLES)}{reasons}"
    )


def _folders(folder: Path) -> list[Path]:
    return [folder, *sorted(place for place in folder.iterdir() if place.is_dir() and place.name[0] != ".")]


def _text(name: str, language: Language, words: dict[str, str]) -> str:
    text = (TEMPLATES / f"{name}.{language}.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(words)


def _machine(language: Language) -> dict[str, str]:
    if has_accelerator():
        said = {"en": "a GPU was found", "zh": "找到了 GPU"}
        found = {"bf16": "true", "batch": "64", "per_device": "1", "accumulation": "16"}
    else:
        said = {"en": "no GPU was found", "zh": "没有找到 GPU"}
        found = {"bf16": "false", "batch": "16", "per_device": "4", "accumulation": "2"}
    return found | {"device": said[language]}


def _model(model: str) -> dict[str, str]:
    """What depends on the checkpoint: template, image sizes as its processor has them, learning rate."""
    folder = Path(model)
    family = str(read_json(folder / "config.json").get("model_type", "qwen2_vl"))
    limits = model_limits(folder, ImageLimits())
    least, most = limits.processor_min, limits.processor_max
    # Sampling and training should see images of one size; LlamaFactory's limit counts where it is the smaller.
    own = most < limits.max_pixels
    pixels = f"image_max_pixels: {most}\nimage_min_pixels: {min(least, most)}" if own else "#-"
    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 100e6 if folder.is_dir() else False
    template = _TEMPLATES.get(family, family)
    return {"model": _scalar(model), "template": template, "pixels": pixels, "rate": "1.0e-3" if small else "1.0e-5"}


def _questions(found: Found, judge: str | None, judge_model: str) -> dict[str, str]:
    answered = all(question.reference is not None for question in found.rows)
    grader = _grader(found.rows) if answered else "exact"
    relative = any(not Path(str(image)).is_absolute() for image in _written_images(found.file))
    by_judge = judge is not None or not answered
    address = judge or "http://localhost:8000/v1"
    evaluate = f"{{by: answers, grader: {grader}, max_tokens: 128}}" if answered else "{by: score, max_tokens: 128}"
    served = f"    judge: {{backend: openai, model: {_scalar(judge_model)}, base_url: {_scalar(address)}}}"
    return {
        "questions": _scalar(str(found.file)),
        "image_root": _scalar(str(found.file.parent)) if relative else "null",
        "share": "0.2" if len(found.rows) < _LOOKED_AT else "0.1",
        "pipeline": "judge" if by_judge else "verifiable",
        "judge": served if by_judge else "#-",
        "reward": "#-" if by_judge else f"  reward: {{grader: {grader}, low: 0, high: 10}}",
        "tokens": "64" if answered and grader != "exact" else "128",
        "evaluate": evaluate,
    }


def _grader(rows: tuple[Question, ...]) -> str:
    """The grader that fits the questions' right answers."""
    if all(question.options for question in rows):
        return "multiple_choice"
    return "numeric" if all(as_number(question.reference) is not None for question in rows) else "exact"


def _written_images(file: Path) -> Iterator[Any]:
    """Image paths as the first rows have them."""
    from uni_dpo.data.columns import IMAGE_COLUMNS, first_filled

    for row in islice(iter_rows(file), _LOOKED_AT):
        images = first_filled(row, IMAGE_COLUMNS)
        yield from (image for image in (images if isinstance(images, list) else [images]) if isinstance(image, str))


def _said(found: Found, language: Language) -> str:
    count = f"{len(found.rows)}" + ("+" if len(found.rows) == _LOOKED_AT else "")
    pictured = sum(bool(question.images) for question in found.rows)
    answered = sum(question.reference is not None for question in found.rows)
    if found.kind == "pairs":
        return f"pairs: {found.file.name}" if language == "en" else f"偏好对：{found.file.name}"
    if language == "en":
        return f"{count} questions, {pictured} with images, {answered} with a right answer"
    return f"{count} 个问题，{pictured} 个带图像，{answered} 个有正确答案"


def _typed(path: Path) -> str:
    """A path as it is typed into a shell, after a command's name."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _scalar(text: str) -> str:
    """A text as YAML in flow style has it: quoted where it has to be."""
    plain = (all(letter.isalnum() or letter in "/._-" for letter in text) and text[0].isalpha()) or text.startswith("/")
    return text if plain and "://" not in text else json.dumps(text, ensure_ascii=False)
