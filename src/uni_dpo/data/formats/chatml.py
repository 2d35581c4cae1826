"""Pairs of mathematics, whose prompt is written out in the ChatML template."""

import re
from collections.abc import Iterator
from typing import Any

from uni_dpo.data.dataset_info import OPENAI_TAGS
from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    count_losses,
    id_of,
    optional,
    refuse,
    score_of,
    text_of,
    text_only,
)
from uni_dpo.data.formats.llamafactory import message_list
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row

_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\s*", re.DOTALL)
_OPEN = "<|im_start|>assistant\n"
_END = "<|im_end|>"


def read_math(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """Yield the pair whose prompt is written out in the ChatML template, up to where the answer starts."""
    prompt = text_of(row, "prompt")
    turns = [(role, text) for role, text in _TURN.findall(prompt)]
    rest = _TURN.sub("", prompt)
    if not turns or rest.strip() not in ("", _OPEN.strip()):
        refuse("prompt", prompt, "a prompt in ChatML (<|im_start|>role … <|im_end|>) belongs there")
    chosen, rejected = (_without_end(text_of(row, name), losses) for name in ("chosen", "rejected"))
    yield PreferencePair(
        *_question(turns, "prompt", chosen, rejected),
        score_chosen=score_of(row, "score_chosen"),
        score_rejected=score_of(row, "score_rejected"),
        id=id_of(row, losses, "id"),
        **_before(turns),
    )


def _question(turns: list[tuple[str, str]], field: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    roles = [role for role, _ in turns if role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        refuse(field, f"roles {roles}", "user and assistant alternate and the user comes last")
    return turns[-1][1], chosen, rejected


def _before(turns: list[tuple[str, str]]) -> dict[str, Any]:
    texts = [text for role, text in turns if role != "system"]
    system = "\n".join(text for role, text in turns if role == "system")
    return {"system": system, "history": tuple(zip(texts[:-1:2], texts[1::2], strict=True))}


def _without_end(text: str, losses: Losses) -> str:
    body = text.rstrip()
    if not body.endswith(_END):
        return text
    losses[f"{_END} at the end of an answer (the template adds it)"] += 1
    return body.removesuffix(_END)


def write_math(pair: PreferencePair, losses: Losses) -> Row:
    """Return the prompt in ChatML, ready for the answer."""
    count_losses(pair, losses, "scores", "system", "history", "id")
    pair = text_only(pair)
    turns = [f"<|im_start|>{m['role']}\n{m['content']}{_END}\n" for m in message_list(pair, OPENAI_TAGS)]
    row: Row = {"prompt": "".join(turns) + _OPEN, "chosen": pair.chosen, "rejected": pair.rejected}
    return row | optional(pair)


FORMATS = (
    Format("math", "`prompt` in ChatML, `chosen, rejected, score_chosen, score_rejected`", read_math, write_math),
)
