"""Fetching a file by its address. A download that was cut off resumes where the server still has the same file."""

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import check_writable, holding, replacing, write_text

_CHUNK = 1 << 16
_TIMEOUT_S = 60.0


def download_file(url: str, dest_path: str | Path) -> None:
    """Fetch `url` to `dest_path`; what is under that name is the whole file or what was there before.

    What came of a download that was cut off stays in `<dest_path>.part`, with its origin beside it; the next call
    asks for the rest of the same version (RFC 9110, If-Range), and for the whole file where there is another.

    Args:
        url: an http, https or file address, or a path on this machine.
        dest_path: where the file goes.

    Raises:
        UniDPOError: the server or the file system says no; names the address and the status.
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

    Raises:
        OSError: the connection broke, or fewer bytes came than were announced.
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
