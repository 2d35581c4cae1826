"""A preference pair as one sequence: prompt + chosen answer + rejected answer, images and prompt only once."""

from uni_dpo.shared_prefix.families import (
    FLEX_ATTENTION,
    image_token_id,
    keys_worth_a_token,
    text_config,
    why_not_shared,
)
from uni_dpo.shared_prefix.forward import ImageFeatures, PairScores, pair_scores, same_frozen_vision
from uni_dpo.shared_prefix.layout import lay_out_pairs, share_prefix

__all__ = [
    "FLEX_ATTENTION",
    "ImageFeatures",
    "PairScores",
    "image_token_id",
    "keys_worth_a_token",
    "lay_out_pairs",
    "pair_scores",
    "same_frozen_vision",
    "share_prefix",
    "text_config",
    "why_not_shared",
]
