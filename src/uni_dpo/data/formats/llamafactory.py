"""LlamaFactory's alpaca, sharegpt and openai layouts of pairs; alpaca's is the pair record itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from uni_dpo.data.dataset_info import OPENAI_TAGS, PAIR_COLUMNS, RANKED_COLUMNS, DatasetEntry, Tags
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.formats.base import Format, Losses, SourceRow, optional
from uni_dpo.data.pair import PreferencePair, read_pair
from uni_dpo.data.ranking import PairChoice, read_ranked
from uni_dpo.data.tables.reading import Row

_MESSAGES = replace(PAIR_COLUMNS, prompt=None, messages="conversations", history=None)
ALPACA = DatasetEntry("pairs", Path(), ranking=True, columns=replace(PAIR_COLUMNS, query="input"))
RANKED = replace(ALPACA, columns=replace(RANKED_COLUMNS, query="input"))
SHAREGPT = DatasetEntry("pairs", Path(), formatting="sharegpt", ranking=True, columns=_MESSAGES)
OPENAI = replace(SHAREGPT, formatting="openai", columns=replace(_MESSAGES, messages="messages"), tags=OPENAI_TAGS)


def reader(entry: DatasetEntry) -> Callable[[SourceRow], Iterator[PreferencePair]]:
    """Yield a function that reads the rows of a layout which `dataset_info.json` could describe."""

    def read(row: SourceRow) -> Iterator[PreferencePair]:
        faults: list[Fault] = []
        if entry.ranked:
            ranked = read_ranked(row, entry, faults)
            pairs = ranked.pairs(PairChoice(row.pairing)) if ranked else []
        else:
            scores = (row.get(entry.columns.score_chosen), row.get(entry.columns.score_rejected))
            pair = read_pair(row, entry, faults, scores_required=scores != (None, None))
            pairs = [pair] if pair else []
        if faults:
            raise PreferenceDataError.of(faults)
        if not pairs:
            row.losses["rows that make no pair, left out"] += 1
        if entry.formatting != "alpaca":
            row.count_message_losses(*(row.get(name) for name in (str(entry.columns.messages), "chosen", "rejected")))
        identity = row.id("id")
        yield from (replace(pair, id=identity) for pair in pairs)

    return read


def write_alpaca(pair: PreferencePair, losses: Losses) -> Row:
    """Return the pair record; columns that the pair does not need are left out."""
    row: Row = {"instruction": pair.instruction, "chosen": pair.chosen, "rejected": pair.rejected}
    before = {"system": pair.system, "history": [list(turn) for turn in pair.history]}
    return row | optional(pair) | {name: value for name, value in before.items() if value}


def message_list(pair: PreferencePair, tags: Tags) -> list[dict[str, str]]:
    """Return system prompt, history and question as messages."""
    role, content = str(tags.role_tag), str(tags.content_tag)
    turns = [(tags.system_tag, pair.system)] if pair.system else []
    for question, answer in pair.history:
        turns += [(tags.user_tag, question), (tags.assistant_tag, answer)]
    return [{role: str(who), content: text} for who, text in [*turns, (tags.user_tag, pair.instruction)]]


def _writer(entry: DatasetEntry) -> Callable[[PreferencePair, Losses], Row]:
    tags, column = entry.tags, str(entry.columns.messages)

    def write(pair: PreferencePair, losses: Losses) -> Row:
        def answer(text: str) -> dict[str, str]:
            return {str(tags.role_tag): str(tags.assistant_tag), str(tags.content_tag): text}

        row: Row = {column: message_list(pair, tags), "chosen": answer(pair.chosen), "rejected": answer(pair.rejected)}
        return row | optional(pair)

    return write


FORMATS = (
    Format(
        "llamafactory",
        "`instruction, chosen, rejected, score_chosen, score_rejected, images, rejected_images, system, history` "
        "(alpaca)",
        reader(ALPACA),
        write_alpaca,
    ),
    Format(
        "llamafactory-ranked",
        "`instruction, answers, scores, images, system, history`: a list of texts and one of numbers",
        reader(RANKED),
    ),
    Format(
        "llamafactory-sharegpt",
        "`conversations` of `from, value`; `chosen`, `rejected` one message each; scores, `images`, `system`",
        reader(SHAREGPT),
        _writer(SHAREGPT),
    ),
    Format(
        "llamafactory-openai",
        "`messages` of `role, content`; `chosen`, `rejected` one message each; scores, `images`, `system`",
        reader(OPENAI),
        _writer(OPENAI),
    ),
)
