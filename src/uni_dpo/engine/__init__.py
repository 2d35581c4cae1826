"""The data engine: questions and images in, scored preference pairs out.

`run_engine` runs a config. The other names are for those who write a sampler, checker, grader, pipeline or
backend of their own and make it known with `register`.
"""

from uni_dpo.data.questions import Question
from uni_dpo.engine.asking import Check, Checker
from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Pair, Scored, ScoredAnswer
from uni_dpo.engine.runner import EngineResult, run_engine
from uni_dpo.engine.samplers import Sampled, Sampler
from uni_dpo.models.backends import AnswerLogprob, Backend, Failure, Request, Sample, Sampling, Usage
from uni_dpo.settings.registry import register

__all__ = [
    "AnswerLogprob",
    "Answered",
    "Aside",
    "Backend",
    "Check",
    "Checker",
    "EngineConfig",
    "EngineResult",
    "Failure",
    "Pair",
    "Pipeline",
    "Question",
    "Request",
    "Sample",
    "Sampled",
    "Sampler",
    "Sampling",
    "Scored",
    "ScoredAnswer",
    "Usage",
    "register",
    "run_engine",
]
