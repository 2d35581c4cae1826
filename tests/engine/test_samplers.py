import pytest

from uni_dpo.engine import Question
from uni_dpo.engine.records import Aside
from uni_dpo.engine.samplers import CUT, GivenSampler, GivenSamplerOptions, ModelSampler, ModelSamplerOptions, Sampled
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Failure, Sample, Usage


class Model:
    def generate(self, requests, sampling):
        self.requests, self.sampling = requests, sampling
        return [[Sample("a", 1, True), Sample("", 0, True)], Failure("gone")]


def test_empty_answers_are_put_aside_and_failures_passed_on():
    model = Model()
    sampler = ModelSampler(ModelSamplerOptions(n=2, max_tokens=9), {"sampler": model}, seed=0)
    results = sampler.sample([Question("x", "What?", ("i.png",)), Question("y", "Why?")])
    assert results == [Sampled(("a",), (Aside("empty answer", ""),)), Failure("gone")]
    assert [(r.prompt, r.images) for r in model.requests] == [("What?", ("i.png",)), ("Why?", ())]
    assert (model.sampling.n, model.sampling.max_tokens) == (2, 9)


def test_seeds_come_from_the_id_not_the_place():
    model = Model()
    sampler = ModelSampler(ModelSamplerOptions(), {"sampler": model}, seed=0)
    x, y = Question("x", "?"), Question("y", "?")
    sampler.sample([x, y])
    forward = [r.seed for r in model.requests]
    sampler.sample([y, x])
    assert [r.seed for r in model.requests] == forward[::-1]
    assert forward[0] != forward[1]


def test_given_answers_are_taken_and_missing_ones_named():
    sampler = GivenSampler(GivenSamplerOptions(), {}, seed=0)
    assert sampler.sample([Question("x", "?", answers=("a", " "))]) == [Sampled(("a",))]
    with pytest.raises(UniDPOError, match="question y"):
        sampler.sample([Question("y", "?")])


class Drawing:
    """Answers with the request's seed, `n` times."""

    def generate(self, requests, sampling):
        self.requests = requests
        return [[Sample(f"{r.prompt} {r.seed} {k}", 1, True) for k in range(sampling.n)] for r in requests]


def by_seeds(*seeds, n=None, questions=("x", "y"), seed=0):
    options = ModelSamplerOptions(n=n, seeds=seeds)
    sampler = ModelSampler(options, {"sampler": Drawing()}, seed=seed)
    return [sampled.answers for sampled in sampler.sample([Question(name, name) for name in questions])]


def test_one_answer_per_seed_whatever_the_other_seeds():
    x, y = by_seeds(13, 21, 42)
    assert len({*x, *y}) == 6
    assert [answer[0] for answer in x + y] == ["x"] * 3 + ["y"] * 3
    assert by_seeds(42, 13) == [(x[2], x[0]), (y[2], y[0])]
    assert by_seeds(21, questions=("y",)) == [(y[1],)]
    assert by_seeds(13, 21, 42, seed=1) != [x, y]


def test_with_seeds_n_is_per_seed_and_without_them_per_question():
    assert [len(answers) for answers in by_seeds(13, 21, n=3)] == [6, 6]
    assert [len(answers) for answers in by_seeds()] == [8, 8]
    assert [len(answers) for answers in by_seeds(n=2)] == [2, 2]


def test_a_question_fails_as_a_whole():
    class Second:
        def generate(self, requests, sampling):
            return [Failure("gone") if number == 1 else [Sample("a", 1, True)] for number in range(len(requests))]

    sampler = ModelSampler(ModelSamplerOptions(seeds=(1, 2)), {"sampler": Second()}, seed=0)
    assert sampler.sample([Question("x", "?"), Question("y", "?")]) == [Failure("gone"), Sampled(("a", "a"))]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seeds": (1, 2, 1)}, "is given twice"), ({"seeds": (1, 2), "temperature": 0.0}, "temperature 0")],
)
def test_seeds_that_give_the_same_answer_twice_are_refused(options, words):
    with pytest.raises(UniDPOError, match=words):
        ModelSampler(ModelSamplerOptions(**options), {}, seed=0)


def test_answers_cut_at_the_limit_are_counted():
    class Cut(Model):
        usage = Usage()

        def generate(self, requests, sampling):
            return [[Sample("a", 9, False), Sample("b", 1, True)] for _ in requests]

    model = Cut()
    ModelSampler(ModelSamplerOptions(n=2), {"sampler": model}, seed=0).sample([Question("x", "?"), Question("y", "?")])
    assert model.usage.faults == {CUT: 2}
