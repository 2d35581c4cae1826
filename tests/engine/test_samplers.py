import pytest

from uni_dpo.engine import Question
from uni_dpo.engine.backends import Failure, Sample
from uni_dpo.engine.records import Aside
from uni_dpo.engine.samplers import GivenSampler, GivenSamplerOptions, ModelSampler, ModelSamplerOptions, Sampled
from uni_dpo.errors import UniDPOError


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
