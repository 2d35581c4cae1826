"""The model card of a training: what was trained on what, what came out, under what licence, and how to load it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uni_dpo.errors import UniDPOError, plain
from uni_dpo.ledger.columns import own_folder
from uni_dpo.ledger.reading import evidence_of, log_series, read_log, read_record, read_texts
from uni_dpo.ledger.verdicts import METRICS, judge
from uni_dpo.report.statistics import Difference
from uni_dpo.storage.writing import replacing, write_text

CARD = "README.md"
CURVES = {
    "loss": "loss",
    "rewards/accuracies": "pairs ranked rightly",
    "rewards/margins": "reward margin",
    "logps/chosen": "log-probability of chosen answers",
    "logps/rejected": "log-probability of rejected answers",
    "uni_dpo/w_qual": "mean quality weight",
    "uni_dpo/w_perf": "mean performance weight",
    "uni_dpo/nll_active": "share of pairs with the NLL term",
}
"""Metric of a log line → its title in the table and in the figure."""
_QUANTILES = (0.05, 0.5, 0.95)


def write_card(output: str | Path, evaluation: str | Path | None = None) -> Path:
    """Write the model card into a training's output folder, with the table of the `uni-dpo eval` in `evaluation`.

    Raises:
        UniDPOError: the folder holds no training with a ledger, or the other one no evaluation.
    """
    output = Path(output)
    card = output / CARD
    write_text(card, card_text(output, evaluation))
    return card


def card_text(output: Path, evaluation: str | Path | None = None) -> str:
    """Return the card as Markdown with its YAML head; see `write_card`."""
    record = read_record(output)
    name, loss = output.absolute().name, record.get("evidence", {}).get("pref_loss", "")
    several = f"the preference losses `{loss}`, by their weights" if ":" in loss else f"the preference loss `{loss}`"
    kind = "Uni-DPO (arXiv 2506.10054)" if loss == "uni_dpo" else several
    base, data = _cell(_named(record.get("model"))), _cell(", ".join(record.get("datasets", {}).get("train", [])))
    parts = [
        f"---\n{yaml.safe_dump(_head(output, record), allow_unicode=True, sort_keys=False)}---\n",
        f"# {_cell(name)}\n\n{base}, trained by {kind} on {record.get('pairs', 0):,} pairs of {data}.",
        "## How it was trained\n\n" + _table(("setting", "value"), _settings(record)),
        "## Data\n\n" + _data(output, record),
        "## What happened\n\n" + _happened(output),
        *(["## Evaluation\n\n" + _evaluation(Path(evaluation))] if evaluation else []),
        "## How to load it\n\n" + _loading(output),
        "## Licence\n\n" + _licence(record),
    ]
    return "\n\n".join(parts) + "\n"


def _head(output: Path, record: dict[str, Any]) -> dict[str, Any]:
    adapter = (output / "adapter_config.json").is_file()
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text" if sees_images(output) else "text-generation",
        "tags": ["uni-dpo", "dpo", "preference-optimization", record.get("library", "llama-factory")],
    }
    base = str(record.get("model", ""))
    if base and not Path(base).exists():
        head["base_model"] = base
    licence = licence_of(base)
    return head | ({"license": licence} if licence else {})


def sees_images(folder: Path) -> bool:
    """Tell whether a checkpoint has an image processor."""
    files = (folder / name for name in ("preprocessor_config.json", "processor_config.json"))
    return any("image_processor" in file.read_text("utf-8", "replace") for file in files if file.is_file())


def licence_of(base: str) -> str | None:
    """Return the licence that the card of a base checkpoint on this machine names; None where that cannot be told."""
    card = Path(base) / CARD
    if not base or not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        head = yaml.safe_load(text.split("---")[1])
    except yaml.YAMLError:
        return None
    licence = head.get("license") if isinstance(head, dict) else None
    return licence if isinstance(licence, str) else None


def _settings(record: dict[str, Any]) -> Iterable[tuple[str, str]]:
    evidence, changed = record.get("evidence", {}), dict(record.get("changed", {}))
    for name in ("pref_loss", "beta", "eta", "tau_ref", "gamma", "nll_lambda", "tau_good"):
        if name in evidence:
            yield name, str(evidence[name])
    hidden = ("output_dir", "dataset_dir", "media_dir", "pref_loss", "cache_dir", "tokenized_path")
    yield from ((name, str(_named(value))) for name, value in changed.items() if name not in hidden)
    yield "versions", ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())
    yield "device", str(record.get("device", ""))


def _named(value: Any) -> Any:
    """A path by its last two parts: a card that is published tells nobody the folders of a machine."""
    return "/".join(Path(value).parts[-2:]) if isinstance(value, str) and Path(value).is_absolute() else value


def _data(output: Path, record: dict[str, Any]) -> str:
    texts = read_texts(output)
    rows = []
    scores = {side: np.array(texts[f"score_{side}"].to_pylist(), float) for side in ("chosen", "rejected")}
    for name, values in (*scores.items(), ("margin", scores["chosen"] - scores["rejected"])):
        known = values[np.isfinite(values)]
        if len(known):
            rows.append((f"score, {name}", *(f"{value:.3g}" for value in np.quantile(known, _QUANTILES))))
    for side in ("chosen", "rejected"):
        lengths = [len(text or "") for text in texts[side].to_pylist()]
        if lengths:
            rows.append((f"characters, {side}", *(f"{value:.0f}" for value in np.quantile(lengths, _QUANTILES))))
    said = f"{record.get('pairs', 0):,} pairs, fingerprint `{record.get('fingerprint', '')}`."
    return said + ("\n\n" + _table(("", "5 %", "median", "95 %"), rows) if rows else "")


def _happened(output: Path) -> str:
    series = log_series(read_log(output))
    curves = {title: series[metric][1] for metric, title in CURVES.items() if metric in series}
    rows = [(title, f"{values[0]:.4g}", f"{values[-1]:.4g}") for title, values in curves.items()]
    verdicts = [
        f"- **{v.state}**, {METRICS[v.metric]['en']}: {_cell(v.sentence())}" for v in judge(evidence_of(output))
    ]
    picture = "![curves](uni_dpo/curves.png)" if draw_curves(series, own_folder(output) / "curves.png") else ""
    table = _table(("", "first", "last"), rows) if rows else ""
    page = "`report.html` beside this card shows every pair."
    return "\n\n".join(part for part in (table, picture, "\n".join(verdicts), page) if part)


def draw_curves(series: Mapping[str, tuple[Sequence[int], Sequence[float]]], figure: Path) -> bool:
    """Draw the metrics of `CURVES` over the training steps, as far as a training's log has them; see `log_series`.

    Returns:
        Whether there is a figure: none without a logged metric, or where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None or not CURVES.keys() & series.keys():
        return False
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(16, 6.5), layout="constrained")
    for panel, (metric, title) in zip(sheet.subplots(2, 4).flat, CURVES.items(), strict=True):
        if metric in series:
            panel.plot(*series[metric])
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
    with replacing(figure) as temporary:
        sheet.savefig(temporary, format="png", dpi=120)
    return True


def _evaluation(folder: Path) -> str:
    file = folder / "results.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            (
                one["benchmark"],
                one["model"],
                "failed" if one["score"] is None else f"{one['score']:.2f}",
                _difference(one),
            )
            for one in found["results"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniDPOError(f"{file}: no readable results of `uni-dpo eval` ({error}); name its --work-dir") from error
    return _table(("benchmark", "model", "score", f"difference from {found.get('baseline')} [95 %]"), rows)


def _difference(row: dict[str, Any]) -> str:
    value = row.get("difference")
    return "–" if value is None else str(Difference(value, row.get("low"), row.get("high")))


def _loading(output: Path) -> str:
    kind, front = "AutoModelForCausalLM", "AutoTokenizer"
    if sees_images(output):
        kind, front = "AutoModelForImageTextToText", "AutoProcessor"
    adapter = (output / "adapter_config.json").is_file()
    note = "The folder holds an adapter; with PEFT installed, its base is loaded along.\n\n" if adapter else ""
    return (
        f"{note}```python\nfrom transformers import {kind}, {front}\n\n"
        f'model = {kind}.from_pretrained("PATH_OF_THIS_FOLDER")\n'
        f'processor = {front}.from_pretrained("PATH_OF_THIS_FOLDER")\n```'
    )


def _licence(record: dict[str, Any]) -> str:
    licence = licence_of(base := str(record.get("model", "")))
    told = f": {_cell(licence)}." if licence else ", applies: see its card, which this training could not read."
    return f"That of the base, {_cell(_named(base))}{told}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """A value as text within a line of Markdown: no control character, no column's end, no tag."""
    return plain(str(value)).replace("\\n", " ").replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
