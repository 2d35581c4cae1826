"""Real vLLM against transformers on the same tiny checkpoint; run by `make test-vllm` in an environment of its own."""

import math

import pytest

from uni_dpo.engine.asking import YES_NO
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request, Sampling, make_backend

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.fixture(scope="module")
def backends(tiny_qwen2_vl):
    model = str(tiny_qwen2_vl)
    vllm = {"backend": "vllm", "model": model, "dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    return make_backend(vllm), make_backend({"model": model})


@pytest.fixture(scope="module")
def requests(digits):
    images = [Request("Which digit?", (str(digit.image),), seed=7**n) for n, digit in enumerate(digits["train"][:3])]
    return [*images, Request("Hello", seed=5)]


def test_greedy_answers_are_those_of_transformers(backends, requests):
    vllm, local = backends
    greedy = Sampling(temperature=0.0, max_tokens=8)
    for ours, theirs in zip(vllm.generate(requests, greedy), local.generate(requests, greedy), strict=True):
        # Both stop at the same length; where it ends inside a character, they write its half differently.
        assert ours[0].text.rstrip("\ufffd") == theirs[0].text.rstrip("\ufffd")
        assert (ours[0].tokens, ours[0].finished) == (theirs[0].tokens, theirs[0].finished)


def test_samples_differ_and_return_with_their_seed(backends, requests):
    vllm, _ = backends
    first, again = (vllm.generate(requests, Sampling(n=3, max_tokens=8)) for _ in range(2))
    assert first == again
    assert all(len({sample.text for sample in reply}) == 3 for reply in first)
    reseeded = [Request(request.prompt, request.images, request.seed + 100) for request in requests]
    assert vllm.generate(reseeded, Sampling(n=3, max_tokens=8)) != first


def test_first_token_logprobs_are_those_of_transformers(backends, requests):
    vllm, local = backends
    for ours, theirs in zip(
        vllm.choice_logprobs(requests, YES_NO), local.choice_logprobs(requests, YES_NO), strict=True
    ):
        for name in YES_NO:
            assert math.isclose(ours[name], theirs[name], abs_tol=1e-4)


def test_logprobs_of_answers_after_an_image_are_those_of_transformers(backends, requests):
    vllm, local = backends
    answers = ["The digit is two.", "one", "nobody knows this", "Hello"]
    for ours, theirs in zip(
        vllm.answer_logprobs(requests, answers), local.answer_logprobs(requests, answers), strict=True
    ):
        assert ours.tokens == theirs.tokens
        assert math.isclose(ours.total, theirs.total, abs_tol=1e-3)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UniDPOError, match=r"gone.* cannot be loaded"):
        make_backend({"backend": "vllm", "model": str(tmp_path / "gone")})
