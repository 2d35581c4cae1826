"""One sequence per pair against two, with all logits: log-probabilities and every parameter's gradient."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    HYBRID_FAMILIES,
    IMAGE,
    MIXED,
    TEXT_ONLY,
    VIDEO,
    VISION_FAMILIES,
    Pair,
    pair_batch,
    share_prefix,
    tiny_model,
)
from torch import Tensor, nn

from uni_dpo import matmul
from uni_dpo.logprobs import ResponseTokens
from uni_dpo.matmul import OneDNNLinear, use_onednn
from uni_dpo.shared_prefix.attention import use_attention
from uni_dpo.shared_prefix.families import image_token_id, output_head, text_config, why_not_shared
from uni_dpo.shared_prefix.forward import ImageFeatures, pair_scores, same_frozen_vision

ODD = (Pair(9, 1, 17, [(4, 4), (4, 6)]), Pair(3, 13, 2, [(8, 4)]), Pair(1, 4, 4))


def ordinary(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Summed log-probabilities of two sequences per pair, in float32 at least, from all logits."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = batch["labels"][:, 1:]
    logps = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * (labels != -100)).sum(1)


def shared(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    inputs, tokens = share_prefix(batch, image_token_id(model))
    return pair_scores(model, inputs, tokens).logps


def preference_loss(logps: Tensor) -> Tensor:
    chosen, rejected = logps.chunk(2)
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected) - 1).mean() - 0.01 * chosen.mean()


def run(
    model: nn.Module, forward: Callable[[nn.Module, dict[str, Tensor]], Tensor], batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, loss and gradients."""
    model.zero_grad()
    logps = forward(model, batch)
    loss = preference_loss(logps)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logps.detach(), loss.detach(), gradients


def assert_equal_steps(
    model: nn.Module,
    batch: dict[str, Tensor],
    tolerance: float = 1e-5,
    change: Callable[[nn.Module], None] | None = None,
) -> None:
    """Two sequences per pair against one, before which the model is changed."""
    logps, loss, gradients = run(model, ordinary, batch)
    if change is not None:
        change(model)
    mine, my_loss, my_gradients = run(model, shared, batch)
    torch.testing.assert_close(mine, logps, rtol=tolerance, atol=0)
    torch.testing.assert_close(my_loss, loss, rtol=tolerance, atol=0)
    assert my_gradients.keys() == gradients.keys()
    whole = sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5
    for name, gradient in gradients.items():
        # Some gradients (a key's bias) are zero but for rounding, which is measured by the whole.
        bound = tolerance * float(gradient.norm()) + 0.01 * tolerance * whole
        assert float((my_gradients[name] - gradient).norm()) <= bound, name


def freeze_vision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "visual" in name or "vision_tower" in name or "multi_modal_projector" in name:
            parameter.requires_grad_(False)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_parameters_trained(family: str, side: str) -> None:
    model = tiny_model(family)
    assert_equal_steps(model, pair_batch(model, MIXED, side=side))
    assert_equal_steps(model, pair_batch(model, ODD, seed=1, side=side))
    use_attention(model, "sdpa")
    assert_equal_steps(model, pair_batch(model, MIXED, side=side))
    assert_equal_steps(model, pair_batch(model, ODD, seed=1, side=side))


@pytest.mark.parametrize("family", FAMILIES)
def test_products_by_onednn(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(matmul, "SMALL", 1)
    shapes: list[torch.Size] = []
    multiply = matmul._by_onednn
    monkeypatch.setattr(matmul, "_by_onednn", lambda left, *more: shapes.append(left.shape) or multiply(left, *more))
    model = tiny_model(family)
    assert_equal_steps(model, pair_batch(model, MIXED), change=lambda model: use_onednn(model.model))
    layers = [layer for layer in model.model.modules() if type(layer) is OneDNNLinear]
    assert len(shapes) > 2 * len(layers) > 0


WINDOWS = {
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WINDOWS)
def test_sliding_windows_see_as_far_as_in_sequences_of_their_own(family: str, attention: str) -> None:
    """Prompts of up to 13 tokens and answers of up to 17 leave the window of 5 in either part."""
    model = tiny_model(family, attention=attention, **WINDOWS[family])
    assert why_not_shared(model) is None
    batch = pair_batch(model, ODD)
    full = tiny_model(family, attention=attention)
    with torch.no_grad():
        assert not torch.allclose(ordinary(model, batch), ordinary(full, batch)), "the window shows nothing"
    assert_equal_steps(model, batch)
    use_attention(model, "sdpa")
    assert_equal_steps(model, pair_batch(model, MIXED, side="left"))


@pytest.mark.parametrize(("family", "types"), [("gemma3", "token_type_ids"), ("gemma4", "mm_token_type_ids")])
def test_images_of_gemma_are_seen_both_ways(family: str, types: str) -> None:
    """What is compared with the shared sequence is no causal run."""
    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    with torch.no_grad():
        causal = ordinary(model, {**batch, types: torch.zeros_like(batch["input_ids"])})
        assert not torch.allclose(ordinary(model, batch), causal, rtol=1e-3)


def test_small_models_of_gemma_4_see_images_as_text() -> None:
    model = tiny_model("gemma4")
    model.config.text_config.use_bidirectional_attention = None
    assert_equal_steps(model, pair_batch(model, MIXED))


def test_a_cap_of_the_logits_is_in_what_is_scored() -> None:
    model = tiny_model("gemma4")
    batch = pair_batch(model, MIXED)
    with torch.no_grad():
        capped = shared(model, batch)
        assert model.config.text_config.final_logit_softcapping == 5
        model.config.text_config.final_logit_softcapping = None
        assert not torch.allclose(ordinary(model, batch), capped, rtol=1e-3)


def as_videos(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with every image as a video of one step in time."""
    ids = torch.where(batch["input_ids"] == IMAGE, VIDEO, batch["input_ids"])
    video = {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    video |= {"pixel_values_videos": batch["pixel_values"], "video_grid_thw": batch["image_grid_thw"]}
    index = model.model.get_rope_index
    asked = (
        {"mm_token_type_ids": (ids == VIDEO).int() * 2} if "mm_token_type_ids" in signature(index).parameters else {}
    )
    positions, _ = index(ids, video_grid_thw=video["video_grid_thw"], attention_mask=video["attention_mask"], **asked)
    return {**video, "position_ids": torch.cat([positions[:1], positions])}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_videos(family: str, side: str) -> None:
    """Two videos in a prompt, one, and none."""
    model = tiny_model(family)
    batch = as_videos(model, pair_batch(model, MIXED, side=side))
    inputs, _ = share_prefix(batch, image_token_id(model))
    assert len(inputs["input_ids"]) == 3
    assert 2 * len(inputs["pixel_values_videos"]) == len(batch["pixel_values_videos"])
    assert_equal_steps(model, batch)
    use_attention(model, "sdpa")
    assert_equal_steps(model, batch)


def test_a_video_in_an_answer_is_not_shared() -> None:
    model = tiny_model("qwen2_vl")
    batch = as_videos(model, pair_batch(model, [Pair(4, 5, 7, [(4, 6)])]))
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    batch["labels"][:, :2] = -100
    assert share_prefix(batch, image_token_id(model)) == "an answer holds a video"


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family: str) -> None:
    model = tiny_model(family)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal_steps(model, pair_batch(model, MIXED))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_frozen_tower(family: str) -> None:
    model = tiny_model(family, tie_word_embeddings=True)
    freeze_vision(model)
    assert_equal_steps(model, pair_batch(model, MIXED))


@pytest.mark.parametrize("family", VISION_FAMILIES)
@pytest.mark.parametrize("fake_image", [False, True])
def test_pairs_without_images(family: str, fake_image: bool) -> None:
    model = tiny_model(family)
    assert_equal_steps(model, pair_batch(model, TEXT_ONLY, fake_image=fake_image))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "down_proj", "in_proj_qkv"], ["v_proj", "lm_head", "qkv", "fc1"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora(family: str, targets: list[str], checkpointing: bool) -> None:
    """On the language model, and on the head and the tower too."""
    model = adapted(tiny_model(family), targets)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    assert_equal_steps(model, pair_batch(model.get_base_model(), MIXED))


def adapted(model: nn.Module, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    # PEFT takes none of the clipped layers of Gemma 4's tower.
    clipped = r".*vision_tower.*" if model.config.model_type == "gemma4" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(
            model, LoraConfig(target_modules=targets, exclude_modules=clipped, r=4, init_lora_weights=False)
        )


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "llava"])
def test_eager_attention(family: str) -> None:
    model = tiny_model(family, attention="eager")
    assert_equal_steps(model, pair_batch(model, MIXED))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_model_loaded_with_flash_attention(family: str) -> None:
    """Its language model attends by SDPA, batches of two sequences per pair included."""
    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    expected = ordinary(model, batch)
    text_config(model)._attn_implementation = "flash_attention_2"
    use_attention(model, "sdpa")
    torch.testing.assert_close(shared(model, batch), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(ordinary(model, batch), expected, rtol=1e-5, atol=0)


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """FlexAttention as plain code with gradients, which a CPU is refused; holds the type of mask of every call."""
    from torch.nn.attention import flex_attention as flex
    from transformers.integrations import flex_attention as integration

    masks: list[type] = []

    def attend(*args: Any, block_mask: Any, **kwargs: Any) -> Any:
        masks.append(type(block_mask))
        return flex.flex_attention(*args, block_mask=block_mask, **kwargs)

    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(integration, "WrappedFlexAttention", lambda training: lambda: attend)
    return masks


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in HYBRID_FAMILIES])
def test_flex_attention(family: str, flex_on_cpu: list[type]) -> None:
    """The masks that are given to the kernels are right; the kernels themselves need a GPU."""
    from torch.nn.attention.flex_attention import BlockMask

    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    logps, loss, gradients = run(model, ordinary, batch)
    use_attention(model, "flex_attention")
    mine, my_loss, my_gradients = run(model, shared, batch)
    assert set(flex_on_cpu) == {BlockMask}
    torch.testing.assert_close(mine, logps, rtol=1e-5, atol=0)
    torch.testing.assert_close(my_loss, loss, rtol=1e-5, atol=0)
    assert difference(my_gradients, gradients) <= 1e-5 * difference(gradients, zeros(gradients))


def zeros(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Euclidean distance of two sets of gradients."""
    return sum(float((first[name].double() - second[name].double()).square().sum()) for name in first) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str) -> None:
    """Equal within 1e-2; gradients within that or what rounding to bfloat16 itself costs them.

    A parameter whose two gradients are rounded farther apart than that has to be nearer to float64 than the ordinary
    path's: how a convolution rounds differs from processor to processor.
    """
    model = tiny_model(family).bfloat16()
    batch = pair_batch(model, MIXED)
    exact_logps, _, exact = run(copy.deepcopy(model).double(), ordinary, batch)
    logps, loss, gradients = run(model, ordinary, batch)
    mine, my_loss, my_gradients = run(model, shared, batch)
    torch.testing.assert_close(mine.double(), exact_logps, rtol=1e-2, atol=0)
    torch.testing.assert_close(mine, logps, rtol=1e-2, atol=0)
    torch.testing.assert_close(my_loss, loss, rtol=1e-2, atol=0)
    whole = difference(exact, zeros(exact))
    assert difference(my_gradients, gradients) <= max(1e-2 * whole, difference(gradients, exact))
    assert difference(my_gradients, exact) <= 1.1 * difference(gradients, exact)
    for name, gradient in gradients.items():
        error = float((gradient.double() - exact[name]).norm())
        bound = max(1e-2 * float(exact[name].norm()), error) + 1e-4 * whole
        equal = float((my_gradients[name] - gradient).double().norm()) <= bound
        assert equal or float((my_gradients[name].double() - exact[name]).norm()) <= error, name


def scored_states(model: nn.Module, forward: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The hidden states, as the head is given them, that predict the answers' tokens, pair by pair."""
    given: list[Tensor] = []
    hook = output_head(model).register_forward_pre_hook(lambda _, states: given.append(states[0]))
    with torch.no_grad():
        forward(model, batch)
    hook.remove()
    tokens = ResponseTokens.from_labels(batch["labels"])
    if forward is shared:
        _, tokens = share_prefix(batch, image_token_id(model))
    return given[0].flatten(0, 1)[tokens.predictor].double()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3"])
def test_bfloat16_is_no_farther_from_float64_over_many_models(family: str) -> None:
    """By hidden states, of which there are many, rather than by a few sums, whose errors chance decides."""
    ratios = []
    for seed in range(8):
        model = tiny_model(family, seed=seed).bfloat16()
        batch = pair_batch(model, MIXED, seed=seed)
        exact = scored_states(copy.deepcopy(model).double(), ordinary, batch)
        theirs = scored_states(model, ordinary, batch) - exact
        use_attention(model, "sdpa")
        ours = scored_states(model, shared, batch) - exact
        ratios.append(ours.norm() / theirs.norm())
    assert float(torch.stack(ratios).log().mean().exp()) <= 1.02


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next", "qwen3"])
def test_autocast(family: str) -> None:
    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(shared(model, batch), ordinary(model, batch), rtol=1e-2, atol=0)
        preference_loss(shared(model, batch)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_two_sequences_score_only_answers_too(family: str) -> None:
    """A batch that isn't shared gives LlamaFactory's numbers as well, the mean of all logits included."""
    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    scores = pair_scores(model, inputs, ResponseTokens.from_labels(batch["labels"]), mean_logits=True)
    torch.testing.assert_close(scores.logps, ordinary(model, batch), rtol=1e-5, atol=0)
    assert scores.lengths.tolist() == [5, 12, 1, 9, 3, 6]
    logits = model(**inputs).logits
    torch.testing.assert_close(scores.mean_logits, logits.mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_mean_logits_are_over_a_sequence_without_its_padding(family: str) -> None:
    model = tiny_model(family)
    batch = pair_batch(model, MIXED)
    inputs, tokens = share_prefix(batch, image_token_id(model))
    means = pair_scores(model, inputs, tokens, mean_logits=True).mean_logits
    attended = batch["attention_mask"].bool()
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    expected = torch.stack([row[seen].mean() for row, seen in zip(logits, attended, strict=True)])
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("qwen2_vl")
    batch = pair_batch(model, MIXED)
    before = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    shared(model, batch)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(**{key: value for key, value in batch.items() if key != "labels"}).logits, before)


def test_an_error_in_the_model_leaves_it_as_it_was() -> None:
    model = tiny_model("qwen2_vl")
    inputs, tokens = share_prefix(pair_batch(model, MIXED), image_token_id(model))
    with pytest.raises(Exception, match=r".+"):
        pair_scores(model, {**inputs, "pixel_values": inputs["pixel_values"][:3]}, tokens)
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_reference_uses_the_features_of_the_policy(family: str) -> None:
    policy = tiny_model(family).double()
    reference = copy.deepcopy(policy)
    for parameter in reference.get_output_embeddings().parameters():
        parameter.data += 0.1
    policy.requires_grad_(False)
    inputs, tokens = share_prefix(pair_batch(policy, MIXED), image_token_id(policy))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    expected = pair_scores(reference, inputs, tokens).logps
    images = ImageFeatures()
    assert same_frozen_vision(policy, reference)
    with images.kept(policy, inputs["pixel_values"]):
        pair_scores(policy, inputs, tokens)
    looks = counted_looks(reference)
    with images.reused(reference, inputs["pixel_values"]):
        reused = pair_scores(reference, inputs, tokens).logps
    torch.testing.assert_close(reused, expected, rtol=0, atol=1e-12)
    assert not looks
    with images.reused(reference, inputs["pixel_values"]):
        pair_scores(reference, inputs, tokens)
    assert looks == [1], "features are used once"
    with images.kept(policy, inputs["pixel_values"]):
        pair_scores(policy, inputs, tokens)
    with images.reused(reference, inputs["pixel_values"].clone()):
        pair_scores(reference, inputs, tokens)
    assert looks == [1, 1], "features of other pixels are not used"


def counted_looks(model: nn.Module) -> list[int]:
    looks: list[int] = []
    tower = getattr(model.model, "visual", None) or model.model.vision_tower
    tower.register_forward_hook(lambda *_: looks.append(1))
    return looks


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_vision_is_the_same_only_if_frozen_and_equal(family: str) -> None:
    policy = tiny_model(family)
    reference = copy.deepcopy(policy)
    assert not same_frozen_vision(policy, reference)
    policy.requires_grad_(False)
    assert same_frozen_vision(policy, reference)
    last = [p for n, p in reference.named_parameters() if "visual" in n or "vision_tower" in n][-1]
    last.data.view(-1)[0] += 1
    assert not same_frozen_vision(policy, reference)


def test_a_text_model_has_no_vision_to_share() -> None:
    model = tiny_model("llama").requires_grad_(False)
    assert not same_frozen_vision(model, model)
