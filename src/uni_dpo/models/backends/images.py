"""Images as chat servers take them."""

import base64
import mimetypes
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=64)
def data_url(path: str) -> str:
    """An image file as a `data:` address."""
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
