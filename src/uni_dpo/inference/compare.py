"""Both models' answers to the same prompts, by id, and the page and table that show them side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uni_dpo.data.formats.stance import count_stances
from uni_dpo.data.images import ImageChecker, image_paths
from uni_dpo.data.questions import InputOptions, Question, questions_in_order
from uni_dpo.data.tables.reading import Row, iter_rows
from uni_dpo.data.videos import Video
from uni_dpo.errors import UniDPOError, plain
from uni_dpo.inference.loop import Ask, ask_all
from uni_dpo.models.backends import Failure, Request, Sampling, make_backend
from uni_dpo.models.checkpoint import adapter_base, find_checkpoint, is_adapter
from uni_dpo.report.page import Thumbnails
from uni_dpo.report.page import page as report_page
from uni_dpo.settings.options import fingerprinted
from uni_dpo.storage import read_json
from uni_dpo.storage.identity import contents, derive_seed, digest, file_stamps
from uni_dpo.storage.rowlog import RowLog
from uni_dpo.storage.writing import holding

if TYPE_CHECKING:
    from rich.table import Table


ORIGINAL, TRAINED = "response_from_original_model", "response_from_trained_model"


@dataclass(frozen=True)
class Prompt:
    """One prompt; `id` is the file's own, a number or a text, and `images` are paths of files that are images."""

    id: int | str
    text: str
    images: tuple[str, ...] = ()
    system: str | None = None
    videos: tuple[Video, ...] = ()


def read_prompts(
    file: str | Path, *, image_root: str | Path | None = None, extracted: str | Path | None = None
) -> list[Prompt]:
    """Read all prompts of a table, in its order; rows have an id each, or none has one and they are numbered from 1.

    Args:
        image_root: where image paths start, and which none may leave; None takes them from the file's folder.
        extracted: folder for images that are in the rows; None writes them beside the file.

    Raises:
        UniDPOError: a row without a text or with the id of another, or an image that is none.
    """
    file = Path(file)
    options = InputOptions(str(file), None if image_root is None else str(image_root))
    found = list(questions_in_order(options, Path(extracted or file.with_name(f"{file.stem}_images"))))
    if not found:
        raise UniDPOError(f"{file}: holds no prompts")
    numbered = all(identity is None for _, identity in found)
    seen: dict[str, Question] = {}
    prompts = []
    checker = ImageChecker(image_paths(file.parent))
    with checker.running():
        for number, (question, identity) in enumerate(found, start=1):
            identity = number if numbered else identity
            if isinstance(identity, bool) or not isinstance(identity, int | str):
                raise UniDPOError(f"{question.place}, id: {identity!r}; give every row a number or a text, or none")
            if other := seen.get(str(identity)):
                place = other.place.removeprefix(f"{file}, ")
                raise UniDPOError(f"{question.place}, id: {identity!r} is also that of {place}; make ids unique")
            seen[str(identity)] = question
            for image, state in zip(question.images, checker.states(question.images), strict=True):
                if state.kind:
                    raise UniDPOError(f"{question.place}, images, {image}: {state.found}; {state.advice}")
            prompts.append(Prompt(identity, question.text, question.images, question.system or None, question.videos))
    return prompts


@dataclass(frozen=True)
class Models:
    """The model before training and the one after it.

    Attributes:
        original: a checkpoint's folder, or a name that transformers knows.
        trained: likewise, or the folder of a LoRA adapter, which lies on `original`.
    """

    original: str
    trained: str

    @classmethod
    def find(cls, trained: str, original: str | None = None) -> "Models":
        """Tell an adapter, which names its own `original`, from a whole model by its files.

        Raises:
            UniDPOError: a whole model without `original`, or an adapter that cannot be read or names no base.
        """
        if original is None and not is_adapter(Path(trained)):
            raise UniDPOError(f"{trained}: is no LoRA adapter, so name the model before training with --original")
        return cls(original or str(adapter_base(Path(trained))), trained)

    def entries(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Name both models as an entry under `models:` of an engine config does."""
        lies_on = {"model": self.original, "adapter": self.trained}
        return {"model": self.original}, lies_on if is_adapter(Path(self.trained)) else {"model": self.trained}

    def versions(self) -> tuple[Any, Any]:
        """Return what tells one state of each model from the next: its name, and the sizes and times of its files."""
        return _version(self.original), (_version(self.original), _version(self.trained))


def training_facts(trained: str | Path, pairs: str | Path | None = None) -> list[str]:
    """Say how `trained` was trained, as far as its `trainer_state.json` and the pairs that it was trained on tell.

    Raises:
        UniDPOError: `pairs` cannot be read.
    """
    facts = []
    state = Path(trained) / "trainer_state.json"
    if state.is_file() and isinstance(epoch := read_json(state).get("epoch"), int | float):
        facts.append(f"epochs: {epoch:g}")
    if pairs is not None:
        rows = list(iter_rows(pairs))
        facts.append(f"pairs: {len(rows):,}")
        # The table of an exercise on stances has `position` in its rows.
        if rows and all(row.get("position") in ("support", "oppose") for row in rows):
            facts.append(f"support ratio: {count_stances(rows)['support'] / len(rows):.2f}")
    return facts


def _version(name: str) -> Any:
    return name, [*file_stamps(name, (".safetensors",)), *file_stamps(name, (".json",))]


def compare(
    prompts: Sequence[Prompt],
    models: Models,
    folder: str | Path,
    sampling: Sampling,
    *,
    seed: int = 0,
    batch_size: int = 8,
    **options: Any,
) -> list[dict[str, Any]]:
    """Let both models answer every prompt, with the same random numbers where answers are drawn.

    Args:
        folder: keeps the answers of an unfinished run; those given already are not asked for again while prompts,
            models and settings are the same.
        sampling: how answers are drawn; `n` is 1.
        batch_size: prompts at once.
        options: further settings of the engine's `transformers` backend.

    Returns:
        One row per prompt, in their order: `id`, `prompt`, both responses (only what the model wrote, without the
        prompt and without special tokens), and `images` and `videos` where the prompt has some.
    """
    for entry in models.entries():
        find_checkpoint(entry["model"], entry.get("adapter"))
    asked = [[p.id, p.text, p.images, *filter(None, (p.system, p.videos)), *contents(p.images)] for p in prompts]
    by_id = {str(prompt.id): prompt for prompt in prompts}
    settings = {"backend": "transformers", "batch_size": batch_size, **options}
    logs = []
    with holding(Path(folder) / ".lock", str(folder)):
        for name, entry, version in zip(("original", "trained"), models.entries(), models.versions(), strict=True):
            state = digest([asked, version, fingerprinted(sampling), seed, options])
            log = RowLog(Path(folder) / f"{name}-{state}.jsonl")
            ask_all(
                by_id,
                log,
                partial(_asking, {**settings, **entry}, sampling, seed),
                title=f"The {name} model answers",
                unit="prompts",
                batch_size=batch_size,
                called=lambda prompt: prompt.id,
            )
            logs.append(log)
    return [_row(prompt, *(log.rows[key]["response"] for log in logs)) for key, prompt in by_id.items()]


def _asking(model: Mapping[str, Any], sampling: Sampling, seed: int) -> Ask[Prompt]:
    backend = make_backend(model)

    def ask(batch: Sequence[Prompt]) -> list[Row | Failure]:
        requests = [Request(p.text, p.images, derive_seed(seed, str(p.id)), p.system, videos=p.videos) for p in batch]
        replies = backend.generate(requests, sampling)
        return [reply if isinstance(reply, Failure) else {"response": reply[0].text} for reply in replies]

    return ask


def _row(prompt: Prompt, original: str, trained: str) -> dict[str, Any]:
    row = {"id": prompt.id, "prompt": prompt.text, ORIGINAL: original, TRAINED: trained}
    more = {"system": prompt.system, "images": list(prompt.images), "videos": list(prompt.videos)}
    return row | {name: value for name, value in more.items() if value}


def changed(rows: Sequence[Row]) -> int:
    """Tell how many answers differ."""
    return sum(row[ORIGINAL] != row[TRAINED] for row in rows)


def table(rows: Sequence[Row]) -> "Table":
    """Return the answers side by side, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    side_by_side = Table("id", "prompt", "original model", "trained model", show_lines=True)
    for row in rows:
        side_by_side.add_row(*(Text(plain(str(row[name]))) for name in ("id", "prompt", ORIGINAL, TRAINED)))
    return side_by_side


def page(rows: Sequence[Row], title: str, facts: Sequence[str] = ()) -> str:
    """Return the answers side by side, and how the model was trained, as one HTML page that needs nothing beside it."""
    thumbnails = Thumbnails(side=240)  # pixels, of the longest side
    count, all_rows, known = f"{changed(rows):,}", f"{len(rows):,}", ", ".join(facts)
    columns: dict[str, list[Any]] = {
        "pair": [str(row["id"]) for row in rows],
        "question": [row["prompt"] for row in rows],
        "chosen": [row[ORIGINAL] for row in rows],
        "rejected": [row[TRAINED] for row in rows],
        "paths": [", ".join(row.get("images", [])) for row in rows],
        "images": [[thumbnails.place(path) for path in row.get("images", [])] for row in rows],
        "groups": [1 if row[ORIGINAL] != row[TRAINED] else 2 for row in rows],
    }
    data = {
        "pairs": columns,
        "images": thumbnails.images,
        "groups": ["differs", "same"],
        "answers": ["original model", "trained model"],
        "summary": {
            "en": (f"Trained with {known}. " if facts else "") + f"{count} of {all_rows} answers differ.",
            "zh": (f"训练数据：{known}。" if facts else "") + f"{all_rows} 个回答中有 {count} 个不同。",
        },
    }
    return report_page(title, data)
