"""The sentences of the verdicts in English and Chinese. A sentence gives the number, then what to set."""

import json
from pathlib import Path

_WORDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
METRICS: dict[str, dict[str, str]] = _WORDS["metrics"]
"""What a verdict speaks of → its name in each language, `en` and `zh`."""
SENTENCES: dict[str, dict[str, str]] = _WORDS["sentences"]
"""Key of a sentence → its text in each language, with the places of its numbers."""
RULES: dict[str, dict[str, str]] = _WORDS["rules"]
"""Group of pairs → its rule in each language."""
