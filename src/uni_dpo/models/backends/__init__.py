"""Models behind one protocol: the engine asks, and does not know who answers."""

from uni_dpo.models.backends.base import AnswerLogprob, Backend, Failure, Request, Sample, Sampling, Usage, make_backend

__all__ = ["AnswerLogprob", "Backend", "Failure", "Request", "Sample", "Sampling", "Usage", "make_backend"]
