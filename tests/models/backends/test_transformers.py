import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl
from uni_dpo.engine.asking import YES_NO, word_forms
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request, Sampling, make_backend


@pytest.fixture(scope="module")
def backend(tiny_qwen2_vl):
    return make_backend({"model": str(tiny_qwen2_vl), "batch_size": 7})


@pytest.fixture(scope="module")
def requests(digits):
    with_image = [Request("Which digit?", (str(d.image),), seed=n) for n, d in enumerate(digits["train"][:4])]
    two = Request("Which digit is the larger one?", tuple(str(d.image) for d in digits["train"][4:6]), seed=9)
    return [*with_image, two, Request("Hello, is anyone there?", seed=10)]


def test_greedy_answers_do_not_depend_on_the_batch(backend, requests):
    greedy = Sampling(temperature=0.0, max_tokens=6)
    alone = [backend.generate([request], greedy)[0] for request in requests]
    assert backend.generate(requests, greedy) == alone
    assert len({reply[0].text for reply in alone}) > 1


def test_sampled_answers_do_not_depend_on_the_batch_or_its_order(backend, requests):
    sampling = Sampling(n=3, max_tokens=6)
    alone = [backend.generate([request], sampling)[0] for request in requests]
    assert backend.generate(requests, sampling) == alone
    assert backend.generate(requests[::-1], sampling) == alone[::-1]
    assert len({sample.text for sample in alone[0]}) == 3


def test_the_seed_decides(backend, requests):
    first, again = (backend.generate([requests[0]], Sampling(n=2, max_tokens=6)) for _ in range(2))
    other = backend.generate([Request(requests[0].prompt, requests[0].images, seed=99)], Sampling(n=2, max_tokens=6))
    assert first == again != other


def first_token_distribution(backend, request):
    import torch

    inputs = backend._encode([request])
    with torch.inference_mode():
        return backend.model(**inputs).logits[0, -1].double().softmax(-1)


def test_videos_are_seen_whatever_else_is_in_the_batch(backend, digits, write_video, tmp_path, tiny_qwen2_vl):
    """Images' own limits of pixels are not those of videos, which are as large as training shows them."""
    grey, noise = (str(write_video(tmp_path / f"{name}.mp4", 8, noise=name == "noise")) for name in ("grey", "noise"))
    told = {film: first_token_distribution(backend, Request("Which?", videos=(film,))) for film in (grey, noise)}
    assert not told[grey].allclose(told[noise], atol=1e-6)
    frames = tuple(str(digit.image) for digit in digits["train"][:2])
    asked = [
        Request("Which?", frames[:1], videos=(grey, frames)),
        Request("Which?"),
        Request("Which?", videos=(noise,)),
    ]
    greedy = Sampling(temperature=0.0, max_tokens=3)
    assert backend.generate(asked, greedy) == [backend.generate([request], greedy)[0] for request in asked]
    limited = make_backend({"model": str(tiny_qwen2_vl), "max_pixels": 28 * 28 * 4, "video_maxlen": 2})
    shown = limited._encode([Request("Which?", videos=(noise,))])
    assert shown["video_grid_thw"].tolist() == [[1, 20, 28]]
    assert not first_token_distribution(limited, Request("Which?", videos=(noise,))).allclose(told[noise], atol=1e-6)


def test_samples_follow_the_models_distribution(backend, requests):
    """Of 2,000 first tokens, those of the ten likeliest tokens lie within 4 standard errors of their shares."""
    request = requests[0]
    probabilities = first_token_distribution(backend, request)
    (reply,) = backend.generate([request], Sampling(n=2000, max_tokens=1))
    counts = Counter(sample.text for sample in reply)
    for token in probabilities.topk(10).indices.tolist():
        text = backend.tokenizer.decode([token], skip_special_tokens=True).strip()
        same = [
            t
            for t in range(len(probabilities))
            if backend.tokenizer.decode([t], skip_special_tokens=True).strip() == text
        ]
        p = float(probabilities[same].sum())
        assert abs(counts[text] / 2000 - p) < 4 * math.sqrt(p * (1 - p) / 2000)


@pytest.mark.parametrize(("sampling", "kept"), [({"top_k": 3}, 3), ({"top_p": 1e-6}, 1)])
def test_top_k_and_top_p_cut_the_tail(backend, requests, sampling, kept):
    probabilities = first_token_distribution(backend, requests[0])
    (reply,) = backend.generate([requests[0]], Sampling(n=200, max_tokens=1, **sampling))
    allowed = {
        backend.tokenizer.decode([t], skip_special_tokens=True).strip()
        for t in probabilities.topk(kept).indices.tolist()
    }
    assert {sample.text for sample in reply} == allowed


def test_top_p_keeps_the_smallest_set_that_reaches_it(backend, requests):
    probabilities = first_token_distribution(backend, requests[0]).sort(descending=True)
    top_p = float(probabilities.values[:5].sum()) - 1e-9
    (reply,) = backend.generate([requests[0]], Sampling(n=400, max_tokens=1, top_p=top_p))
    allowed = {
        backend.tokenizer.decode([t], skip_special_tokens=True).strip() for t in probabilities.indices[:5].tolist()
    }
    assert {sample.text for sample in reply} == allowed


def test_choice_logprobs_are_the_models_own(backend, requests):
    replies = backend.choice_logprobs(requests, YES_NO)
    for request, reply in zip(requests, replies, strict=True):
        probabilities = first_token_distribution(backend, request)
        firsts = {
            name: {backend.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in word_forms(name)}
            for name in ("yes", "no")
        }
        shared = firsts["yes"] & firsts["no"]
        for name in ("yes", "no"):
            expected = sum(float(probabilities[token]) for token in firsts[name] - shared)
            assert math.exp(reply[name]) == pytest.approx(expected, rel=1e-4)


def test_choices_that_no_first_token_tells_apart_are_refused(backend, requests):
    with pytest.raises(UniDPOError, match="no first token tells 'a'"):
        backend.choice_logprobs(requests[:1], {"a": ("yes",), "b": ("yes",)})


def test_answer_logprobs_equal_a_token_by_token_sum(backend, requests):
    """Oracle: one unpadded forward pass per pair, log-softmax in float64, summed over the answer's tokens."""
    import torch

    answers = ["The digit is two.", "x", "four", "zero, one", "I do not know.", "Yes, yes, yes, yes, yes, yes."]
    replies = backend.answer_logprobs(requests, answers)
    for request, answer, reply in zip(requests, answers, replies, strict=True):
        inputs = backend._encode([request])
        ids = torch.tensor([backend.tokenizer(answer, add_special_tokens=False)["input_ids"]])
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(ids, dtype=types.dtype)], 1)
        with torch.inference_mode():
            logprobs = backend.model(**inputs).logits[0].double().log_softmax(-1)
        expected = sum(float(logprobs[start - 1 + i, token]) for i, token in enumerate(ids[0].tolist()))
        assert reply.tokens == ids.shape[1]
        assert reply.total == pytest.approx(expected, abs=1e-4)


def test_answers_to_one_request_run_it_once_and_score_as_they_do_alone(backend, requests, monkeypatch):
    """Three answers to a request with an image and two to another, of which one is empty, in one batch."""
    asked = [requests[0], requests[1], requests[0], requests[1], requests[0]]
    answers = ["The digit is two.", "x", "four", "", "zero, one"]
    monkeypatch.setattr(backend, "options", replace(backend.options, batch_size=5))
    rows: list[int] = []
    forward = type(backend.model.model.language_model).forward

    def counted(self, *given, **named):
        rows.append(len(named["inputs_embeds"]))
        return forward(self, *given, **named)

    monkeypatch.setattr(type(backend.model.model.language_model), "forward", counted)
    together = backend.answer_logprobs(asked, answers)
    assert rows[0] < 5
    for request, answer, reply in zip(asked, answers, together, strict=True):
        (alone,) = backend.answer_logprobs([request], [answer])
        assert reply.tokens == alone.tokens
        assert reply.total == pytest.approx(alone.total, abs=1e-4)
    assert backend.model.config.get_text_config()._attn_implementation == "sdpa"


def test_every_family_runs_a_request_once(family_checkpoint, unlike_images, sequences_run):
    """Two images of unlike sizes and words alone; one answer is empty, two are the same."""
    backend = make_backend({"model": str(family_checkpoint), "batch_size": 8})
    red, blue = (Request("Which digit?", (image,)) for image in unlike_images)
    asked = [red, red, blue, red, Request("Hello"), blue, red, Request("Hello")]
    answers = ["two", "x", "", "zero one", "one", "two", "x", "no"]
    counts = sequences_run(backend.model)
    together = backend.answer_logprobs(asked, answers)
    assert counts == [3]
    for request, answer, reply in zip(asked, answers, together, strict=True):
        (alone,) = backend.answer_logprobs([request], [answer])
        assert reply.tokens == alone.tokens
        assert reply.total == pytest.approx(alone.total, abs=1e-5)


@pytest.mark.parametrize("family_checkpoint", ["internvl", "gemma3"], indirect=True)
def test_other_families_see_videos_one_by_one_or_say_that_they_see_none(family_checkpoint, unlike_images):
    """The processor of InternVL stacks no videos of unlike lengths, which two in one request are."""
    backend = make_backend({"model": str(family_checkpoint)})
    red, blue = unlike_images
    asked = [Request("Which?", videos=((red, red),)), Request("Hello"), Request("Which?", videos=((blue,) * 4,))]
    if family_checkpoint.name == "gemma3":
        with pytest.raises(UniDPOError, match="gemma3 takes no videos, but its requests carry some"):
            backend.generate(asked, Sampling(temperature=0.0, max_tokens=3))
        return
    assert [reply[0].tokens for reply in backend.generate(asked, Sampling(temperature=0.0, max_tokens=3))] == [3, 3, 3]
    answers = ["two", "one", "zero"]
    alone = [backend.answer_logprobs([request], [answer])[0] for request, answer in zip(asked, answers, strict=True)]
    assert backend.answer_logprobs(asked, answers) == alone
    with pytest.raises(UniDPOError, match="internvl: its processor does not take these videos together"):
        backend.generate([Request("Which?", videos=(*asked[0].videos, *asked[2].videos))], Sampling())


def test_answers_to_a_video_run_it_once(backend, digits, sequences_run, monkeypatch):
    monkeypatch.setattr(backend, "options", replace(backend.options, batch_size=5))
    videos = [[str(d.image) for d in digits["train"][start : start + 4]] for start in (0, 4)]
    asked = [
        Request(content=({"type": "video", "video": video, "fps": 1.0}, {"type": "text", "text": "Which digits?"}))
        for video in (videos[0], videos[0], videos[1], videos[0], videos[1])
    ]
    answers = ["one", "two", "", "zero one", "x"]
    counts = sequences_run(backend.model)
    together = backend.answer_logprobs(asked, answers)
    assert counts == [2]
    for request, answer, reply in zip(asked, answers, together, strict=True):
        (alone,) = backend.answer_logprobs([request], [answer])
        assert reply.total == pytest.approx(alone.total, abs=1e-5)


def test_usage_is_counted(tiny_qwen2_vl, requests):
    backend = make_backend({"model": str(tiny_qwen2_vl)})
    replies = backend.generate(requests, Sampling(n=2, max_tokens=3))
    assert backend.usage.requests == len(requests)
    assert backend.usage.completion_tokens == sum(s.tokens for reply in replies for s in reply)
    assert backend.usage.prompt_tokens > len(requests)


def test_faults_of_the_checkpoint_are_named(tmp_path, requests):
    with pytest.raises(UniDPOError, match=r"gone' cannot be loaded; there is no such folder here"):
        make_backend({"model": str(tmp_path / "gone")})
    deaf = write_tiny_qwen2_vl(tmp_path / "deaf", template="{{ 'Hello' }}")
    with pytest.raises(UniDPOError, match="deaf: its chat template loses the question or the images"):
        make_backend({"model": str(deaf)})


def test_a_base_template_is_asked_like_an_instruct_template(base_checkpoint, requests):
    backend = make_backend({"model": str(base_checkpoint)})
    assert backend.tokenizer.decode(backend._encode(requests[:1])["input_ids"][0]).endswith("Which digit?")
    replies = backend.generate(requests, Sampling(temperature=0.0, max_tokens=4))
    assert len(replies) == len(requests)
    assert all(reply[0].tokens for reply in replies)


def test_an_unreadable_image_is_named(backend, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UniDPOError, match=r"image .*bad.png cannot be read"):
        backend.generate([Request("?", (str(tmp_path / "bad.png"),))], Sampling(max_tokens=1))


def changed_copy(checkpoint, folder, change):
    """A copy of a checkpoint whose weights went through `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {f"module.{name}": value for name, value in weights.items()}, r"lacks \d+ weights .*module\."),
        (lambda weights: {name: value for name, value in weights.items() if "visual" not in name}, r"such as .*visual"),
    ],
)
def test_weights_that_are_missing_are_not_drawn_at_random(tiny_qwen2_vl, tmp_path, change, message):
    damaged = changed_copy(tiny_qwen2_vl, tmp_path / "damaged", change)
    with pytest.raises(UniDPOError, match=message):
        make_backend({"model": str(damaged)})


def test_a_model_that_computes_nan_gives_no_answer(tiny_qwen2_vl, requests, tmp_path):
    def with_nan(weights):
        name = next(name for name in weights if "mlp" in name and "visual" not in name)
        return weights | {name: weights[name] * float("nan")}

    model = make_backend({"model": str(changed_copy(tiny_qwen2_vl, tmp_path / "nan", with_nan))})
    for ask in (
        lambda: model.generate(requests[:1], Sampling(max_tokens=2)),
        lambda: model.choice_logprobs(requests[:1], YES_NO),
        lambda: model.answer_logprobs(requests[:1], ["seven"]),
    ):
        with pytest.raises(UniDPOError, match=r"computes NaN: its weights are damaged"):
            ask()


def test_a_tokenizer_without_words_is_refused(tiny_qwen2_vl, tmp_path):
    shutil.copytree(tiny_qwen2_vl, tmp_path / "bare")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    with pytest.raises(UniDPOError, match=r"the files of its tokenizer are missing"):
        make_backend({"model": str(tmp_path / "bare")})


def test_a_question_that_holds_a_placeholder_is_named(backend, requests):
    with pytest.raises(UniDPOError, match=r"'What is <\|image_pad\|>\?' holds <\|image_pad\|>"):
        backend.generate([replace(requests[0], prompt="What is <|image_pad|>?")], Sampling(max_tokens=2))
