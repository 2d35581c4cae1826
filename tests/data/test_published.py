"""Data that a training names and that are not there: said at once, and where the published ones lie."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from uni_dpo.data.dataset_info import check_named
from uni_dpo.data.faults import PreferenceDataError, where_to_get
from uni_dpo.errors import UniDPOError


@pytest.fixture
def folder(tmp_path):
    entries = {
        "here": {"file_name": "here.json", "ranking": True},
        "gone": {"file_name": "gone.json", "ranking": True},
        "published": {"file_name": "uni_dpo_image_only_mcq_short_long_50k.json", "ranking": True},
        "hub": {"hf_hub_url": "someone/pairs", "ranking": True},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    (tmp_path / "here.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize("settings", [{"dataset": "here"}, {"dataset": "here,hub"}, {"dataset": ["here"]}, {}])
def test_what_is_there_passes(folder, settings):
    check_named({"dataset_dir": str(folder), **settings})


def test_every_missing_dataset_is_named_at_once(folder):
    with pytest.raises(PreferenceDataError) as error:
        check_named({"dataset_dir": str(folder), "dataset": "here, gone,her", "eval_dataset": "gone"})
    gone, unknown, again = str(error.value).splitlines()
    assert gone.startswith(f"dataset gone: there is no file {folder / 'gone.json'}; correct file_name in")
    assert "no dataset 'her'; did you mean here" in unknown
    assert again.startswith("eval_dataset gone")


def test_a_file_that_would_be_a_stream_without_data_is_refused(folder):
    stream = {"dataset_dir": str(folder), "dataset": "here", "streaming": True}
    for settings in ({"pref_loss": "uni_dpo"}, {"dataloader_num_workers": 1}, {"dataset": "hub"}, {"streaming": False}):
        check_named({**stream, **settings})
    for settings in ({}, {"pref_loss": "sigmoid"}, {"dataloader_num_workers": "0", "streaming": "true"}):
        with pytest.raises(PreferenceDataError, match="streaming: with dataloader_num_workers: 0 a file would give no"):
            check_named({**stream, **settings})


def test_the_published_pairs_and_images_are_named_with_their_place(folder):
    with pytest.raises(PreferenceDataError, match=r"Multimodal of https://huggingface.co/datasets/psp-dada/Uni-DPO"):
        check_named({"dataset_dir": str(folder), "dataset": "published"})
    assert "long.zip" in str(where_to_get("/your/path/to/MM-RLHF/long/1.jpg"))
    assert where_to_get("photos/1.jpg") is None


@pytest.mark.parametrize("settings", [{"dataset_dir": "ONLINE"}, {"dataset_dir": "REMOTE:x"}, {"dataset_dir": 3}])
def test_data_elsewhere_are_not_looked_for(settings):
    check_named({"dataset": "gone", **settings})


def test_rows_that_were_tokenized_before_need_no_file(folder, tmp_path):
    (tmp_path / "tokens").mkdir()
    given = {"dataset_dir": str(folder), "dataset": "gone"}
    check_named({**given, "tokenized_path": str(tmp_path / "tokens")})
    with pytest.raises(PreferenceDataError):
        check_named({**given, "tokenized_path": str(tmp_path / "to_be_written")})


@pytest.mark.parametrize(
    ("stage", "ranking", "words"),
    [
        ("sft", True, "stage: sft learns from answers, and this dataset has pairs"),
        ("kto", True, "stage: kto learns from answers"),
        ("dpo", False, "stage: dpo learns from pairs, and this dataset has none"),
        ("rm", False, "stage: rm learns from pairs"),
        ("dpo", True, None),
        ("sft", False, None),
    ],
)
def test_a_dataset_of_another_stage_is_named(tmp_path: Path, stage: str, ranking: bool, words: str | None) -> None:
    (tmp_path / "mine.json").write_text("[]")
    entry = {"file_name": "mine.json", "ranking": ranking}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    with pytest.raises(UniDPOError, match=f"^dataset mine: {words}") if words else nullcontext():
        check_named({"dataset_dir": str(tmp_path), "dataset": "mine", "stage": stage})
