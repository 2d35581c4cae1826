"""Scores from the file to the batch, in every format, and rows that must not train."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import Digit
from uni_dpo.errors import UniDPOError


def batches(train: Any, **settings: Any) -> list[dict[str, Any]]:
    """Run one epoch and return the batches that the trainer was given, in order."""
    from uni_dpo.llamafactory import trainer

    seen: list[dict[str, Any]] = []
    original = trainer.LlamaFactoryUniDPOTrainer.get_batch_loss_metrics

    def spy(self: Any, model: Any, batch: Any, train_eval: str = "train") -> Any:
        seen.append({name: value.clone() for name, value in batch.items() if hasattr(value, "clone")})
        return original(self, model, batch, train_eval)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.LlamaFactoryUniDPOTrainer, "get_batch_loss_metrics", spy)
        train(disable_shuffling=True, **settings)
    return seen


def scores(batch: dict[str, Any]) -> list[list[float]]:
    import torch

    return [part.tolist() for part in batch["scores"].view(torch.float32).chunk(2)]


def as_sharegpt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "conversations": [{"from": "human", "value": row["instruction"]}],
            "chosen": {"from": "gpt", "value": row["chosen"]},
            "rejected": {"from": "gpt", "value": row["rejected"]},
            "images": row["images"],
            "chosen_rating": row["score_chosen"],
            "rejected_rating": row["score_rejected"],
        }
        for row in rows
    ]


def as_openai(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": row["instruction"]}],
            "chosen": {"role": "assistant", "content": row["chosen"]},
            "rejected": {"role": "assistant", "content": row["rejected"]},
            "images": row["images"],
            "score_chosen": row["score_chosen"],
            "score_rejected": row["score_rejected"],
        }
        for row in rows
    ]


OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


@pytest.fixture(scope="module")
def rows(pair_data: Any) -> list[dict[str, Any]]:
    return json.loads((pair_data.folder / "mixed.json").read_text())


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt", "openai"])
def test_scores_of_every_format_reach_the_batch(
    train: Any, pair_data: Any, rows: list[dict[str, Any]], formatting: str
) -> None:
    media = {"chosen": "chosen", "rejected": "rejected", "images": "images"}
    if formatting == "sharegpt":
        columns = {"messages": "conversations", **media}
        columns |= {"score_chosen": "chosen_rating", "score_rejected": "rejected_rating"}
        pair_data.add("sharegpt", as_sharegpt(rows), formatting="sharegpt", columns=columns)
    elif formatting == "openai":
        columns = {"messages": "messages", **media}
        pair_data.add("openai", as_openai(rows), formatting="openai", columns=columns, tags=OPENAI_TAGS)
    found = batches(train, dataset="mixed" if formatting == "alpaca" else formatting)
    chosen = [score for batch in found for score in scores(batch)[0]]
    rejected = [score for batch in found for score in scores(batch)[1]]
    assert chosen == pytest.approx([row["score_chosen"] for row in rows], rel=1e-7)
    assert rejected == pytest.approx([row["score_rejected"] for row in rows], rel=1e-7)


def test_the_model_never_sees_a_score(train: Any) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    seen: set[str] = set()
    original = Qwen2VLForConditionalGeneration.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Qwen2VLForConditionalGeneration, "forward", forward)
        train(pair_forward="ordinary") if "pair_forward" in _arguments() else train()
    assert "input_ids" in seen
    assert "scores" not in seen


def _arguments() -> set[str]:
    from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments

    return set(UniDPOFinetuningArguments.__dataclass_fields__)


def test_datasets_with_and_without_scores_train_side_by_side_with_a_stock_loss(
    train: Any, pair_data: Any, rows: list[dict[str, Any]]
) -> None:
    bare = [{name: value for name, value in row.items() if not name.startswith("score")} for row in rows]
    pair_data.add("bare", bare)
    log = train(dataset="mixed,bare", pref_loss="sigmoid")
    assert sum("loss" in line for line in log) == 8


def test_integer_and_fractional_scores_merge(train: Any, pair_data: Any, rows: list[dict[str, Any]]) -> None:
    pair_data.add("whole", [row | {"score_chosen": 5, "score_rejected": 1} for row in rows])
    found = batches(train, dataset="mixed,whole")
    assert scores(found[-1]) == [[5.0] * 4, [1.0] * 4]


def test_cut_image_tokens_are_counted_and_named_before_training(train: Any) -> None:
    """24 tokens hold the system prompt and not two images; row 2 is the first that has two."""
    with pytest.raises(UniDPOError, match="cutoff_len") as caught:
        train(cutoff_len=24)
    message = str(caught.value)
    assert "mixed.json, row 2: cutoff_len 24 keeps" in message
    assert "of 8 image tokens" in message
    assert "row 1:" not in message


def test_data_tokenized_for_another_loss_is_refused(train: Any, tmp_path: Path) -> None:
    tokens = str(tmp_path / "tokens")
    train(pref_loss="sigmoid", tokenized_path=tokens)
    with pytest.raises(UniDPOError, match="tokenized_path has no scores"):
        train(tokenized_path=tokens)


def test_tokenized_data_trains_to_the_same_losses(train: Any, tmp_path: Path) -> None:
    tokens = str(tmp_path / "tokens")
    first, second = train(tokenized_path=tokens), train(tokenized_path=tokens, dataset_dir="nowhere")
    assert [line.get("loss") for line in first] == [line.get("loss") for line in second]


@pytest.mark.parametrize("value", [None, "4.5", True, float("nan")])
def test_a_bad_score_stops_before_the_model(
    train: Any, pair_data: Any, rows: list[dict[str, Any]], value: object
) -> None:
    pair_data.add("bad", [rows[0], rows[1] | {"score_chosen": value}])
    with pytest.raises(UniDPOError, match=r"bad\.json, row 1 \(line 1\), score_chosen"):
        train(dataset="bad", model_name_or_path="no-such-model")


def test_the_converter_names_scores_that_the_preflight_cannot_see(digits: dict[str, list[Digit]]) -> None:
    from uni_dpo.llamafactory.data import ScoredConverter, ScoredDatasetAttr

    attr = ScoredDatasetAttr("hf_hub", dataset_name="user/pairs")
    attr.join({"columns": {"score_chosen": "rating"}})

    class Upstream:
        dataset_attr = attr

        def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
            return {"_prompt": []}

    converter = ScoredConverter(Upstream())  # type: ignore[arg-type]
    kept = converter({"rating": 3, "score_rejected": 1.5, "_row": 0})
    assert kept["_scores"] == [3.0, 1.5]
    with pytest.raises(UniDPOError, match=r"user/pairs, row 7, rating: expected a finite number, found inf"):
        converter({"rating": float("inf"), "score_rejected": 1.5, "_row": 7})


def test_columns_of_several_types_and_late_images_train(train: Any, pair_data: Any, rows: list[dict[str, Any]]) -> None:
    """Readers of JSON guess one type per column; a thousand rows without an image used to make images impossible."""
    text = {name: value for name, value in rows[1].items() if name != "images"}
    assert not rows[1]["images"]
    assert len(rows[0]["images"]) == 1
    image = Path(rows[0]["images"][0])
    encoded = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    mixed = [text | {"id": "a"}, text | {"id": 3, "note": {"x": 1}}] * 501
    mixed += [rows[0] | {"images": images} for images in (str(image), [str(image)], [encoded])]
    pair_data.add("several", mixed)
    seen = batches(train, dataset="several", max_samples=len(mixed), per_device_train_batch_size=501)
    assert sum(len(batch["scores"]) for batch in seen) == 2 * len(mixed)
    assert any("image_grid_thw" in batch for batch in seen)


def test_images_beside_the_file_are_found_from_another_folder(
    train: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from uni_dpo.data.register import register_file

    shutil.copy(rows[0]["images"][0], tmp_path / "here.png")
    (tmp_path / "pairs.json").write_text(json.dumps([rows[0] | {"images": ["here.png"]}] * 4))
    register_file("near", tmp_path / "pairs.json", tmp_path / "elsewhere")
    assert len(batches(train, dataset="near", dataset_dir=str(tmp_path / "elsewhere"))) == 1
