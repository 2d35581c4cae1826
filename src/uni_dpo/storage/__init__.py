"""Files that are whole or not there, and what they are known by; JSON files are read here."""

import json
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """Read the object in a JSON file; empty where there is no file.

    Raises:
        UniDPOError: it cannot be read, is not JSON, or no object; `advice` says what to do then.
    """
    if not path.is_file():
        return {}
    advice = advice and f"; {advice}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UniDPOError(f"{path} cannot be read: {error.strerror}{advice}") from error
    except ValueError as error:
        raise UniDPOError(f"{path} is not JSON: {error}{advice}") from error
    if not isinstance(content, dict):
        raise UniDPOError(f"{path} holds no JSON object{advice}")
    return content
