"""Training curves of one or several runs, from the files that LlamaFactory leaves."""

import json
from collections.abc import Mapping
from pathlib import Path

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import replacing

CURVES = {
    "loss": "loss",
    "rewards/accuracies": "pairs ranked rightly against the reference",
    "logps/chosen": "log-probability of chosen answers, as the loss takes it",
    "uni_dpo/w_qual": "quality weight",
    "uni_dpo/w_perf": "performance weight",
    "uni_dpo/nll_active": "share of pairs with the NLL term",
}
"""Metric in `trainer_state.json` → title of its panel."""


def draw_runs(runs: Mapping[str, str | Path], figure: str | Path) -> Path:
    """Draw the metrics of `CURVES` over the training steps, one line per run that has them.

    Args:
        runs: name in the legend → a training's output folder.
        figure: the PNG file to write.

    Raises:
        UniDPOError: a folder has no `trainer_state.json`.
    """
    from matplotlib.figure import Figure

    logs = {name: _log(Path(folder)) for name, folder in runs.items()}
    sheet = Figure(figsize=(12, 6.5), layout="constrained")
    for panel, (metric, title) in zip(sheet.subplots(2, 3).flat, CURVES.items(), strict=True):
        for name, log in logs.items():
            points = [(line["step"], line[metric]) for line in log if metric in line]
            if points:
                panel.plot(*zip(*points, strict=True), label=name)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        if panel.lines:
            panel.legend()
    with replacing(figure) as temporary:
        sheet.savefig(temporary, format="png", dpi=120)
    return Path(figure)


def _log(folder: Path) -> list[dict[str, float]]:
    state = folder / "trainer_state.json"
    if not state.is_file():
        raise UniDPOError(f"{state}: there is no such file; name a folder that a finished training wrote")
    return list(json.loads(state.read_text(encoding="utf-8"))["log_history"])
