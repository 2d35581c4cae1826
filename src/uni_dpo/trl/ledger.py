"""The ledger of a TRL run: rows of its datasets get keys and names before TRL tokenizes them."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import datasets
from trl.data_utils import maybe_extract_prompt

from uni_dpo.ledger.writing import KEY, NAME, image_files, pair_key
from uni_dpo.monitor.ledger import KeptImages, changed_settings
from uni_dpo.trl.data import SCORES, is_score

logger = logging.getLogger(f"transformers.{__name__}")  # below transformers', which shows it
logger.setLevel(logging.INFO)


class NamedRows:
    """A dataset of TRL's whose rows have names, before it is tokenized.

    Args:
        rows: a `datasets.Dataset` or `IterableDataset` with `chosen`, `rejected` and, mostly, `prompt`.
        name: what the rows are called: `NAME, row 12`.
        scores: the columns with the scores of chosen and rejected.
        kept: takes images that are stored inside the dataset.
    """

    def __init__(self, rows: Any, name: str, scores: tuple[str, str], kept: KeptImages) -> None:
        self._rows, self._name, self._scores, self._kept = rows, name, scores, kept
        self._texts: list[dict[str, Any]] | None = None

    def keyed(self) -> Any:
        """Return the dataset with the column `KEY`; a stream gets it row by row."""
        if not hasattr(self._rows, "num_rows"):
            return self._rows.map(lambda row, at: {KEY: self._text(row, at)[KEY]}, with_indices=True)
        keys = datasets.Dataset.from_dict({KEY: [row[KEY] for row in self.texts()]})
        return datasets.concatenate_datasets([self._rows, keys], axis=1)

    @property
    def has_scores(self) -> bool:
        """Whether every row has both scores; False for a stream."""
        rows = self.texts()
        return bool(rows) and all(row[side] is not None for row in rows for side in SCORES)

    def texts(self) -> list[dict[str, Any]]:
        """Return the rows of `ledger.writing.COLUMNS`, none of a stream; no image is decoded."""
        if self._texts is None:
            self._texts = [self._text(row, at) for at, row in enumerate(self._plain_rows())]
        return self._texts

    def _plain_rows(self) -> Any:
        rows = self._rows
        if not hasattr(rows, "num_rows"):
            return ()
        known = ("prompt", "chosen", "rejected", "image", "images", *self._scores)
        rows = rows.select_columns([name for name in known if name in rows.column_names])
        for column in {"image", "images"} & {*rows.column_names}:
            kind = rows.features[column]
            if isinstance(kind, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
            elif isinstance(getattr(kind, "feature", None), datasets.Image):
                rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
        return rows

    def _text(self, row: Mapping[str, Any], at: int) -> dict[str, Any]:
        parts = maybe_extract_prompt({name: row[name] for name in ("prompt", "chosen", "rejected") if name in row})
        question, chosen, rejected = (words(parts.get(name)) for name in ("prompt", "chosen", "rejected"))
        name = f"{self._name}, row {at}"
        values = (row.get(column) for column in self._scores)
        scores = {side: float(v) if is_score(v) else None for side, v in zip(SCORES, values, strict=True)}
        shown = [row["image"]] if row.get("image") is not None else row.get("images") or []
        return {
            KEY: pair_key(name, question, chosen, rejected),
            NAME: name,
            "question": question,
            "chosen": chosen,
            "rejected": rejected,
            "images": image_files(shown, self._kept.path),
            **scores,
        }


def name_rows(given: dict[str, Any], args: Any, about: Mapping[str, Any]) -> list[NamedRows]:
    """Put datasets whose rows have keys in the places of those that a trainer was given.

    Args:
        given: `train_dataset` and `eval_dataset`, which may be several by name; changed.
        args: a `TRLUniDPOConfig`.
        about: `datasets`: `train` and `eval` → what their rows are called; by default the split's name.

    Returns:
        The datasets as they were.
    """
    found, names = [], about.get("datasets", {})
    kept = KeptImages(args.output_dir, writes=args.process_index == 0)

    def keyed(rows: Any, name: str) -> Any:
        found.append(NamedRows(rows, name, args.score_columns, kept))
        return found[-1].keyed()

    for split in ("train", "eval"):
        rows = given.get(f"{split}_dataset")
        if isinstance(rows, dict):
            given[f"{split}_dataset"] = {name: keyed(part, name) for name, part in rows.items()}
        elif rows is not None:
            given[f"{split}_dataset"] = keyed(rows, names.get(split, split))
    return found


def words(turns: Any) -> str:
    """Return a text, or the texts of messages as one; who speaks stands before each where there are several."""
    if not isinstance(turns, list):
        return str(turns or "")
    said = [(str(turn.get("role", "")), _content(turn.get("content"))) for turn in turns]
    return said[0][1] if len(said) == 1 else "\n".join(f"{role}: {text}" for role, text in said)


def _content(content: Any) -> str:
    if not isinstance(content, list):
        return str(content or "")
    return "".join("<image>" if part.get("type") == "image" else str(part.get("text") or "") for part in content)


def run_record(
    args: Any, model: Any, about: Mapping[str, Any], averaged_losses: Collection[str] = ()
) -> dict[str, Any]:
    """Describe a run as `llamafactory.run_context.run_record` does.

    Args:
        args: a `TRLUniDPOConfig`.
        model: what is trained, or its name.
        about: what is known beside: `datasets` (split → name) and `changed` (further settings).
        averaged_losses: TRL's losses whose log-probabilities are averaged over tokens.
    """
    named = about.get("datasets", {})
    losses = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
    return {
        "library": "trl",
        "model": model if isinstance(model, str) else model.config._name_or_path,
        "datasets": {split: [named[split]] if split in named else [] for split in ("train", "eval")},
        "changed": {**changed_settings(args), **about.get("changed", {})},
        "evidence": {
            **(vars(args.objective()) if args.uses_uni_dpo else {}),
            "pref_loss": " + ".join(losses),
            "beta": args.beta,
            "learning_rate": args.learning_rate,
            "averaged": args.averages_logps if args.losses else not {*losses}.isdisjoint(averaged_losses),
            "has_reference": not getattr(args, "reference_free", False),
        },
    }
