"""Ways to score answers and to pair them, one file each."""

from uni_dpo.engine.pipelines.base import Pipeline

__all__ = ["Pipeline"]
