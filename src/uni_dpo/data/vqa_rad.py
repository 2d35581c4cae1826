"""VQA-RAD as preference pairs: the dataset's answers are chosen, a CSV file holds the rejected ones."""

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import replacing

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

_CHUNK = 1 << 16
_TIMEOUT_S = 60.0


def download_file(url: str, dest_path: str | Path) -> None:
    """Fetch `url` to `dest_path`; what is under that name is the whole file or what was there before.

    A download that was cut off goes on from `<dest_path>.part` at the next call.

    Args:
        url: an http, https or file address, or a path on this machine.
        dest_path: where the file goes.

    Raises:
        UniDPOError: the server or the file system says no; names the address and the status.
    """
    dest_path = Path(dest_path)
    dest_path.parent.mkdir(parents=True, exist_ok=True)
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("", "file"):
        _copy(Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path) if scheme else url), dest_path)
        return
    if scheme not in ("http", "https"):
        raise UniDPOError(f"{url}: addresses of type {scheme!r} are not fetched; use http, https or file")
    part = dest_path.with_name(f"{dest_path.name}.part")
    try:
        _fetch(url, part)
    except urllib.error.HTTPError as error:
        raise UniDPOError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError) as error:
        raise UniDPOError(f"{url}: cannot be fetched ({error}); call again to go on") from None
    part.replace(dest_path)


def _copy(source: Path, dest_path: Path) -> None:
    try:
        with replacing(dest_path) as temporary, source.open("rb") as stream, temporary.open("wb") as out:
            while chunk := stream.read(_CHUNK):
                out.write(chunk)
    except OSError as error:
        raise UniDPOError(f"{source}: cannot be read ({error.strerror})") from None


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # what is there is no beginning of what the server has now
        _fetch(url, part)
        return
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length) + (have if resumed else 0)
        start = have if resumed else 0
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(desc=part.stem, total=expected, initial=start, unit="B", unit_scale=True, delay=2.0) as progress,
        ):
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if expected is not None and size != expected:
        raise OSError(f"{size} of {expected} bytes came")


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
        UniDPOError: missing columns, empty rejected answers, or a row count that does not match.
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
        "question": [str(question) for question in frame["question"]],
        "chosen": [str(answer) for answer in frame["answer"]],
        "rejected": rejected,
    }
    text = Value("string")
    return Dataset.from_dict(columns, Features(image=Image(), question=text, chosen=text, rejected=text))


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


def save_dataset(dataset_dict: "DatasetDict", output_path: str | Path) -> None:
    """Save to a folder that `datasets.load_from_disk` opens; the folder gets its name when it is whole.

    Raises:
        UniDPOError: there is something under that name.
    """
    import shutil
    import tempfile

    output_path = Path(output_path)
    if output_path.exists():
        raise UniDPOError(f"{output_path}: is there already; name a new folder")
    output_path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output_path.parent, prefix=f".{output_path.name}."))
    try:
        dataset_dict.save_to_disk(folder / "saved")
        (folder / "saved").rename(output_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
