"""What the plan counts before anything is run."""

import json

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.layout import WorkLayout
from uni_dpo.align.plan import plan_lines


def lines(raw, **gpu):
    return {line.stage: (line.standing, line.what) for line in plan_lines(AlignConfig(raw), **gpu)}


def test_counts_by_hand(settings):
    """12 questions, 4 answers of at most 32 tokens; a judge that writes at most 100 tokens at 2 a million."""
    judge = {"backend": "openai", "model": "m", "base_url": "http://localhost:9/v1", "price_completion": 2000.0}
    engine = {
        "pipeline": "judge",
        "models": {"judge": judge},
        "sample": {"n": 4, "max_tokens": 32},
        "reward": {"max_tokens": 100},
        "pairs": {"max_pairs_per_question": 3},
    }
    found = lines(settings(engine=engine, evaluate={"by": "score"}))
    assert found["1/sample"] == ("to do", "12 questions × 4 answers, at most 1,536 tokens")
    cost = 12 * 4 * 100 * 2000 / 1e6
    again = "; more where a reply cannot be read and is asked for again"
    said = f"at most 48 requests, 4,800 tokens of replies, replies at most {cost:.2f} by price_completion{again}"
    assert found["1/score"][1] == said
    assert found["1/pair"][1] == "at most 36 pairs"
    spent = f"at most 6 requests, 600 tokens of replies, replies at most 1.20 by price_completion{again}"
    assert found["1/test"][1].endswith(f"on the test questions: 6; {spent}")
    assert found["1/validate"][1].endswith(f"on the validation questions: 6; {spent} for each checkpoint")
    assert lines(settings())["1/test"][1].endswith("on the test questions: 6")
    engine["reward"]["method"] = "compare"
    assert lines(settings(engine=engine))["1/score"][1].startswith("at most 144 requests")  # 12 · 4 · 3: both orders


def test_shares_and_parts_are_counted_before_the_split(settings):
    raw = settings(validation=0.25, test=0.25, rounds=2)
    raw["questions"] = {"path": raw["questions"], "per_round": "new"}
    found = lines(raw)
    assert found["2/sample"][1].startswith("3 questions × 4 answers")
    assert found["validate"][1].endswith(": 3")


def test_a_training_is_estimated_once_its_pairs_are_there(settings):
    raw = settings(train={"finetuning_type": "full", "per_device_train_batch_size": 2, "num_train_epochs": 2})
    assert "once the pairs are there" in lines(raw, gpu="h100")["1/train"][1]
    assert lines(raw)["1/train"][1] == "uni_dpo"
    folder = WorkLayout(AlignConfig(raw)).dataset(1)
    folder.mkdir(parents=True)
    pair = {"instruction": "?", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0}
    (folder / "pairs.json").write_text(json.dumps([pair] * 12))
    columns = {name: name for name in ("chosen", "rejected", "score_chosen", "score_rejected")}
    entry = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "instruction", **columns}}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))
    assert "12 steps" in lines(raw, gpu="h100")["1/train"][1]  # 12 pairs, 2 at once, twice
    assert lines(raw, gpu="h100")["1/train"][1].endswith("GiB: fits")
