"""Videos of rows: every fault is named by row and field, and their tokens are those that training makes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.checks.lengths import LengthCounter
from uni_dpo.data.convert import convert
from uni_dpo.data.image_paths import rebase_images
from uni_dpo.data.image_state import MediaState
from uni_dpo.data.images import ImageChecker, image_paths
from uni_dpo.data.questions import InputOptions, Question, read_questions, refuse_videos
from uni_dpo.data.register import detect_attributes
from uni_dpo.data.tables.splitting import row_groups
from uni_dpo.data.videos import VideoChecker, VideoLimits, read_frames
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.score import layout_of

av = pytest.importorskip("av")
Rows = list[dict[str, Any]]


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    def make(number: int, /, *videos: Any, **changes: Any) -> dict[str, Any]:
        plain = {"instruction": "<video>What happens?", "chosen": f"It brightens {number}.", "rejected": "Nothing."}
        return plain | {"score_chosen": 4.0, "score_rejected": 1.0, "videos": list(videos)} | changes

    return make


@pytest.fixture
def films(tmp_path: Path, write_video: Callable[..., Path]) -> Path:
    """A folder with videos that can be used and some that cannot."""
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "good.mkv")
    write_sound(tmp_path / "sound.wav")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:900])
    for name in ("noise.avi", "noise.mp4"):
        whole = write_video(tmp_path / name, noise=True).read_bytes()
        middle = len(whole) // 2
        torn = whole[:middle] + bytes(3000) + whole[middle + 3000 :]
        (tmp_path / name.replace("noise", "torn")).write_bytes(torn if name.endswith("mp4") else whole[:middle])
    Image.new("RGB", (40, 30)).save(tmp_path / "frame.png")
    Image.new("RGB", (30, 40)).save(tmp_path / "tall.png")
    return tmp_path


def test_every_fault_of_a_video_is_named_by_row_and_field(films: Path, row: Callable[..., Any]) -> None:
    rows = [
        row(0, "good.mp4"),
        row(1, "good.mkv"),
        row(2, ["frame.png", "frame.png", "frame.png"]),
        row(3, videos="good.mp4"),
        row(4, "none.mp4"),
        row(5, "zero.mp4"),
        row(6, "text.mp4"),
        row(7, "cut.mp4"),
        row(8, "sound.wav"),
        row(9, []),
        row(10, ["frame.png", "none.png"]),
        row(11, 3),
        row(12, "http://127.0.0.1:9/film.mp4"),
        row(13, "good.mp4", instruction="What happens?"),
        row(14, "good.mp4", "good.mp4"),
        row(15, "torn.avi"),
        row(16, "noise.avi"),
        row(17, ["frame.png", "tall.png"]),
    ]
    (films / "pairs.json").write_text(json.dumps(rows))
    report = check_dataset(str(films / "pairs.json"))
    assert [(fault.row, fault.kind, fault.field) for fault in report.faults] == [
        (4, "video_missing", "videos[0]"),
        (5, "video_zero", "videos[0]"),
        (6, "video_unreadable", "videos[0]"),
        (7, "video_not_a_video", "videos[0]"),
        (8, "video_not_a_video", "videos[0]"),
        (9, "video_empty", "videos[0]"),
        (10, "video_frame", "videos[0]"),
        (11, "video_type", "videos[0]"),
        (12, "video_url", "videos[0]"),
        (13, "image_count", "videos"),
        (14, "image_count", "videos"),
        (15, "video_cut", "videos[0]"),
        (17, "video_frame", "videos[0]"),
    ]
    assert "frame 1: no file none.png" in str(report.faults[6])


def test_damage_within_a_video_is_found_when_all_of_it_is_decoded(films: Path, row: Callable[..., Any]) -> None:
    (films / "pairs.json").write_text(json.dumps([row(0, "torn.mp4"), row(1, "good.mp4")]))
    assert check_dataset(str(films / "pairs.json")).faultless
    faults = check_dataset(str(films / "pairs.json"), whole_videos=True).faults
    assert [(fault.row, fault.kind) for fault in faults] == [(0, "video_unreadable")]


def test_images_and_videos_stand_in_one_row(films: Path, row: Callable[..., Any]) -> None:
    mixed = row(0, "good.mp4", instruction="<image>Is this in <video>?", images=["frame.png"])
    (films / "pairs.json").write_text(json.dumps([mixed, row(1, "good.mp4", instruction="<image><video>?")]))
    report = check_dataset(str(films / "pairs.json"))
    assert [(fault.row, fault.field) for fault in report.faults] == [(1, "images")]
    assert detect_attributes(films / "pairs.json")["columns"]["videos"] == "videos"


def test_other_videos_make_another_pair(films: Path, row: Callable[..., Any]) -> None:
    rows = [row(0, "good.mp4"), row(0, "good.mkv"), row(0, "good.mp4")]
    (films / "pairs.json").write_text(json.dumps(rows))
    audit = check_dataset(str(films / "pairs.json")).audit
    assert audit is not None
    assert audit.duplicates.examples == [(0, 2)]


def test_fix_makes_a_list_of_a_path_and_leaves_broken_videos_out(films: Path, row: Callable[..., Any]) -> None:
    (films / "pairs.json").write_text(json.dumps([row(0, videos="good.mp4"), row(1, "none.mp4")]))
    report = check_dataset(str(films / "pairs.json"), fix=films / "good.json")
    assert [kept["videos"] for kept in json.loads((films / "good.json").read_text())] == [["good.mp4"]]
    assert report.repairs == {"videos: text to list": 1}


def test_without_a_decoder_the_package_is_named_once(
    films: Path, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uni_dpo.data.videos.find_spec", lambda name: None)
    (films / "pairs.json").write_text(json.dumps([row(0, "good.mp4"), row(1, "good.mp4")]))
    report = check_dataset(str(films / "pairs.json"))
    assert [fault.kind for fault in report.whole] == ["video_decoder"]
    assert "pip install av" in str(report.whole[0])


def test_conversion_keeps_videos_or_counts_them(films: Path, row: Callable[..., Any]) -> None:
    (films / "pairs.json").write_text(json.dumps([row(0, "good.mp4")]))
    convert(films / "pairs.json", films / "kept.json", from_format="llamafactory", to_format="llamafactory-openai")
    assert json.loads((films / "kept.json").read_text())[0]["videos"] == ["good.mp4"]
    swift = {"query": "<video>What?", "response": "A.", "rejected_response": "B.", "videos": ["good.mp4"]}
    (films / "swift.json").write_text(json.dumps([swift]))
    convert(films / "swift.json", films / "read.json", from_format="swift", to_format="llamafactory")
    assert json.loads((films / "read.json").read_text())[0]["videos"] == ["good.mp4"]
    lost = convert(films / "pairs.json", films / "lost.json", from_format="auto", to_format="trl").losses
    assert lost["videos"] == 1


@pytest.fixture
def ask(films: Path) -> Callable[..., tuple[Question, ...]]:
    """`ask(rows)` reads questions."""

    def read(*rows: dict[str, Any]) -> tuple[Question, ...]:
        (films / "asked.json").write_text(json.dumps(rows))
        return tuple(read_questions(InputOptions(str(films / "asked.json")), films / "images"))

    return read


def test_questions_about_videos_are_read(films: Path, ask: Callable[..., Any]) -> None:
    one, two, three = ask(
        {"id": 1, "question": "What happens in <video>?", "video": "good.mp4"},
        {"id": 2, "question": "Which?", "videos": ["good.mkv", "good.mp4"], "images": "frame.png"},
        {"id": 3, "prompt": "<video>Which?", "videos": [["frame.png", "frame.png"]]},
    )
    film, frame = str(films / "good.mp4"), str(films / "frame.png")
    assert (one.text, one.videos) == ("What happens in ?", (film,))
    assert (two.images, two.videos) == ((frame,), (str(films / "good.mkv"), film))
    assert three.videos == ((frame, frame),)
    assert Question.from_row(json.loads(json.dumps(three.to_row()))) == three
    assert "videos" not in ask({"question": "Which?"})[0].to_row()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"videos": "none.mp4"}, "no file none.mp4"),
        ({"video": "text.mp4"}, "text.mp4 cannot be opened as a video"),
        ({"videos": ["good.mp4", "sound.wav"]}, "sound.wav holds no pictures"),
        ({"videos": ["torn.avi"]}, "says that it has 12 frames, and has"),
        ({"videos": ["http://127.0.0.1:9/film.mp4"]}, "download it first"),
        ({"videos": [["frame.png", "none.png"]]}, "no file none.png"),
        ({"videos": [["frame.png", "tall.png"]]}, "frame 1 has 30 × 40 pixels, frame 0 has 40 × 30"),
        ({"videos": [[]]}, "a list without a frame"),
        ({"videos": [7]}, "write the path of a video file"),
        ({"question": "<video><video>?", "videos": ["good.mp4"]}, "2 × <video>, 1 videos"),
        ({"question": "<video>What?"}, "1 × <video>, 0 videos"),
    ],
)
def test_a_video_that_cannot_be_asked_about_is_named_by_its_row(
    ask: Callable[..., Any], fault: dict[str, Any], said: str
) -> None:
    with pytest.raises(UniDPOError, match=rf"asked.json, row 1 .*field 'videos?': .*{re.escape(said)}") as caught:
        ask({"question": "Why?"}, {"question": "What?"} | fault)
    assert "\n" not in str(caught.value)


def test_what_shows_images_only_refuses_videos(ask: Callable[..., Any]) -> None:
    with pytest.raises(UniDPOError, match=r"row 1 .*field 'videos': ppo shows images only"):
        refuse_videos(ask({"question": "Why?"}, {"question": "What?", "videos": "good.mp4"}), "ppo")


def test_what_is_rated_about_videos(films: Path, row: Callable[..., Any]) -> None:
    """Pairs, and answers to questions whose `<video>` is left out; a row with too many is at fault."""
    (films / "pairs.json").write_text(json.dumps([row(0, "good.mp4"), row(1, ["frame.png"])]))
    answers = [{"question": "What?", "answer": "A box.", "video": "good.mp4"}, {"question": "<video>?", "answer": "A."}]
    (films / "answers.json").write_text(json.dumps(answers))
    with ImageChecker(image_paths(films)).running() as images:
        rows = [
            found
            for name in ("pairs.json", "answers.json")
            for found in layout_of(films / name).read(films / name, VideoChecker(images))
        ]
    film, frame = str(films / "good.mp4"), str(films / "frame.png")
    assert [[each.videos for each in found.conversations] for found in rows] == [
        [(film,)] * 2, [((frame,),)] * 2, [(film,)], [],
    ]  # fmt: skip
    assert rows[2].conversations[0].instruction == "<video>What?"
    assert "1 × <video>, 0 videos" in str(rows[3].faults[0])


def test_no_video_stands_in_two_parts_of_a_split(films: Path) -> None:
    """The middle one of three rows shares a file with the first, and a frame with the last, which is an image there."""
    shown: list[dict[str, Any]] = [{"video": "a.mp4"}, {"videos": ["a.mp4", ["1.png", "2.png"]]}, {"image": "2.png"}]
    assert list(row_groups([*shown, {"video": "b.mp4"}], "image")) == [0, 0, 0, 3]


def test_paths_of_videos_are_moved_as_those_of_images_are(films: Path, row: Callable[..., Any]) -> None:
    (films / "pairs.json").write_text(json.dumps([row(0, "/old/MM-RLHF/good.mp4", ["/old/MM-RLHF/frame.png"])]))
    rebase_images(films / "pairs.json", [films])
    (moved,) = json.loads((films / "pairs.json").read_text())
    assert moved["videos"] == [str(films / "good.mp4"), [str(films / "frame.png")]]


@pytest.mark.parametrize(("frames", "rate"), [(12, 4), (3, 4), (1, 4), (60, 4)])
@pytest.mark.parametrize("size", [(64, 48), (640, 480)])
def test_tokens_and_pixels_are_those_of_llamafactory(
    tmp_path: Path,
    row: Callable[..., Any],
    write_video: Callable[..., Path],
    tiny_qwen2_vl: Path,
    frames: int,
    rate: int,
    size: tuple[int, int],
) -> None:
    """The oracle: what LlamaFactory's plugin and the model's processor make of the same file."""
    mm_plugin = pytest.importorskip("llamafactory.data.mm_plugin")
    from transformers import AutoProcessor

    write_video(tmp_path / "film.mp4", frames, size, rate)
    (tmp_path / "pairs.json").write_text(json.dumps([row(0, "film.mp4")]))
    counter = LengthCounter(tiny_qwen2_vl, cutoff_len=2048, videos=VideoLimits(most=10))
    counted = check_dataset(str(tmp_path / "pairs.json"), lengths=counter).lengths
    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl)
    processor.video_maxlen, processor.video_max_pixels, processor.video_min_pixels = 10, 256 * 256, 16 * 16
    processor.video_fps, processor.image_max_pixels, processor.image_min_pixels = 2.0, 768 * 768, 32 * 32
    plugin = mm_plugin.get_mm_plugin("qwen2_vl", image_token="<|image_pad|>", video_token="<|video_pad|>")
    theirs = plugin._get_mm_inputs([], [str(tmp_path / "film.mp4")], [], processor)
    assert counted is not None
    assert counted.image.mean == int(theirs["video_grid_thw"].prod()) // 4
    taken = read_frames(str(tmp_path / "film.mp4"), VideoLimits(most=10))
    ours = processor.video_processor(videos=[taken.pictures], return_tensors="pt")
    assert ours["pixel_values_videos"].equal(theirs["pixel_values_videos"])


def test_frames_that_are_taken() -> None:
    limits = VideoLimits(fps=2.0, most=10)
    assert limits.taken(MediaState(8, 8, 100, 3.0)) == 6
    assert limits.taken(MediaState(8, 8, 100, 3.6)) == 8
    assert limits.taken(MediaState(8, 8, 100, 60.0)) == 10
    assert limits.taken(MediaState(8, 8, 3, 60.0)) == 4
    assert limits.taken(MediaState(8, 8, 100)) == 10
    assert limits.taken(MediaState(8, 8, 13, listed=True)) == 14
