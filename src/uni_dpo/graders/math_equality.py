"""A process of its own that says whether mathematical expressions are equal, by math-verify.

One JSON line in, `[wanted, given, whole text]`, one JSON line out: true, false, or null where nothing was found. A
model can write what takes for ever to compute or fills the memory, and often inside C code that no Python signal
handler stops. So the alarm keeps its default action, which ends the process, and memory is limited; whoever asked
starts another one. This file is run by its path and imports nothing of this package.
"""

import json
import logging
import resource
import signal
import sys
from typing import Any

READY = "ready"
MEMORY = 4 * 1024**3
"""Bytes of address space."""


def main(seconds: int) -> None:
    """Say that it is ready; then answer until there is no more input."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    from math_verify import LatexExtractionConfig, parse, verify

    def expression(text: str) -> list[Any]:
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    logging.disable()
    print(READY, flush=True)
    for line in sys.stdin:
        wanted, given, whole_text = json.loads(line)
        signal.alarm(seconds)
        try:
            found = parse(given, parsing_timeout=None) if whole_text else expression(given)
            equal = verify(expression(wanted), found, timeout_seconds=None) if found else None
        except Exception:  # of a library that is handed anything: what it cannot read, it cannot compare
            equal = None
        signal.alarm(0)
        print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
