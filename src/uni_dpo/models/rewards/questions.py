"""Several answers to one question, rated in one run of the question and its images."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import image_token_id, keys_worth_a_token, unwrapped, video_token_id
from uni_dpo.shared_prefix.media import IMAGE_KEYS
from uni_dpo.shared_prefix.rows import share_rows, sharing_rows


def shared_states(model: nn.Module, inputs: dict[str, Any], questions: Sequence[Hashable]) -> Tensor | None:
    """Return the last hidden states of rows, of which those that ask one question have run it once.

    Args:
        model: a language model of transformers under whatever head.
        inputs: its inputs, (rows, T), padded on the right.
        questions: what each row asks, but for its images: these are compared.

    Returns:
        (rows, T, D), those of a run of every row; None where no two rows ask the same, the model or the inputs cannot
        be shared, or the long answers of a short text would cost more attention than the text saves.
    """
    if len(set(questions)) == len(questions):
        return None
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    # Positions are made anew for the shared sequences.
    asked = {name: value for name, value in inputs.items() if name not in ("position_ids", "rope_deltas")}
    tokens = [token for token in (image_token_id(model), video_token_id(model)) if token is not None]
    media = torch.isin(ids, ids.new_tensor(tokens)) & mask
    sees = bool(media.any())
    if not sees:  # LlamaFactory puts an image behind the padding of a batch without any
        asked = {name: value for name, value in asked.items() if name not in IMAGE_KEYS} | {
            "input_ids": ids.where(mask, 0)
        }
    with sharing_rows(model) as shares:
        shared = share_rows(model, asked, _answers(ids, mask, media, questions)) if shares else None
        if shared is None:
            return None
        keys = keys_worth_a_token(model)
        shapes = ids.shape, shared.inputs["input_ids"].shape
        ordinary, ours = (rows * length * (keys + length) for rows, length in shapes)
        if not sees and ours >= ordinary:
            return None
        states = unwrapped(model).base_model(**shared.inputs, use_cache=False).last_hidden_state
    return shared.rows(states)


def _answers(ids: Tensor, mask: Tensor, media: Tensor, questions: Sequence[Hashable]) -> Tensor:
    """Where the rows of each question part, (rows, T): true from there to the end of each.

    Images or videos of unlike sizes make another question: rows would part within them.
    """
    questions = [(asked, media[row].cpu().numpy().tobytes()) for row, asked in enumerate(questions)]
    lengths = mask.sum(1)
    starts = torch.zeros_like(lengths)
    for question in set(questions):
        rows = torch.tensor([row for row, asked in enumerate(questions) if asked == question], device=ids.device)
        same = (ids[rows] == ids[rows[:1]]).all(0).int().cumprod(0).sum()
        starts[rows] = torch.minimum(same, lengths[rows].min() - 1)  # no answer is empty
    column = torch.arange(ids.shape[1], device=ids.device)
    return (column >= starts[:, None]) & mask
