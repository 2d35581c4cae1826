"""Rating a file with a reward model: preference pairs get their scores, answers get theirs.

`score_file` rates a file. The models themselves are in `uni_dpo.reward_models`; their names are here too, for those
who rate what is in memory.
"""

from uni_dpo.reward_models import Conversation, RewardModel, RewardModelOptions, load_reward_model
from uni_dpo.scoring.run import ScoreReport, score_file

__all__ = ["Conversation", "RewardModel", "RewardModelOptions", "ScoreReport", "load_reward_model", "score_file"]
