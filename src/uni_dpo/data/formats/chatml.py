"""Pairs of mathematics, whose prompt is written out in the ChatML template."""

import re
from collections.abc import Iterator

from uni_dpo.data.dataset_info import OPENAI_TAGS
from uni_dpo.data.formats.base import Format, Losses, SourceRow, limited, optional, refuse
from uni_dpo.data.formats.llamafactory import message_list
from uni_dpo.data.formats.trl import split_turns
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row

_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\s*", re.DOTALL)
_OPEN = "<|im_start|>assistant\n"
_END = "<|im_end|>"


def read_math(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair whose prompt is written out in the ChatML template, up to where the answer starts."""
    prompt = row.text("prompt")
    turns = _TURN.findall(prompt)
    if not turns or _TURN.sub("", prompt).strip() not in ("", _OPEN.strip()):
        refuse("prompt", prompt, "a prompt in ChatML (<|im_start|>role … <|im_end|>) belongs there")
    split = split_turns(turns)
    yield PreferencePair(
        split.instruction,
        _without_end(row, "chosen"),
        _without_end(row, "rejected"),
        row.score("score_chosen"),
        row.score("score_rejected"),
        id=row.id("id"),
        system=split.system,
        history=split.history,
    )


def _without_end(row: SourceRow, column: str) -> str:
    text = row.text(column)
    body = text.rstrip()
    if not body.endswith(_END):
        return text
    row.losses[f"{_END} at the end of an answer (the template adds it)"] += 1
    return body.removesuffix(_END)


def write_math(pair: PreferencePair, losses: Losses) -> Row:
    """Return the prompt in ChatML, ready for the answer."""
    pair = limited(pair, losses, "scores", "system", "history", "id")
    turns = [f"<|im_start|>{m['role']}\n{m['content']}{_END}\n" for m in message_list(pair, OPENAI_TAGS)]
    return {"prompt": "".join(turns) + _OPEN, "chosen": pair.chosen, "rejected": pair.rejected} | optional(pair)


FORMATS = (
    Format("math", "`prompt` in ChatML, `chosen, rejected, score_chosen, score_rejected`", read_math, write_math),
)
