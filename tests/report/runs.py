"""Output folders as a training with a ledger leaves them, made without training."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uni_dpo.ledger.columns import ledger_folder, record_file, texts_file
from uni_dpo.ledger.writing import KEY, NAME, PairLedger, names_of, pair_key, pair_texts, write_table

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 \x1b[31m “日本”"


class Texts:
    """Texts of made-up pairs."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder

    def texts(self) -> list[dict[str, object]]:
        rows = []
        for at in range(self.count):
            name, question = f"pairs.json, row {at}", f"Question {at}? {HOSTILE if at == 0 else ''}"
            chosen, rejected = f"right answer {at}", f"wrong answer {at}"
            rows.append(
                {
                    KEY: pair_key(name, question, chosen, rejected),
                    NAME: name,
                    "question": question,
                    "chosen": chosen,
                    "rejected": rejected,
                    "images": [str(self.folder / f"{at % 4}.png")],
                    "score_chosen": 4.0 + at % 3,
                    "score_rejected": 1.0,
                }
            )
        return rows


def write_run(output: Path, count: int = 40, epochs: int = 3, *, seed: int = 0) -> Path:
    """Write a run of `count` pairs; the model contradicts the first tenth of them all through training."""
    draw = np.random.default_rng(seed)
    output.mkdir(parents=True, exist_ok=True)
    for at in range(4):
        Image.new("RGB", (300, 200), (40 * at, 80, 120)).save(output / f"{at}.png")
    texts = pair_texts([Texts(count, output)])
    write_table(texts, texts_file(output))
    ledger = PairLedger(ledger_folder(output), names_of(texts))
    keys = torch.from_numpy(texts["key"].to_numpy().copy())
    gain = np.where(np.arange(count) < count // 10, -1.0, 0.3)
    step = 0
    for epoch in range(1, epochs + 1):
        for part in np.array_split(np.arange(count), 8):
            step += 1
            margin = torch.from_numpy(gain[part] * epoch + draw.normal(0, 0.05, len(part)))
            half = margin / 2
            numbers = {
                "policy_chosen": half - 1, "policy_rejected": -half - 1, "reference_chosen": half * 0 - 1,
                "reference_rejected": half * 0 - 1, "score_chosen": half * 0 + 4, "score_rejected": half * 0 + 1,
                "w_qual": torch.sigmoid(half * 0 + 2), "w_perf": torch.sigmoid(1 - margin), "loss": -margin,
                "nll_active": (half < 0).float(), "tokens_chosen": half * 0 + 5, "tokens_rejected": half * 0 + 6,
            }  # fmt: skip
            ledger.add("train", step, epoch, keys[part], numbers)
    ledger.flush()
    log = [{"step": at, "loss": 0.7 - 0.01 * at, "grad_norm": 1.0, "learning_rate": 1e-5, "rewards/accuracies": 0.9,
            "pairs_per_second": 8.0 + at % 2, "tokens_per_second": 90.0, "memory_gib": 1.5}
           for at in range(1, step + 1)]  # fmt: skip
    (output / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    record = {
        "model": "Qwen2-VL", "datasets": {"train": ["pairs"], "eval": []}, "changed": {"pref_loss": "uni_dpo"},
        "evidence": {"pref_loss": "uni_dpo", "beta": 2.0, "eta": 0.7, "tau_ref": 2.0, "gamma": 3.0, "nll_lambda": 0.001,
                     "tau_good": 2.5, "learning_rate": 1e-5, "averaged": True, "has_reference": True},
        "versions": {"torch": "2"}, "device": "1 × cpu", "pairs": count, "fingerprint": "00",
    }  # fmt: skip
    record_file(output).write_text(json.dumps(record))
    return output
