import base64
import io
import math
import time
from email.utils import formatdate

import httpx
import pytest
from PIL import Image as PILImage

from uni_dpo.engine.asking import YES_NO
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import AnswerLogprob, Failure, Request, Sample, Sampling, make_backend
from uni_dpo.models.backends.openai import OpenAIBackend, OpenAIOptions
from uni_dpo.models.backends.replies import sum_choices
from uni_dpo.models.backends.server import LONGEST_WAIT, Server, _tls, retry_after
from uni_dpo.models.backends.settings import without_secrets


def make(server, **options):
    quick = {"timeout": 0.4, "backoff": 0.01, "max_retries": 2}
    return make_backend({"backend": "openai", "model": "m", "base_url": server.url, **quick, **options})


def echo(body):
    prompt = body["messages"][0]["content"]
    prompt = prompt if isinstance(prompt, str) else prompt[-1]["text"]
    message = {"role": "assistant", "content": f"{prompt} "}
    return {
        "choices": [{"index": i, "finish_reason": "stop", "message": dict(message)} for i in range(body.get("n", 1))]
    }


def test_requests_carry_what_was_asked(chat_server, digits):
    server = chat_server(echo)
    image = digits["train"][0].image
    replies = make(server).generate(
        [Request("hello", (str(image),), seed=2**40 + 5)],
        Sampling(n=2, temperature=0.5, top_p=0.9, top_k=4, max_tokens=7),
    )
    assert replies == [[Sample("hello", 0, True)] * 2]
    (body,) = server.bodies
    assert {k: body[k] for k in ("model", "n", "temperature", "top_p", "top_k", "max_tokens", "seed")} == {
        "model": "m", "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "max_tokens": 7, "seed": 5,
    }  # fmt: skip
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == image.read_bytes()


def test_images_are_sent_as_what_they_are_in_a_format_that_servers_take(chat_server, digits, tmp_path):
    server = chat_server(echo)
    with PILImage.open(digits["train"][0].image) as image:
        for name, kind in (("named.jpg", "PNG"), ("scan.tiff", "TIFF"), ("plain.jpeg", "JPEG")):
            image.convert("RGB").save(tmp_path / name, format=kind)
            make(server).generate([Request("hello", (str(tmp_path / name),))], Sampling())
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies]
    assert [url.split(";")[0] for url in urls] == ["data:image/png", "data:image/png", "data:image/jpeg"]
    formats = [PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).format for url in urls]
    assert formats == ["PNG", "PNG", "JPEG"]


def test_a_port_that_no_server_has_is_named():
    with pytest.raises(UniDPOError, match=r"no port has the number 99999"):
        make_backend({"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:99999/v1"})


def test_many_requests_come_back_in_order(chat_server):
    server = chat_server(echo)
    requests = [Request(f"r{i}") for i in range(30)]
    replies = make(server, concurrency=5).generate(requests, Sampling())
    assert [reply[0].text for reply in replies] == [request.prompt for request in requests]


def test_a_server_that_ignores_n_is_asked_again(chat_server):
    def one_at_a_time(body):
        return {"choices": echo({**body, "n": 1})["choices"]}

    server = chat_server(one_at_a_time)
    (reply,) = make(server).generate([Request("a")], Sampling(n=3))
    assert [sample.text for sample in reply] == ["a"] * 3
    assert [body["n"] for body in server.bodies] == [3, 2, 1]
    assert len({body["seed"] for body in server.bodies}) == 3


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        (500, "HTTP 500"),
        (429, "HTTP 429"),
        (503, "HTTP 503"),
        ("timeout", "timeout"),
        ("truncated", "malformed reply"),
        ("html", "malformed reply"),
        ("no_choices", "malformed reply"),
        ("empty", "empty answer"),
        ("refusal", "refusal"),
    ],
)
def test_each_fault_is_retried_and_counted(chat_server, fault, counted):
    server = chat_server(echo, lambda body, attempt: fault if attempt < 2 else None)
    backend = make(server)
    assert backend.generate([Request("a")], Sampling()) == [[Sample("a", 0, True)]]
    assert backend.usage.retries == 2
    assert backend.usage.failures == 0
    assert backend.usage.faults == {counted: 2}
    seeds = {body["seed"] for body in server.bodies}
    assert len(seeds) == (3 if fault in ("empty", "refusal") else 1)


@pytest.mark.parametrize("fault", [500, "timeout", "truncated", "empty", "refusal"])
def test_a_lasting_fault_fails_its_own_request_only(chat_server, fault):
    server = chat_server(echo, lambda body, attempt: fault if body["messages"][0]["content"] == "b" else None)
    backend = make(server)
    a, b, c = backend.generate([Request("a"), Request("b"), Request("c")], Sampling())
    assert (a[0].text, c[0].text) == ("a", "c")
    assert isinstance(b, Failure)
    assert "(3 attempts)" in b.reason
    assert backend.usage.failures == 1


def test_a_bad_request_is_not_repeated(chat_server):
    server = chat_server(echo, lambda body, attempt: 400)
    (reply,) = make(server).generate([Request("a")], Sampling())
    assert reply == Failure("HTTP 400: out of order") or reply.reason.startswith("HTTP 400")
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_befalls_every_request_ends_the_run(chat_server, status):
    server = chat_server(echo, lambda body, attempt: status)
    with pytest.raises(UniDPOError, match=f"HTTP {status}.*check model, base_url and OPENAI_API_KEY"):
        make(server).generate([Request("a")] * 20, Sampling())


@pytest.mark.parametrize(
    ("field", "said", "without"),
    [
        ("n", "Invalid n value (currently only n = 1 is supported)", {"n"}),
        ("seed", "Extra inputs are not permitted: seed", {"seed"}),
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {"max_tokens"}),
    ],
)
def test_what_a_server_refuses_and_answers_do_not_need_is_left_out(chat_server, capsys, field, said, without):
    server = chat_server(echo, lambda body, attempt: (422, {"detail": said}) if field in body else None)
    replies = make(server, concurrency=1).generate([Request("a"), Request("b")], Sampling(n=2))
    assert [[sample.text for sample in reply] for reply in replies] == [["a", "a"], ["b", "b"]]
    assert capsys.readouterr().err.count(f"takes no {field}: it is asked without") == 1
    assert all(not without & body.keys() for body in server.bodies[1:])
    if field == "max_tokens":
        assert server.bodies[-1]["max_completion_tokens"] == Sampling().max_tokens


def test_a_server_that_takes_no_temperature_is_named_unless_it_may_choose(chat_server):
    said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported."
    server = chat_server(
        echo, lambda body, attempt: (400, {"error": {"message": said}}) if "temperature" in body else None
    )
    with pytest.raises(
        UniDPOError, match="takes no temperature 0; ask with temperature 1, or set send_temperature: false"
    ):
        make(server).generate([Request("a")], Sampling(temperature=0.0))
    assert make(server, send_temperature=False).generate([Request("a")], Sampling(temperature=0.0)) == [
        [Sample("a", 0, True)]
    ]


def test_a_query_in_the_address_stays_behind_the_path(chat_server):
    server = chat_server(echo)
    backend = make_backend({"backend": "openai", "model": "m", "base_url": f"{server.url}?api-version=1"})
    assert str(backend.server._at("/models")) == f"{server.url}/models?api-version=1"
    assert backend.generate([Request("a")], Sampling()) == [[Sample("a", 0, True)]]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://me:secret@host/v1?key=secret", "https://host/v1"),
        (" http://me:sec@ret@host:1/a//b@c#secret", "http://host:1/a//b@c"),
        ("me:secret@host:3128", "host:3128"),
        ("host:3128", "host:3128"),
    ],
)
def test_no_message_holds_what_may_be_a_key_in_an_address(address, said):
    assert without_secrets(address) == said


def test_a_fault_of_the_address_shows_no_key():
    for address in ("ftp://me:secret@host/v1?key=secret", "http://me:secret@host:none/v1"):
        with pytest.raises(UniDPOError, match="host") as raised:
            Server(OpenAIOptions("m", base_url=address))
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "HTTP_PROXY",
            "foo://bar",
            "the proxy that .* cannot be used: .*; correct or unset it, or add 127.0.0.1 to NO",
        ),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "the proxy that .* cannot be used: .*socks"),
        (
            "HTTP_PROXY",
            "http://me:secret@127.0.0.1:9",
            "at http://127.0.0.1:9/v1 through the proxy http://127.0.0.1:9: ",
        ),
        ("HTTP_PROXY", "me:secret@127.0.0.1:9", "at http://127.0.0.1:9/v1 through the proxy 127.0.0.1:9: "),
    ],
)
def test_a_proxy_that_is_in_the_way_is_named(name, value, message, monkeypatch):
    for other in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UniDPOError, match=message):
        Server(OpenAIOptions("m", base_url=" http://127.0.0.1:9/v1 ")).probe()


def test_a_proxy_at_fault_is_named_without_a_probe_too(monkeypatch):
    for other in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "foo://bar")
    with pytest.raises(UniDPOError, match="ALL_PROXY names cannot be used"):
        OpenAIBackend(OpenAIOptions("m", base_url="http://127.0.0.1:9/v1")).generate([Request("a")], Sampling())


def test_certificates_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    _tls.cache_clear()
    with pytest.raises(UniDPOError, match="certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"):
        Server(OpenAIOptions("m", base_url="http://127.0.0.1:9/v1")).probe()


def test_the_wait_that_a_server_asks_for_may_be_a_date():
    def waits(said):
        return retry_after(httpx.Response(429, headers={b"Retry-After": said.encode("latin-1")}))

    assert 25 < waits(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert waits("Wed, 21 Oct 2099 07:28:00 GMT") == waits("9999") == LONGEST_WAIT
    assert waits("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [waits(said) for said in ("2", "-5", "soon", "\x80", "nan", "Wed, 99 Oct 2099 99:99:99 GMT")] == [
        2,
        *[None] * 5,
    ]


def in_parts(body):
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": parts}}]}


def test_a_list_of_parts_is_no_text_unless_it_is_said_to_be(chat_server):
    server = chat_server(in_parts)
    with pytest.raises(UniDPOError, match=r"answers with a list of parts.*join_parts: true"):
        make(server).generate([Request("a")], Sampling())
    assert len(server.bodies) == 1, "every request would fare alike"
    assert make(server, join_parts=True).generate([Request("a")], Sampling()) == [[Sample("ab", 0, True)]]
    silent = chat_server(lambda body: {"choices": [{"index": 0, "message": {"content": [{"type": "audio"}]}}]})
    assert make(silent, join_parts=True).generate([Request("a")], Sampling()) == [Failure("empty answer (3 attempts)")]


def test_a_server_that_went_away_is_a_failure():
    options = OpenAIOptions("m", base_url="http://127.0.0.1:9/v1", backoff=0.01, max_retries=1)
    backend = OpenAIBackend(options)
    (reply,) = backend.generate([Request("a")], Sampling())
    assert reply.reason.startswith("no connection")
    assert backend.usage.faults == {"no connection": 2}
    with pytest.raises(UniDPOError, match=r"no OpenAI-compatible server answers at http://127\.0\.0\.1:9/v1"):
        backend.check()


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UniDPOError, match="OPENAI_API_KEY is not set"):
        make_backend({"backend": "openai", "model": "m"})


def test_cost_is_counted_per_million_tokens(chat_server):
    backend = make(chat_server(echo), price_prompt=2.0, price_completion=4.0)
    backend.generate([Request("a"), Request("b")], Sampling())
    assert (backend.usage.prompt_tokens, backend.usage.completion_tokens) == (20, 10)
    assert backend.usage.cost == pytest.approx((20 * 2.0 + 10 * 4.0) / 1e6)


def test_the_rate_limit_spaces_requests(chat_server, monkeypatch):
    backend = make(chat_server(echo), requests_per_minute=60)
    monkeypatch.setattr("uni_dpo.models.backends.openai.time.monotonic", lambda: 100.0)
    assert [backend.turn() for _ in range(4)] == [0.0, 1.0, 2.0, 3.0]
    monkeypatch.undo()


def test_choices_are_summed_over_their_forms():
    reported = [("Yes", math.log(0.4)), (" yes", math.log(0.2)), ("Ġno", math.log(0.1)), ("Y", math.log(0.05))]
    sums = sum_choices(reported, YES_NO)
    assert math.exp(sums["yes"]) == pytest.approx(0.6)
    assert math.exp(sums["no"]) == pytest.approx(0.1)
    assert sum_choices([("maybe", -0.1)], YES_NO) == {"yes": -math.inf, "no": -math.inf}


def test_beginnings_count_only_where_no_whole_form_is_reported():
    sums = sum_choices([("Y", math.log(0.5)), (" n", math.log(0.2)), (" ", math.log(0.3))], YES_NO)
    assert math.exp(sums["yes"]) == pytest.approx(0.5)
    assert math.exp(sums["no"]) == pytest.approx(0.2)


def test_a_server_without_logprobs_is_named(chat_server):
    backend = make(chat_server(echo))
    with pytest.raises(UniDPOError, match="reports no log-probabilities"):
        backend.choice_logprobs([Request("a")], YES_NO)
    with pytest.raises(UniDPOError, match="does not return prompt_logprobs"):
        backend.answer_logprobs([Request("a")], ["b"])


def test_a_served_model_answers_as_it_does_in_this_process(chat_server, served, tiny_qwen2_vl, digits):
    local = make_backend({"model": str(tiny_qwen2_vl)})
    server = chat_server(served(local))
    remote = make(server, concurrency=1, timeout=30)
    requests = [Request("Which digit?", (str(d.image),), seed=3) for d in digits["train"][:3]] + [Request("Hello")]
    greedy = Sampling(temperature=0.0, max_tokens=5)
    assert [r[0].text for r in remote.generate(requests, greedy)] == [
        r[0].text or "x" for r in local.generate(requests, greedy)
    ]
    answers = ["The digit is two.", "one", "Yes", "nobody"]
    ours = local.answer_logprobs(requests, answers)
    for theirs, expected in zip(remote.answer_logprobs(requests, answers), ours, strict=True):
        assert isinstance(theirs, AnswerLogprob)
        assert theirs.tokens == expected.tokens
        assert theirs.total == pytest.approx(expected.total, abs=1e-4)
