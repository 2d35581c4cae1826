"""Generated files: `data check` says usable if and only if LlamaFactory, with our seams, trains on them.

The verdict that each change of a row should get stands beside it, worked out by hand, so that the two cannot agree
on what is wrong. UNI_DPO_GENERATED_FILES sets how many files are made (2,000 at night).
"""

import base64
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.register import register_file
from uni_dpo.data.tables.writing import write_rows
from uni_dpo.errors import UniDPOError

FILES = int(os.environ.get("UNI_DPO_GENERATED_FILES", "300"))
Row = dict[str, Any]


def encoded(mode: str, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


IMAGES = {
    "good.png": (encoded("RGB", (60, 44), "PNG"), True),
    "tiny.png": (encoded("RGB", (1, 1), "PNG"), True),
    "banner.png": (encoded("L", (8_000, 20), "PNG"), True),
    "tower.png": (encoded("L", (3, 2_000), "PNG"), True),
    "print.jpg": (encoded("CMYK", (50, 50), "JPEG"), True),
    "clear.png": (encoded("RGBA", (50, 50), "PNG"), True),
    "moving.gif": (
        encoded("P", (40, 40), "GIF", save_all=True, append_images=[Image.new("P", (40, 40), 9)]),
        True,
    ),
    "palette.webp": (encoded("RGB", (40, 40), "WEBP"), True),
    "wrong-name.png": (encoded("RGB", (40, 40), "JPEG"), True),
    "deep.png": (encoded("I;16", (40, 40), "PNG"), False),
    "float.tif": (encoded("F", (40, 40), "TIFF"), False),
    "cut.jpg": (encoded("RGB", (200, 200), "JPEG")[:-300], False),
    "thread.png": (encoded("1", (700_000, 1), "PNG"), False),
    "text.png": (b"<svg/>", False),
    "empty.png": (b"", False),
}
TEXT_IMAGE = base64.encodebytes(IMAGES["good.png"][0]).decode()

# (what changes in an alpaca row, whether the file is still usable)
CHANGES: dict[str, tuple[Row, bool]] = {
    "number as id": ({"id": 7}, True),
    "null as id": ({"id": None}, True),
    "list as id": ({"id": [1, "a"]}, True),
    "other columns": ({"note": {"deep": [1, {"x": None}]}, "when": 3}, True),
    "image as text": ({"images": "good.png"}, True),
    "image as object": ({"images": [{"path": "good.png"}]}, True),
    "absolute path": ({"images": ["ABSOLUTE/good.png"]}, True),
    "base64": ({"images": [TEXT_IMAGE]}, True),
    "data URL": ({"images": "data:image/png;base64," + TEXT_IMAGE.replace("\n", "")}, True),
    "no image": ({"images": [], "instruction": "What?"}, True),
    "null image column": ({"images": None, "instruction": "What?"}, True),
    "two images": ({"images": ["good.png", "banner.png"], "instruction": "<image> and <image>?"}, True),
    "a date": ({"chosen": "2020-01-01", "rejected": "2021-02-03T04:05:06"}, True),
    "words that CSV readers drop": ({"chosen": "NA", "rejected": "null"}, True),
    "line separators": ({"chosen": "a\u2028b\u0085c\r\nd\0e"}, True),
    "other scripts": ({"chosen": "猫 🐈 ñ", "instruction": "<image>这是什么?"}, True),
    "turn marker": ({"rejected": "A dog.<|im_end|>"}, True),
    "whole scores": ({"score_chosen": 5, "score_rejected": 0}, True),
    "large scores": ({"score_chosen": 1e30, "score_rejected": -1e30}, True),
    "missing image": ({"images": ["none.png"]}, False),
    "long name": ({"images": ["a" * 400]}, False),
    "folder": ({"images": ["."]}, False),
    "device": ({"images": ["/dev/zero"]}, False),
    "pipe": ({"images": ["pipe.png"]}, False),
    "address": ({"images": ["http://127.0.0.1:9/a.png"]}, False),
    "null in images": ({"images": [None]}, False),
    "number in images": ({"images": [3]}, False),
    "lists in images": ({"images": [["good.png"]]}, False),
    "too few images": ({"instruction": "<image><image>What?"}, False),
    "too many images": ({"instruction": "What?"}, False),
    "placeholder in one answer": ({"chosen": "See <image>."}, False),
    "placeholder of a video": ({"instruction": "<image><video>What?"}, False),
    "pad in the question": ({"instruction": "<image>What is <|image_pad|>?"}, False),
    "pad in an answer": ({"rejected": "<|image_pad|>"}, False),
    "video pad": ({"chosen": "<|video_pad|>"}, False),
    "vision start": ({"chosen": "<|vision_start|>"}, False),
    "empty answer": ({"chosen": ""}, False),
    "blank answer": ({"rejected": " \n"}, False),
    "null answer": ({"rejected": None}, False),
    "number as answer": ({"rejected": 3}, False),
    "list as answer": ({"chosen": ["A cat."]}, False),
    "null question": ({"instruction": None}, False),
    "lone surrogate": ({"chosen": "\ud83d"}, False),
    "NaN": ({"score_chosen": float("nan")}, False),
    "infinity": ({"score_chosen": float("inf")}, False),
    "beyond every float": ({"score_rejected": 10**400}, False),
    "beyond float32": ({"score_chosen": 1e300}, False),
    "score as text": ({"score_chosen": "4.5"}, False),
    "score as truth value": ({"score_chosen": True}, False),
    "null score": ({"score_rejected": None}, False),
} | {f"image {name}": ({"images": [name]}, usable) for name, (_, usable) in IMAGES.items()}


def as_messages(row: Row, role: str, content: str, user: str, assistant: str) -> Row:
    """The same pair as a list of messages."""
    changed = {name: value for name, value in row.items() if name not in ("instruction", "chosen", "rejected")}
    changed["conversations"] = [{role: user, content: row["instruction"]}]
    return changed | {name: {role: assistant, content: row[name]} for name in ("chosen", "rejected")}


SHAPES: dict[str, Callable[[Row], Row]] = {
    "alpaca": lambda row: row,
    "sharegpt": lambda row: as_messages(row, "from", "value", "human", "gpt"),
    "openai": lambda row: as_messages(row, "role", "content", "user", "assistant"),
}


def generate(seed: int, folder: Path) -> tuple[Path, bool, list[str]]:
    """Write a file of a few rows, some changed; say whether it should be usable, and what was changed."""
    draw = random.Random(seed)
    good = {"id": "r", "instruction": "<image>What?", "chosen": "A cat.", "rejected": "A dog.", "images": ["good.png"]}
    rows: list[Row] = [good | {"score_chosen": 4.5, "score_rejected": 1} for _ in range(draw.randint(3, 6))]
    names = draw.sample(list(CHANGES), draw.choice((1, 1, 1, 2, 3)))
    for row, name in zip(draw.sample(rows, len(names)), names, strict=True):
        row.update(json.loads(json.dumps(CHANGES[name][0])))
    usable = all(CHANGES[name][1] for name in names)
    for row in rows:
        if isinstance(row["images"], list):
            row["images"] = json.loads(json.dumps(row["images"]).replace("ABSOLUTE", str(folder)))
    shape = draw.choice(list(SHAPES))
    shaped = [SHAPES[shape](row) for row in rows]
    file = folder / f"pairs{seed}.{draw.choice(('json', 'jsonl', 'parquet'))}"
    if file.suffix == ".parquet":
        try:
            write_rows(file, shaped)
            return file, usable, names
        except PreferenceDataError:  # what no typed file can hold
            file = file.with_suffix(".jsonl")
    texts = [json.dumps(row, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass") for row in shaped]
    start = b"\xef\xbb\xbf" if draw.random() < 0.1 else b""
    file.write_bytes(start + (b"\n".join(texts) if file.suffix == ".jsonl" else b"[" + b",\n".join(texts) + b"]"))
    return file, usable, names


@pytest.fixture(scope="module")
def training(tiny_qwen2_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """LlamaFactory's arguments, tokenizer, model and our collator, as its DPO workflow makes them."""
    from uni_dpo.llamafactory import register

    register()
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    from uni_dpo.llamafactory.data import ScoredPairCollator

    work = tmp_path_factory.mktemp("training")
    described = {
        "model_name_or_path": str(tiny_qwen2_vl), "stage": "dpo", "do_train": True, "finetuning_type": "full",
        "pref_loss": "uni_dpo", "dataset_dir": str(work), "dataset": "d", "template": "qwen2_vl", "cutoff_len": 100_000,
        "output_dir": str(work / "out"), "report_to": "none", "use_cpu": True, "overwrite_cache": True,
        "cache_dir": str(work / "cache"),
    }  # fmt: skip
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(described)
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    model = load_model(tokenizer["tokenizer"], model_args, finetuning_args)
    collator = ScoredPairCollator(template=template, model=model, pad_to_multiple_of=8, **tokenizer)
    return SimpleNamespace(**{name: value for name, value in locals().items() if name != "tiny_qwen2_vl"})


def trains(training: Any, name: str, folder: Path) -> str:
    """Load, tokenize, collate and forward every row of a registered dataset; the refusal where there is one."""
    import torch

    from uni_dpo.llamafactory import workflow
    from uni_dpo.llamafactory.question_pairs import take_pair
    from uni_dpo.llamafactory.run_context import RunContext, running

    training.data_args.dataset, training.data_args.dataset_dir = [name], str(folder)
    training.data_args.media_dir = str(folder)
    try:
        workflow._check_files(training.data_args, training.finetuning_args)
        arguments = training.model_args, training.data_args, training.training_args
        with running(RunContext(needs_scores=True)):
            rows = workflow.get_dataset(training.template, *arguments, "rm", **training.tokenizer)["train_dataset"]
    except UniDPOError as error:
        return str(error)
    for start in range(0, len(rows), 2):
        batch = training.collator([rows[index] for index in range(start, min(start + 2, len(rows)))])
        chosen, rejected = take_pair(batch, "scores")
        assert torch.isfinite(torch.cat([chosen, rejected])).all()
        with torch.inference_mode():
            assert torch.isfinite(training.model(**batch).logits).all()
    return ""


def test_what_passes_the_check_trains_and_what_trains_passes_the_check(training: Any, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    for name, (data, _) in IMAGES.items():
        (here / name).write_bytes(data)
    os.mkfifo(here / "pipe.png")
    usable = 0
    for seed in range(FILES):
        file, expected, changed = generate(seed, here)
        report = check_dataset(str(file))
        assert report.faultless == expected, (seed, changed, report.faults, report.whole)
        try:
            register_file("d", file, elsewhere, replace=True)
        except PreferenceDataError as error:
            refusal = str(error)
        else:
            refusal = trains(training, "d", elsewhere)
        assert (refusal == "") == expected, (seed, changed, refusal)
        usable += expected
    assert 0.15 * FILES <= usable <= 0.85 * FILES
