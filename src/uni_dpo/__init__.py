"""Uni-DPO for vision-language models: training, data and evaluation (arXiv 2506.10054)."""

__version__ = "0.1.0"
