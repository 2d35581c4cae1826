"""What `cutoff_len` may not cut: the tokens of images, whatever a processor puts in the place of `<image>`."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from uni_dpo.data.ranking import ALL_PAIRS
from uni_dpo.llamafactory import question_pairs
from uni_dpo.llamafactory.processor import media_token_ids

TOKENS = {"<IMG_CONTEXT>": 3, "<video>": 6, "<unk>": 1}
TOKENIZER = SimpleNamespace(unk_token_id=1, convert_tokens_to_ids=lambda token: TOKENS.get(token, 1))


def test_internvl_has_another_token_than_its_template() -> None:
    plugin = SimpleNamespace(image_token="<image>", video_token="<video>", audio_token=None)
    processor = SimpleNamespace(image_token="<IMG_CONTEXT>", video_token="<video>")
    assert media_token_ids(SimpleNamespace(mm_plugin=plugin), TOKENIZER, processor) == {3, 6}


def test_a_text_model_has_none() -> None:
    plugin = SimpleNamespace(image_token=None, video_token=None, audio_token=None)
    assert media_token_ids(SimpleNamespace(mm_plugin=plugin), TOKENIZER, None) == set()


@pytest.mark.parametrize(
    ("cutoff_len", "warned"),
    [(12, []), (9, ["cutoff_len 9 cuts the texts of 1 of 2 pairs; the longest has 12 tokens"])],
)
def test_texts_that_are_cut_are_counted(cutoff_len: int, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(question_pairs.logger, "warning_rank0", said.append)
    short = {"prompts": [[1] * 4], "answer_ids": [[2] * 5, [4] * 5], "length": 9}
    long = {"prompts": [[1] * 4], "answer_ids": [[2] * 8, [4] * 5], "length": 12}
    rest = {"same_as": [0, 1], "scores": [2.0, 1.0], "ranked": False, "source": "pairs.json, row 0", "question": "q"}
    rest |= {"answers": ["a", "b"], "images": None, "videos": None, "audios": None, "rejected_images": None}
    data = Dataset.from_list([short | rest, long | rest])
    assert len(question_pairs.pairs_to_train(data, ALL_PAIRS, cutoff_len, {3})) == 2
    assert said == warned
    ranked = {"answer_ids": [[2] * 8, [4] * 5, [5] * 4], "same_as": [0, 1, 2], "scores": [3.0, 2.0, 1.0]}
    three = Dataset.from_list([long | rest | ranked | {"ranked": True, "answers": ["a", "b", "c"]}])
    said.clear()
    assert len(question_pairs.pairs_to_train(three, ALL_PAIRS, cutoff_len, {3})) == 3
    assert said == [line.replace("1 of 2", "2 of 3") for line in warned]  # one pair is without the long answer
