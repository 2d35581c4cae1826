"""Rating answers with a reward model: preference pairs get their scores, answers get theirs.

`score_file` rates a file. `load_reward_model` gives the model itself, for those who rate what is in memory.
"""

from uni_dpo.scoring.conversation import Conversation
from uni_dpo.scoring.reward_models import RewardModel, RewardModelOptions, load_reward_model
from uni_dpo.scoring.run import ScoreReport, score_file

__all__ = ["Conversation", "RewardModel", "RewardModelOptions", "ScoreReport", "load_reward_model", "score_file"]
