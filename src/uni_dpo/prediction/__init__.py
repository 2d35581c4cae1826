"""Answering a file of questions with a model, beside the labels where there are any."""

from uni_dpo.prediction.run import PredictReport, predict_file

__all__ = ["PredictReport", "predict_file"]
