"""The policy's numbers against the model's own full logits, one sequence at a time."""

from pathlib import Path

import torch

from uni_dpo.demo.digits import Digit
from uni_dpo.engine import Question
from uni_dpo.ppo.policy import collate, encode, load_policy


def with_answer(prompt: dict[str, torch.Tensor], answer: list[int]) -> dict[str, torch.Tensor]:
    """A prompt's inputs with an answer behind it."""
    columns = {"input_ids": answer, "attention_mask": [1] * len(answer), "mm_token_type_ids": [0] * len(answer)}
    return {
        name: torch.cat([value, torch.tensor([columns[name]])], 1) if name in columns else value
        for name, value in prompt.items()
    }


def test_log_probabilities_do_not_depend_on_the_batch(config, digits: dict[str, list[Digit]]) -> None:
    """Prompts of one, no and two images, answers of 3, 1 and 5 tokens, temperature 0.7: as each alone, in full."""
    policy, _, processor = load_policy(config(temperature=0.7))
    images = [str(digit.image) for digit in digits["train"][:3]]
    questions = [
        Question("a", "Which digit is written here?", (images[0],)),
        Question("b", "one two three", ()),
        Question("c", "Which digit do you see in the image?", (images[1], images[2])),
    ]
    prompts = [encode(question, processor) for question in questions]
    answers = [[30, 31, 32], [40], [50, 51, 52, 53, 54]]
    torch.nn.init.normal_(policy.value_head.weight)
    with torch.no_grad():
        logps, values = policy(*collate(prompts, answers, processor.tokenizer.pad_token_id))
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            output = policy.model(**with_answer(prompt, answer), output_hidden_states=True)
            span = slice(prompt["input_ids"].shape[1] - 1, -1)
            table = (output.logits[0, span].double() / 0.7).log_softmax(-1)
            expected = table.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
            torch.testing.assert_close(logps[row, : len(answer)].double(), expected, atol=1e-5, rtol=1e-5)
            assert logps[row, len(answer) :].eq(0).all()
            hidden = output.hidden_states[-1][0, span]
            torch.testing.assert_close(
                values[row, : len(answer)], policy.value_head(hidden).squeeze(-1), atol=1e-4, rtol=1e-4
            )


def test_answers_to_one_prompt_run_it_once(config, digits: dict[str, list[Digit]], monkeypatch) -> None:
    """Three answers to one image and two to another: log-probabilities and values as each alone; two images seen."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    policy, _, processor = load_policy(config(temperature=0.7))
    torch.nn.init.normal_(policy.value_head.weight)
    asked = [
        encode(Question(str(place), "Which digit is written here?", (str(digits["train"][place].image),)), processor)
        for place in (0, 0, 1, 0, 1)
    ]
    answers = [[30, 31, 32], [40], [50, 51, 52, 53, 54], [33, 34], [60, 61]]
    tower = modeling.Qwen2VisionTransformerPretrainedModel
    forward, grids = tower.forward, []
    monkeypatch.setattr(
        tower,
        "forward",
        lambda self, pixels, grid_thw, **k: grids.append(len(grid_thw)) or forward(self, pixels, grid_thw, **k),
    )
    with torch.no_grad():
        logps, values = policy(*collate(asked, answers, processor.tokenizer.pad_token_id))
        assert grids == [2]
        for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
            alone = policy(*collate([prompt], [answer], processor.tokenizer.pad_token_id))
            torch.testing.assert_close(logps[row, : len(answer)], alone[0][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values[row, : len(answer)], alone[1][0], atol=1e-4, rtol=1e-4)
            assert logps[row, len(answer) :].eq(0).all()


def test_every_family_runs_a_prompt_once(family_checkpoint, unlike_images, sequences_run, config) -> None:
    """Three answers to one image, of which two are the same, and two to one of another size: as each alone."""
    policy, _, processor = load_policy(config(model=str(family_checkpoint)))
    torch.nn.init.normal_(policy.value_head.weight)
    asked = [
        encode(Question(str(place), "Which digit?", (unlike_images[place],)), processor) for place in (0, 0, 1, 0, 1)
    ]
    answers, pad = [[30, 31], [40], [50, 51, 52], [30, 31], [60]], processor.tokenizer.pad_token_id
    counts = sequences_run(policy.model)
    with torch.no_grad():
        logps, values = policy(*collate(asked, answers, pad))
        assert counts == [2]
        for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
            alone = policy(*collate([prompt], [answer], pad))
            torch.testing.assert_close(logps[row, : len(answer)], alone[0][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values[row, : len(answer)], alone[1][0], atol=1e-4, rtol=1e-4)


def test_an_adapter_trains_the_language_model_only_and_switches_off_for_the_reference(config) -> None:
    policy, reference, _ = load_policy(config(finetuning="lora", freeze_vision_tower=True, lora_rank=4))
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert any("lora" in name for name in trained)
    assert not any("visual" in name for name in trained)
    assert {"value_head.weight", "value_head.bias"} <= set(trained)
    with reference.of(policy.model) as model:
        assert all(layer.disable_adapters for layer in model.modules() if hasattr(layer, "disable_adapters"))


def test_freezing_the_vision_tower(config) -> None:
    policy, _, _ = load_policy(config(freeze_vision_tower=True))
    assert not any(weight.requires_grad for name, weight in policy.named_parameters() if "visual" in name)
    assert any(weight.requires_grad for name, weight in policy.named_parameters() if "layers" in name)


def test_a_base_checkpoint_is_asked_in_its_own_template(base_checkpoint: Path, digits: dict, config) -> None:
    _, _, processor = load_policy(config(model=str(base_checkpoint)))
    inputs = encode(Question("a", "Which digit?", (str(digits["train"][0].image),)), processor)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith("<|vision_end|>Which digit?")
    assert "<|im_start|>" not in text


def test_a_cap_of_the_logits_comes_before_the_temperature(config) -> None:
    """Gemma 2's: log-probabilities are those of the model's own capped logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from uni_dpo.ppo.policy import answer_logps

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=40, head_dim=8, num_key_value_heads=1, final_logit_softcapping=0.5, **sizes)
    ).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    labels = torch.tensor([[-100, 5, 6, 7]])
    with torch.no_grad():
        logps, _ = answer_logps(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, 0.7)
        logits = model(ids).logits
        assert logits.abs().max() <= 0.5
        expected = (logits[:, 1:-1].double() / 0.7).log_softmax(-1).gather(-1, ids[:, 2:, None])[..., 0]
    torch.testing.assert_close(logps.double(), expected, atol=1e-5, rtol=1e-5)
