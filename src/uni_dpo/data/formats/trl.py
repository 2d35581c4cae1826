"""TRL's preference layouts and UltraFeedback's: `prompt, chosen, rejected, images`, as messages or as plain texts."""

from collections.abc import Callable, Iterator

from uni_dpo.data.cells import Turn, placed_images, turns_of
from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import IMAGE_COLUMNS, first_filled
from uni_dpo.data.dataset_info import OPENAI_TAGS
from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    count_losses,
    count_message_losses,
    id_of,
    images_of,
    optional,
    refuse,
    score_of,
    text_only,
)
from uni_dpo.data.formats.llamafactory import message_list
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row


def read(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """Yield the pair in a row of any of the layouts.

    Texts or messages, the prompt apart or at the start of both answers.
    """
    prompt = first_filled(row, ("prompt", "instruction", "question"))
    count_message_losses(losses, prompt, row.get("chosen"), row.get("rejected"))
    asked = [] if prompt is None else turns_of(prompt, "prompt", "user")
    (*before, better), (*others, worse) = (_conversation(asked, row, name) for name in ("chosen", "rejected"))
    if before != others:
        found = "its turns before the last are not those of `chosen`"
        refuse("rejected", found, "give both answers the same conversation, or leave the row out with --skip-broken")
    system = [turn for turn in before if turn.role == "system"]
    turns = [turn for turn in before if turn.role != "system"]
    _check_turns(turns, system, better, worse)
    turns, images = placed_images(turns, images_of(row, *IMAGE_COLUMNS))
    texts = [turn.text for turn in turns]
    yield PreferencePair(
        texts[-1],
        better.text,
        worse.text,
        score_of(row, "score_chosen", "chosen_rating", "chosen-rating", "chosen_score"),
        score_of(row, "score_rejected", "rejected_rating", "rejected-rating", "rejected_score"),
        images,
        id_of(row, losses, "prompt_id", "id"),
        "\n".join(turn.text for turn in system),
        tuple(zip(texts[:-1:2], texts[1::2], strict=True)),
    )


def _conversation(asked: list[Turn], row: Row, column: str) -> list[Turn]:
    """The whole conversation that ends with the answer under `column`; some layouts repeat the prompt there."""
    said = turns_of(row.get(column), column, "assistant")
    if said[-1].role != "assistant":
        refuse(column, f"ends with role {said[-1].role!r}", "the answer comes last")
    known = {(turn.role, turn.text.strip()) for turn in said}
    repeats = len(said) > 1 and all((turn.role, turn.text.strip()) in known for turn in asked)
    return said if repeats else [*asked, *said]


def _check_turns(turns: list[Turn], system: list[Turn], better: Turn, worse: Turn) -> None:
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        refuse("prompt", f"roles {roles}", "user and assistant alternate and the user comes last")
    if any(turn.images for turn in (better, worse, *system)):
        refuse("chosen / rejected", "an image in an answer or in the system prompt", "images belong to the question")


def write(pair: PreferencePair, losses: Losses) -> Row:
    """Return messages whose contents are lists of parts, as TRL's vision models want them, also without an image."""
    count_losses(pair, losses, "scores", "system", "history", "images", "id")
    images = {"images": list(pair.images)} if pair.images else {}
    return _as_messages(pair, _parts) | images | optional(pair)


def write_text(pair: PreferencePair, losses: Losses) -> Row:
    """Return messages whose contents are texts, as TRL's text models want them."""
    count_losses(pair, losses, "scores", "system", "history", "id")
    return _as_messages(text_only(pair), str) | optional(pair)


def write_ultrafeedback(pair: PreferencePair, losses: Losses) -> Row:
    """Return two whole conversations and their ratings."""
    count_losses(pair, losses, "scores", "system", "history", "id")
    pair = text_only(pair)
    before = message_list(pair, OPENAI_TAGS)
    row: Row = {"prompt": pair.instruction}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row[name] = [*before, {"role": "assistant", "content": answer}]
    return row | optional(pair, id="prompt_id", score=("chosen_rating", "rejected_rating"))


def _as_messages(pair: PreferencePair, content: Callable[[str], object]) -> Row:
    prompt = [m | {"content": content(m["content"])} for m in message_list(pair, OPENAI_TAGS)]
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {"prompt": prompt} | {
        name: [{"role": "assistant", "content": content(text)}] for name, text in answers.items()
    }


def _parts(text: str) -> list[dict[str, str | None]]:
    parts: list[dict[str, str | None]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        parts += [{"type": "image", "text": None}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def write_plain(pair: PreferencePair, losses: Losses) -> Row:
    """Return three texts and the images."""
    count_losses(pair, losses, "scores", "images", "id")
    row: Row = {"prompt": pair.instruction, "chosen": pair.chosen, "rejected": pair.rejected}
    return row | ({"images": list(pair.images)} if pair.images else {}) | optional(pair)


FORMATS = (
    Format(
        "trl", "`prompt, chosen, rejected` as messages of parts, `images`; a folder is a `DatasetDict`", read, write
    ),
    Format("trl-text", "`prompt, chosen, rejected` as messages of texts", read, write_text),
    Format("trl-plain", "`prompt, chosen, rejected` as texts, `images`", read, write_plain),
    Format(
        "ultrafeedback",
        "`prompt`; `chosen`, `rejected` as message lists; `chosen_rating, rejected_rating`",
        read,
        write_ultrafeedback,
    ),
)
