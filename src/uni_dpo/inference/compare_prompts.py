"""The prompts that both models answer: `id`, `prompt`, and `images` where there are any."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.tables.reading import Row, iter_rows
from uni_dpo.errors import UniDPOError


@dataclass(frozen=True)
class Prompt:
    """One prompt; `id` is the file's own, a number or a text, and `images` are paths of files that are images."""

    id: int | str
    text: str
    images: tuple[str, ...] = ()


def read_prompts(file: str | Path, *, image_root: str | Path | None = None) -> list[Prompt]:
    """Read all prompts of a table, in its order.

    Args:
        file: rows with `prompt`, an `id` in every row or in none (then rows are numbered from 1), and `images`.
        image_root: where image paths start, and which none may leave; None takes them from the file's folder.

    Raises:
        UniDPOError: a row without a text or with the id of another, or an image that is none.
    """
    file = Path(file)
    rows = list(iter_rows(file))
    numbered = all(row.get("id") is None for row in rows)
    checker = ImageChecker(image_root or file.parent, image_root)
    with checker.running():
        prompts = [
            _prompt(row if not numbered else row | {"id": number}, checker, f"{file}, row {number - 1}")
            for number, row in enumerate(rows, start=1)
        ]
    if not prompts:
        raise UniDPOError(f"{file}: holds no prompts")
    seen: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if str(prompt.id) in seen:
            raise UniDPOError(f"{file}, row {index}, id: {prompt.id!r} is that of row {seen[str(prompt.id)]} too")
        seen[str(prompt.id)] = index
    return prompts


def _prompt(row: Row, checker: ImageChecker, where: str) -> Prompt:
    identity: Any = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise UniDPOError(f"{where}, id: {identity!r}; give every row a number or a text, or none")
    text = row.get("prompt")
    # The placeholder says where an image stands; the model's own template puts it in front.
    text = text.replace(IMAGE_TOKEN, "").strip() if isinstance(text, str) else None
    if not text:
        raise UniDPOError(f"{where}, prompt: {row.get('prompt')!r}; a text belongs there")
    images = row.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise UniDPOError(f"{where}, images: {images!r}; a list of paths belongs there")
    for image, state in zip(images, checker.states(images), strict=True):
        if state.kind:
            raise UniDPOError(f"{where}, images, {image}: {state.found}; {state.advice}")
    return Prompt(identity, text, tuple(str(checker.resolve(image)) for image in images))
