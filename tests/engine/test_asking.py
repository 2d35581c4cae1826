from uni_dpo.engine.asking import ask
from uni_dpo.engine.records import Aside
from uni_dpo.models.backends import Failure, Request, Sample


class Model:
    """Replies to prompt p on its n-th attempt with `replies[p][n]`."""

    def __init__(self, **replies):
        self.replies = replies
        self.calls = []

    def generate(self, requests, sampling):
        self.calls.append((sampling.temperature, [(r.prompt, r.seed) for r in requests]))
        replies = [self.replies[r.prompt].pop(0) for r in requests]
        return [r if isinstance(r, Failure) else [Sample(r, 1, True)] for r in replies]


def number(text):
    return int(text) if text.isdigit() else None


def test_only_what_could_not_be_parsed_is_asked_again():
    model = Model(a=["1"], b=["x", "2"], c=["x", "y"], d=[Failure("gone")])
    requests = [Request(prompt, seed=7) for prompt in "abcd"]
    results = ask(model, requests, number, what="number", max_tokens=4)
    assert results == [1, 2, Aside("no number", "y"), Failure("gone")]
    first, second = model.calls
    assert first[0] == 0.0
    assert second[0] > 0.0
    assert [prompt for prompt, _ in second[1]] == ["b", "c"]
    assert second[1][0][1] != first[1][1][1]  # another attempt, another seed


def test_equal_requests_are_put_once():
    model = Model(a=["1"], b=["x", "2"])
    requests = [Request("a"), Request("b"), Request("a"), Request("b")]
    assert ask(model, requests, number, what="number", max_tokens=4) == [1, 2, 1, 2]
    assert [len(asked) for _, asked in model.calls] == [2, 1]


def test_no_requests_no_replies():
    assert ask(Model(), [], number, what="number", max_tokens=4) == []


def test_reasoning_is_left_out_before_a_reply_is_read():
    model = Model(a=["<think>7?</think>8"], b=["<think>7", "◁think▷7◁/think▷9"])
    results = ask(model, [Request("a"), Request("b")], number, what="number", max_tokens=4)
    assert results == [8, 9]
