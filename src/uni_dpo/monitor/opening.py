"""Opening the ledger of a run, with the texts of its pairs and what was trained on what beside it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from uni_dpo.ledger.columns import ledger_folder, record_file, texts_file
from uni_dpo.ledger.texts import fingerprint, names_of, pair_texts, write_texts
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.monitor.images import KeptImages
from uni_dpo.storage.writing import write_text


def open_ledger(training_args: Any, datasets: Iterable[Any], record: Mapping[str, Any]) -> PairLedger:
    """Return the ledger of a run; the first process writes the texts of its pairs, and the record.

    Args:
        training_args: transformers' arguments of the run.
        datasets: see `pair_texts`; the pairs of one that can only be read once are known by their keys.
        record: what was trained on what; see `llamafactory.record.run_record`.
    """
    output = training_args.output_dir
    kept = KeptImages(output, writes=training_args.process_index == 0)
    readable = (dataset for dataset in datasets if hasattr(dataset, "texts") or hasattr(dataset, "__len__"))
    texts = pair_texts(readable, kept.path)
    if training_args.process_index == 0:
        write_texts(texts, texts_file(output))
        whole = {**record, "pairs": len(texts), "fingerprint": fingerprint(texts)}
        write_text(record_file(output), json.dumps(whole, indent=1, default=str))
    return PairLedger(ledger_folder(output), names_of(texts), training_args.process_index, training_args.world_size)
