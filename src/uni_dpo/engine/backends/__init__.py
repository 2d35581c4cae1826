"""Models behind one protocol: the engine asks, and does not know who answers."""

from uni_dpo.engine.backends.base import (
    AnswerLogprob,
    Backend,
    Failure,
    Request,
    Sample,
    Sampling,
    Usage,
    make_backend,
)

__all__ = ["AnswerLogprob", "Backend", "Failure", "Request", "Sample", "Sampling", "Usage", "make_backend"]
