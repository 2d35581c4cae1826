"""Answers keyed by id, with only newly generated tokens in them, and a run that goes on where it stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from uni_dpo.inference.compare import ORIGINAL, TRAINED, Models, Prompt, compare, read_prompts
from uni_dpo.models.backends import Sampling

SHORT = Sampling(max_tokens=12, temperature=0.0)


def naive_answer(model: Any, tokenizer: Any, prompt: str) -> str:
    """Greedy, one token at a time, one prompt at a time, without padding or cache."""
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(SHORT.max_tokens):
        with torch.no_grad():
            token = model(input_ids=ids).logits[0, -1].argmax()
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None, None]], dim=1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_answers_are_what_each_model_newly_wrote(original: Path, adapter: Path, prompts: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = compare(read_prompts(prompts), Models.find(str(adapter)), tmp_path / "answers", SHORT)
    assert [row["id"] for row in rows] == [7, 2, 10]
    assert [set(row) for row in rows] == [{"id", "prompt", ORIGINAL, TRAINED}] * 3
    tokenizer = AutoTokenizer.from_pretrained(original)
    before = AutoModelForCausalLM.from_pretrained(original)
    for row in rows:
        assert row[ORIGINAL] == naive_answer(before, tokenizer, row["prompt"])
    after = PeftModel.from_pretrained(before, adapter)
    for row in rows:
        assert row[TRAINED] == naive_answer(after, tokenizer, row["prompt"])
        assert "" != row[TRAINED] != row[ORIGINAL] != ""


def test_a_whole_model_answers_as_its_adapter_does(
    original: Path, adapter: Path, merged: Path, prompts: Path, tmp_path: Path
) -> None:
    asked = read_prompts(prompts)
    one = compare(asked, Models.find(str(adapter)), tmp_path / "one", SHORT)
    two = compare(asked, Models.find(str(merged), str(original)), tmp_path / "two", SHORT)
    assert one == two


def test_neither_order_nor_batch_size_changes_a_drawn_answer(adapter: Path, prompts: Path, tmp_path: Path) -> None:
    asked = read_prompts(prompts)
    drawn = Sampling(max_tokens=12, temperature=1.0)
    models = Models.find(str(adapter))
    one = compare(asked, models, tmp_path / "one", drawn, batch_size=3)
    two = compare(asked[::-1], models, tmp_path / "two", drawn, batch_size=1)
    assert one == two[::-1]
    assert one != compare(asked, models, tmp_path / "one", drawn, seed=1)


def test_an_interrupted_run_goes_on(
    original: Path, adapter: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the trained model's second prompt: four answers stand, two are asked for."""
    from uni_dpo.models.backends.transformers import TransformersBackend

    asked, models = read_prompts(prompts), Models.find(str(adapter))
    expected = compare(asked, models, tmp_path / "whole", SHORT, batch_size=1)
    generate = TransformersBackend.generate
    calls: list[str] = []
    stop_at = 5

    def stopping(self: Any, requests: Any, sampling: Any) -> Any:
        calls.append(requests[0].prompt)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return generate(self, requests, sampling)

    monkeypatch.setattr(TransformersBackend, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(asked, models, tmp_path / "stopped", SHORT, batch_size=1)
    calls.clear()
    assert compare(asked, models, tmp_path / "stopped", SHORT, batch_size=1) == expected
    assert calls == [prompt.text for prompt in asked[1:]]
    calls.clear()
    assert compare(asked, models, tmp_path / "stopped", SHORT, batch_size=1) == expected
    assert not calls


def test_another_prompt_under_an_old_id_is_asked_anew(adapter: Path, tmp_path: Path) -> None:
    models = Models.find(str(adapter))
    first = compare([Prompt(1, "Is rain good?")], models, tmp_path, SHORT)
    second = compare([Prompt(1, "Name a colour.")], models, tmp_path, SHORT)
    assert second[0]["prompt"] == "Name a colour."
    assert first[0][ORIGINAL] != second[0][ORIGINAL]


def test_a_system_prompt_reaches_both_models(adapter: Path, tmp_path: Path) -> None:
    models = Models.find(str(adapter))
    asked = [Prompt(1, "Is rain good?"), Prompt(2, "Is rain good?", (), "Answer in rhymes, and at length.")]
    without, with_it = compare(asked, models, tmp_path, SHORT)
    assert with_it[ORIGINAL] != without[ORIGINAL]
    assert with_it[TRAINED] != without[TRAINED]
    assert with_it["system"] == "Answer in rhymes, and at length."
    assert "system" not in without


def test_images_are_asked_about(tiny_qwen2_vl: Path, digits: dict[str, list[Any]], tmp_path: Path) -> None:
    asked = [Prompt(1, "Which digit?", (str(digits["preference"][0].image),)), Prompt(2, "Which digit?")]
    models = Models.find(str(tiny_qwen2_vl), str(tiny_qwen2_vl))
    with_image, without = compare(asked, models, tmp_path, SHORT)
    assert with_image[ORIGINAL] == with_image[TRAINED]
    assert with_image["images"] == [str(digits["preference"][0].image)]
    assert "images" not in without
