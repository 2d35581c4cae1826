"""How quick a page of many pairs is in a real Chromium: first paint, filtering, sorting, searching.

    python benchmarks/page.py [--pairs 50000]

The pairs are made up; the browser is the one that the tests drive.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.report.conftest import running_browser
from tests.report.runs import write_run

from uni_dpo.report.run import write_run_page

TIMED = "(() => {{ const start = performance.now(); {act}; return performance.now() - start; }})()"
ACTS = {
    "filter": "const one = document.getElementById('group'); one.value = '4'; one.dispatchEvent(new Event('change'))",
    "sort": "const one = document.getElementById('sort'); one.value = 'last_reward_margin'; "
    "one.dispatchEvent(new Event('change'))",
    "search, first": "const one = document.getElementById('search'); one.value = 'answer 77'; "
    "one.dispatchEvent(new Event('input'))",
    "search, next": "const one = document.getElementById('search'); one.value = 'answer 777'; "
    "one.dispatchEvent(new Event('input'))",
}


def main() -> None:
    """Write the page, open it, and print milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "run", count=options.pairs, epochs=2)
        start = time.perf_counter()
        page = write_run_page([run])
        size = page.stat().st_size / 2**20
        print(f"{options.pairs:,} pairs: written in {time.perf_counter() - start:.1f} s, {size:.0f} MiB")
        with running_browser(Path(place) / "profile") as browser:
            browser.open(page)
            paint = browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            print(f"first paint: {paint:.0f} ms")
            for name, act in ACTS.items():
                print(f"{name}: {browser.run(TIMED.format(act=act)):.0f} ms")


if __name__ == "__main__":
    main()
