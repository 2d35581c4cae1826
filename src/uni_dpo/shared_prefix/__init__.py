"""A preference pair as one sequence: prompt + chosen answer + rejected answer, images and prompt only once."""

from uni_dpo.shared_prefix.attention import shared_attention, use_attention
from uni_dpo.shared_prefix.families import (
    FLEX_ATTENTION,
    image_token_id,
    keys_worth_a_token,
    logit_cap,
    tells_images_apart,
    unwrapped,
    video_token_id,
    why_not_shared,
)
from uni_dpo.shared_prefix.forward import (
    ImageFeatures,
    PairScores,
    in_place_of_head,
    pair_scores,
    projection,
    same_frozen_vision,
)
from uni_dpo.shared_prefix.image_store import ImageStore, image_keys
from uni_dpo.shared_prefix.layout import lay_out_pairs, say_once, share_prefix
from uni_dpo.shared_prefix.media import IMAGE_KEYS, media_dim
from uni_dpo.shared_prefix.questions import question_key, share_questions
from uni_dpo.shared_prefix.rows import SharedBatch, share_rows, shares_rows, sharing_rows

__all__ = [
    "FLEX_ATTENTION",
    "IMAGE_KEYS",
    "ImageFeatures",
    "ImageStore",
    "PairScores",
    "SharedBatch",
    "image_keys",
    "image_token_id",
    "in_place_of_head",
    "keys_worth_a_token",
    "lay_out_pairs",
    "logit_cap",
    "media_dim",
    "pair_scores",
    "projection",
    "question_key",
    "same_frozen_vision",
    "say_once",
    "share_prefix",
    "share_questions",
    "share_rows",
    "shared_attention",
    "shares_rows",
    "sharing_rows",
    "tells_images_apart",
    "unwrapped",
    "use_attention",
    "video_token_id",
    "why_not_shared",
]
