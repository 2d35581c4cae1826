"""TRL's preference layouts and UltraFeedback's: `prompt, chosen, rejected, images`, as messages or as plain texts."""

from collections.abc import Callable, Iterator, Sequence

from uni_dpo.data.cells import Turn, placed_images, turns_of
from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import IMAGE_COLUMNS, first_filled, is_empty
from uni_dpo.data.dataset_info import OPENAI_TAGS
from uni_dpo.data.formats.base import Format, Losses, SourceRow, limited, optional, refuse
from uni_dpo.data.formats.llamafactory import message_list
from uni_dpo.data.pair import PreferencePair, Turns
from uni_dpo.data.tables.reading import Row


def read(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair in a row of any of the layouts.

    Texts or messages, the prompt apart or at the start of both answers.
    """
    prompt = first_filled(row, ("prompt", "instruction", "question"))
    row.count_message_losses(prompt, row.get("chosen"), row.get("rejected"))
    asked = [] if prompt is None else turns_of(prompt, "prompt", "user")
    (*before, better), (*others, worse) = (_conversation(asked, row, name) for name in ("chosen", "rejected"))
    if before != others:
        found = "its turns before the last are not those of `chosen`"
        refuse("rejected", found, "give both answers the same conversation, or leave the row out with --skip-broken")
    if better.images or worse.images or any(turn.images for turn in before if turn.role == "system"):
        refuse("chosen / rejected", "an image in an answer or in the system prompt", "images belong to the question")
    turns, images = placed_images(before, row.images(*IMAGE_COLUMNS))
    split = split_turns([(turn.role, turn.text) for turn in turns])
    yield PreferencePair(
        split.instruction,
        better.text,
        worse.text,
        row.score("score_chosen", "chosen_rating", "chosen-rating", "chosen_score"),
        row.score("score_rejected", "rejected_rating", "rejected-rating", "rejected_score"),
        images,
        row.id("prompt_id", "id"),
        split.system or ("" if is_empty(row.get("system")) else row.text("system")),
        split.history,
    )


def split_turns(turns: Sequence[tuple[str, str]]) -> Turns:
    """Return the question of a conversation, given as (role, text), what came before it, and the system prompt.

    Refuse one in which user and assistant do not alternate, or the user is not the last.
    """
    said = [turn for turn in turns if turn[0] != "system"]
    roles, texts = [role for role, _ in said], [text for _, text in said]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        refuse("prompt", f"roles {roles}", "user and assistant alternate and the user comes last")
    system = "\n".join(text for role, text in turns if role == "system")
    return Turns(texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True)), system)


def _conversation(asked: list[Turn], row: SourceRow, column: str) -> list[Turn]:
    """The whole conversation that ends with the answer under `column`; some layouts repeat the prompt there."""
    said = turns_of(row.get(column), column, "assistant")
    if said[-1].role != "assistant":
        refuse(column, f"ends with role {said[-1].role!r}", "the answer comes last")
    known = {(turn.role, turn.text.strip()) for turn in said}
    repeats = len(said) > 1 and all((turn.role, turn.text.strip()) in known for turn in asked)
    return said if repeats else [*asked, *said]


def write(pair: PreferencePair, losses: Losses) -> Row:
    """Return messages whose contents are lists of parts, as TRL's vision models want them, also without an image."""
    pair = limited(pair, losses, "scores", "system", "history", "images", "id")
    return _as_messages(pair, _parts) | optional(pair)


def write_text(pair: PreferencePair, losses: Losses) -> Row:
    """Return messages whose contents are texts, as TRL's text models want them."""
    pair = limited(pair, losses, "scores", "system", "history", "id")
    return _as_messages(pair, str) | optional(pair)


def write_ultrafeedback(pair: PreferencePair, losses: Losses) -> Row:
    """Return two whole conversations and their ratings."""
    pair = limited(pair, losses, "scores", "system", "history", "id")
    row = _as_messages(pair, str)
    whole = {name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")}
    return {"prompt": pair.instruction} | whole | optional(pair, ("chosen_rating", "rejected_rating", "prompt_id"))


def _as_messages(pair: PreferencePair, content: Callable[[str], object]) -> Row:
    row: Row = {"prompt": [m | {"content": content(m["content"])} for m in message_list(pair, OPENAI_TAGS)]}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row[name] = [{"role": "assistant", "content": content(answer)}]
    return row


def _parts(text: str) -> list[dict[str, str | None]]:
    parts: list[dict[str, str | None]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        parts += [{"type": "image", "text": None}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def write_plain(pair: PreferencePair, losses: Losses) -> Row:
    """Return three texts and the images."""
    pair = limited(pair, losses, "scores", "images", "id")
    return {"prompt": pair.instruction, "chosen": pair.chosen, "rejected": pair.rejected} | optional(pair)


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
