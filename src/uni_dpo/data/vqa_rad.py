"""VQA-RAD as preference pairs: the dataset's answers are chosen, a CSV file holds the rejected ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uni_dpo.data.questions import plain_text
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.downloads import download_file as download_file
from uni_dpo.storage.writing import check_writable

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict


def load_and_process_vqa_dpo(
    csv_path: str | Path, train_df: "pd.DataFrame", test_df: "pd.DataFrame", *, grey: bool = False
) -> "DatasetDict":
    """Put the dataset's answers and the CSV's rejected ones side by side.

    Args:
        csv_path: a CSV file with a column `rejected`: first the training rows', then the test rows', in their order.
        train_df: columns `image, question, answer`; whatever its index is, rows count by position.
        test_df: likewise.
        grey: turn images to grey-scale.

    Returns:
        `train` and `test` with `image, question, chosen, rejected`; `image` is a `datasets.Image`.

    Raises:
        UniDPOError: missing columns, empty questions or answers, or a row count that does not match.
    """
    import pandas as pd
    from datasets import DatasetDict

    try:
        rejected = pd.read_csv(csv_path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UniDPOError(f"{csv_path}: cannot be read as CSV ({error})") from None
    if "rejected" not in rejected.columns:
        raise UniDPOError(f"{csv_path}: no column 'rejected' (it has {', '.join(map(str, rejected.columns))})")
    answers = rejected["rejected"].tolist()
    if len(answers) != len(train_df) + len(test_df):
        raise UniDPOError(
            f"{csv_path}: {len(answers)} rejected answers for {len(train_df)} training and {len(test_df)} test rows; "
            "the numbers must match"
        )
    if empty := [row for row, answer in enumerate(answers) if not answer.strip()]:
        raise UniDPOError(f"{csv_path}, row {empty[0]}, rejected: empty ({len(empty)} in all); write an answer")
    return DatasetDict(
        train=_pairs("train_df", train_df, answers[: len(train_df)], grey),
        test=_pairs("test_df", test_df, answers[len(train_df) :], grey),
    )


def _pairs(name: str, frame: "pd.DataFrame", rejected: list[str], grey: bool) -> "Dataset":
    from datasets import Dataset, Features, Image, Value

    if missing := [column for column in ("image", "question", "answer") if column not in frame.columns]:
        raise UniDPOError(f"{name}: no column {missing[0]!r} (it has {', '.join(map(str, frame.columns))})")
    columns = {
        "image": [_as_image(image, grey) for image in frame["image"]],
        "question": _texts(name, frame, "question"),
        "chosen": _texts(name, frame, "answer"),
        "rejected": rejected,
    }
    text = Value("string")
    return Dataset.from_dict(columns, Features(image=Image(), question=text, chosen=text, rejected=text))


def _texts(name: str, frame: "pd.DataFrame", column: str) -> list[str]:
    texts = [plain_text(value) for value in frame[column]]
    if None in texts:
        row = texts.index(None)
        count = texts.count(None)
        raise UniDPOError(f"{name}, row {row}, {column}: no text ({count} in all); fill or remove such rows")
    return [text for text in texts if text is not None]


def _as_image(image: Any, grey: bool) -> Any:
    """What `datasets.Image` encodes: a picture, or `{"bytes", "path"}` as frames of image datasets hold."""
    if not grey or image is None:
        return image
    import io

    from PIL import Image as PILImage

    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]
    opened = image if isinstance(image, PILImage.Image) else PILImage.open(image)
    return opened.convert("L")


def load_splits(name: str) -> "DatasetDict":
    """Load VQA-RAD, its images as they are encoded.

    Args:
        name: on the hub, or a folder that `datasets` wrote.

    Raises:
        UniDPOError: it cannot be loaded, or has no `train` and `test`.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniDPOError(f"dataset {name!r}: cannot be loaded: {reason}") from error
    if not isinstance(loaded, datasets.DatasetDict) or {"train", "test"}.difference(loaded):
        raise UniDPOError(f"dataset {name!r}: has no splits `train` and `test`")
    return loaded.cast_column("image", datasets.Image(decode=False))


def check_new_folder(path: str | Path) -> None:
    """Refuse a folder that `save_dataset` could not write.

    Raises:
        UniDPOError: there is something under that name, or the system does not let us write there.
    """
    if Path(path).exists():
        raise UniDPOError(f"{path}: is there already; name a new folder")
    check_writable(path)


def save_dataset(dataset_dict: "DatasetDict", output_path: str | Path) -> None:
    """Save to a folder that `datasets.load_from_disk` opens; the folder gets its name when it is whole.

    Raises:
        UniDPOError: there is something under that name.
    """
    import shutil
    import tempfile

    output_path = Path(output_path)
    check_new_folder(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output_path.parent, prefix=f".{output_path.name}."))
    try:
        dataset_dict.save_to_disk(folder / "saved")
        (folder / "saved").rename(output_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
