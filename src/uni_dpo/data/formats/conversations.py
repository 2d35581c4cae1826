"""Pairs whose chosen answer ends a conversation: ms-swift's, POVID's and LLaVA-RLHF's.

Follows ms-swift's page on custom datasets (`rejected_response`, `rejected_messages`) and the dataset cards of
YiyangAiLab/POVID_preference_data_for_VLLMs and zhiqings/LLaVA-Human-Preference-10K.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from uni_dpo.data.columns import items_of
from uni_dpo.data.formats import trl
from uni_dpo.data.formats.base import Format, SourceRow, refuse
from uni_dpo.data.pair import PreferencePair

_MEDIA_IN_TEXT = re.compile(r"<(img|image|vid|video|aud|audio)>[^<>\n]{1,300}</\1>")
"""A path within a text, as ms-swift 2 and Qwen-VL take it."""


def read_swift(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair of `messages`, or of `query` and `response`, with the rejected answer or conversation."""
    if written := _MEDIA_IN_TEXT.search(f"{row.get('query')}{row.get('messages')}"):
        refuse(
            "query / messages", written.group(), "name the file under `images` or `videos`; write <image> or <video>"
        )
    if (chosen := row.get("messages")) is None:
        history = row.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            refuse("history", history, "a list of [query, response] belongs there")
        turns = [turn for pair in history for turn in zip(("user", "assistant"), pair, strict=True)]
        turns += [("user", row.text("query")), ("assistant", row.text("response"))]
        system = [("system", row.text("system"))] if row.get("system") else []
        chosen = [{"role": role, "content": text} for role, text in (*system, *turns)]
    rejected = row.get("rejected_messages")
    if rejected is None:
        answer = {"role": "assistant", "content": row.text("rejected_response")}
        rejected = [*_turns(chosen, "messages")[:-1], answer]
    for pair in _read(row, chosen, rejected):
        videos = tuple(items_of(row.get("videos")))
        yield replace(pair, rejected_images=row.images("rejected_images"), videos=videos)


def read_povid(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair of two whole conversations."""
    yield from _read(row, row.get("conversations"), row.get("rejected_conversations"))


def read_llava_rlhf(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair of `output_1` and `output_2`; `preference` is the number of the better one."""
    better, asked = row.get("preference"), _turns(row.get("conversations"), "conversations")
    if better not in (1, 2):
        refuse("preference", better, "1 or 2 belongs there, the number of the better output")
    first, second = ([*asked, _answer(row, f"output_{number}")] for number in (better, 3 - better))
    yield from _read(row, first, second)


def _read(row: SourceRow, chosen: object, rejected: object) -> Iterator[PreferencePair]:
    conversations = {"chosen": _turns(chosen, "the chosen conversation"), "rejected": rejected}
    names = ("image", "images", "id", "score_chosen", "score_rejected")
    given = {name: value for name in names if (value := row.get(name)) is not None}
    yield from trl.read(SourceRow(given | conversations, row.losses))


def _answer(row: SourceRow, column: str) -> dict[str, str]:
    """The message under `column`, whose role is the name of a model."""
    said = row.get(column)
    message = SourceRow(said) if isinstance(said, dict) else SourceRow({"value": said})
    return {"role": "assistant", "content": message.text("value")}


def _turns(value: object, field: str) -> list[object]:
    return value if isinstance(value, list) and value else refuse(field, value, "a list of messages belongs there")


FORMATS = (
    Format(
        "swift",
        "`messages`, or `query, response, history, system`; `rejected_response` or `rejected_messages`; `images`",
        read_swift,
    ),
    Format("povid", "`image, conversations, rejected_conversations`", read_povid),
    Format("llava-rlhf", "`image, conversations, output_1, output_2, preference`", read_llava_rlhf),
)
