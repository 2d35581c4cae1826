"""What servers write in place of an answer, and what is made of it."""

import json
from typing import Any

import pytest

from uni_dpo.models.backends.base import Sample
from uni_dpo.models.backends.replies import (
    LackingError,
    UnusableReplyError,
    read_body,
    read_error,
    read_first_token,
    read_samples,
    refused_field,
)


def completion(finish_reason: Any, **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}


@pytest.mark.parametrize("reason", ["stop", None, "eos", "STOP"])
def test_an_answer_that_ended_is_whole(reason: str | None) -> None:
    assert read_samples(completion(reason, content="a")) == [Sample("a", 0, True)]


@pytest.mark.parametrize("reason", ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length"])
def test_an_answer_that_the_limit_cut_is_not(reason: str) -> None:
    assert read_samples(completion(reason, content="a")) == [Sample("a", 0, False)]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (completion("error", content="Answ"), "answer broken off by the server"),
        (completion("abort", content="Answ"), "answer broken off by the server"),
        (completion("insufficient_system_resource", content="Answ"), "answer broken off by the server"),
        (completion("SAFETY", content="Answ"), "refusal"),
        (completion("content_filter", content=""), "refusal"),
        (completion("tool_calls", content=None, tool_calls=[{"id": "1"}]), "tool call in place of an answer"),
        (completion("stop", content="", reasoning_content="hm"), "reasoning without an answer"),
        (completion("length", content=None, reasoning="hm"), "reasoning without an answer"),
        (completion("stop", content=None), "empty answer"),
    ],
)
def test_what_is_no_answer_is_named(reply: dict[str, Any], kind: str) -> None:
    with pytest.raises(UnusableReplyError) as caught:
        read_samples(reply)
    assert caught.value.kind == kind


def test_one_refusal_takes_no_other_answer_along() -> None:
    filtered, kept = completion("content_filter", content=None), completion("stop", content="a")
    assert read_samples({"choices": filtered["choices"] + kept["choices"]}) == [Sample("a", 0, True)]


def test_a_reply_of_another_form_is_shown() -> None:
    for reply in ({"message": {"content": "a"}}, {"choices": [{"text": "a"}]}):
        with pytest.raises(UnusableReplyError) as caught:
            read_samples(reply)
        assert '"a"' in caught.value.detail


def test_a_server_without_alternatives_is_told_from_one_that_says_neither() -> None:
    reply = completion("stop", content="Yes")
    reply["choices"][0]["logprobs"] = {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": []}]}
    with pytest.raises(LackingError, match="reports no alternatives to a token"):
        read_first_token(reply)


def test_what_came_in_place_of_json_is_shown() -> None:
    assert read_body(b'\xef\xbb\xbf{"choices": []}') == {"choices": []}
    for body, kind, detail in (
        (b"data: {}\n\ndata: [DONE]", "malformed reply", "data: {} data: [DONE]"),
        (b"<html>\n login</html>", "malformed reply", "<html> login</html>"),
        (b'{"error": {"message": "rate limit", "code": 429}}', "error in place of an answer", "rate limit"),
    ):
        with pytest.raises(UnusableReplyError) as caught:
            read_body(body)
        assert (caught.value.kind, caught.value.detail) == (kind, detail)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no", "code": "x"}}, "no"),
        ({"error": "no"}, "no"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body", "seed"]}]}, '[{"loc": ["body", "seed"]}]'),
        ({"object": "error", "message": "no"}, "no"),
        ({"error": {}}, '{"error": {}}'),
    ],
)
def test_the_words_of_an_error_are_found(body: dict[str, Any], said: str) -> None:
    assert read_error(json.dumps(body).encode())[0] == said
    assert read_error(b"")[0] == "without a word"


SENT = ("model", "messages", "max_tokens", "temperature", "top_p", "seed", "n")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("n > 1 is not supported", "n"),
        ("'n' : number must be at most 1", "n"),
        ("n must be 1 when using greedy sampling, got 3.", "n"),
        ("Extra inputs are not permitted ['body', 'seed']", "seed"),
        ("Unrecognized request argument supplied: seed", "seed"),
        ("Unsupported value: 'temperature' does not support 0.0", "temperature"),
        ("Use 'max_completion_tokens' instead: 'max_tokens' is not supported", "max_tokens"),
        ("m is not a multimodal model, so images are not supported", None),
        ("This model's maximum context length is 4096 tokens. However, you requested 5000", None),
        ("max_tokens is too large: 9000. This model supports at most 4096 completion tokens", None),
    ],
)
def test_a_refused_field_is_told_from_other_faults(said: str, field: str | None) -> None:
    assert refused_field(json.dumps({"error": {"message": said}}).encode(), SENT) == field
