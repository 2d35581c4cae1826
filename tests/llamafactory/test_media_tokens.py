"""What `cutoff_len` may not cut: the tokens of images, whatever a processor puts in the place of `<image>`."""

from types import SimpleNamespace

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
