"""VQA-RAD as preference pairs: the dataset's answers are chosen, a CSV file holds the rejected ones.

A download of that file which was cut off resumes where the server still has the same file.
"""

import io
import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from uni_dpo.data.columns import plain_text
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import check_writable, holding, new_folder, replacing, write_text

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

_CHUNK = 1 << 16
_TIMEOUT_S = 60.0


def load_and_process_vqa_dpo(
    csv_path: str | Path, train_df: "pd.DataFrame", test_df: "pd.DataFrame", *, grey: bool = False
) -> "DatasetDict":
    """Put the dataset's answers and the CSV's rejected ones side by side.

    Args:
        csv_path: a CSV file with a column `rejected`: first the training rows', then the test rows', in their order.
        train_df, test_df: columns `image, question, answer`; whatever their index is, rows count by position.
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
        place = f"{name}, row {texts.index(None)}, {column}"
        raise UniDPOError(f"{place}: no text ({texts.count(None)} in all); fill or remove such rows")
    return [text for text in texts if text is not None]


def _as_image(image: Any, grey: bool) -> Any:
    """What `datasets.Image` encodes: a picture, or `{"bytes", "path"}` as frames of image datasets hold."""
    if not grey or image is None:
        return image
    from PIL import Image as PILImage

    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]
    opened = image if isinstance(image, PILImage.Image) else PILImage.open(image)
    return opened.convert("L")


def load_splits(name: str) -> "DatasetDict":
    """Load VQA-RAD, by its name on the hub or from a folder that `datasets` wrote, its images as they are encoded.

    Raises:
        UniDPOError: it cannot be loaded, or has no `train` and `test`.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniDPOError(f"dataset {name!r}: cannot be loaded: {reason}") from error
    if not isinstance(loaded, datasets.DatasetDict) or {"train", "test"}.difference(loaded):
        raise UniDPOError(f"dataset {name!r}: has no splits `train` and `test`")
    return loaded.cast_column("image", datasets.Image(decode=False))


def save_dataset(dataset_dict: "DatasetDict", output_path: str | Path) -> None:
    """Save to a folder that `datasets.load_from_disk` opens, which must be new and gets its name when it is whole."""
    with new_folder(output_path) as folder:
        dataset_dict.save_to_disk(folder)


def download_file(url: str, dest_path: str | Path) -> None:
    """Fetch `url` to `dest_path`; what is under that name is the whole file or what was there before.

    What came of a download that was cut off stays in `<dest_path>.part`, with its origin beside it; the next call
    asks for the rest of the same version (RFC 9110, If-Range), and for the whole file where there is another.

    `url` is an http, https or file address, or a path on this machine.

    Raises:
        UniDPOError: the server or the file system refuses; names the address and the status.
    """
    dest_path = Path(dest_path)
    check_writable(dest_path)
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("", "file"):
        _copy(Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path) if scheme else url), dest_path)
        return
    if scheme not in ("http", "https"):
        raise UniDPOError(f"{url}: addresses of type {scheme!r} are not fetched; use http, https or file")
    part = dest_path.with_name(f"{dest_path.name}.part")
    with holding(part, str(dest_path)):
        try:
            _fetch(url, part)
        except urllib.error.HTTPError as error:
            raise UniDPOError(f"{url}: the server answered {error.code} {error.reason}") from None
        except (HTTPException, OSError) as error:
            raise UniDPOError(f"{url}: cannot be fetched ({error}); call again to resume") from None
        _copy(part, dest_path)
        part.unlink()
        _origin(part).unlink()


def _copy(source: Path, dest_path: Path) -> None:
    try:
        stream = source.open("rb")
    except OSError as error:
        raise UniDPOError(f"{source}: cannot be read ({error.strerror})") from None
    with stream, replacing(dest_path) as temporary, temporary.open("wb") as out:
        shutil.copyfileobj(stream, out)


def _origin(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _version(part: Path, url: str) -> str | None:
    """What tells the version of `url` that `part` is the beginning of; None where that is not known."""
    try:
        origin = json.loads(_origin(part).read_text(encoding="utf-8"))
        return str(origin["version"]) if origin["url"] == url and origin["version"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _told(response: HTTPResponse) -> str | None:
    """The strong validator of a response."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _fetch(url: str, part: Path) -> None:
    """Fill `part`, from its end on where that is the beginning of what the server has now.

    An `OSError` tells that the connection broke, or that fewer bytes came than were announced.
    """
    version = _version(part, url)
    have = part.stat().st_size if version and part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(version)}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        _anew(url, part)
        return
    with response:
        length = response.headers.get("Content-Length")
        start, total = 0, None if length is None else int(length)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            told = [response.headers[name] for name in ("ETag", "Last-Modified") if name in response.headers]
            if span is None or int(span[1]) not in (0, have) or (told and have and version not in told):
                if not have:
                    raise OSError("the server sends a part that was not asked for")
                _anew(url, part)
                return
            start, total = int(span[1]), int(span[2])
        write_text(_origin(part), json.dumps({"url": url, "version": _told(response) or (start and version)}))
        with (
            part.open("r+b") as out,
            tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, delay=2.0) as progress,
        ):
            out.truncate(start)
            out.seek(start)
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes came")


def _anew(url: str, part: Path) -> None:
    _origin(part).unlink(missing_ok=True)
    _fetch(url, part)
