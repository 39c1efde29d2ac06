"""The page of `python -m mtrl.report` in Chromium, where there is one (Debian's package `chromium`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mtrl.report.__main__
from tests.system.commands import run

pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RESULTS = Path(__file__).parents[3] / "results" / "mt10_components"
LOOK = """
<script>addEventListener("load", () => {
  const figures = [...document.querySelectorAll("figure svg, figure img, figure video")];
  document.title = JSON.stringify({
    width: innerWidth,
    needs: document.documentElement.scrollWidth,
    empty: figures.filter((figure) => figure.getBoundingClientRect().height < 50).length,
    figures: figures.length,
    paper: getComputedStyle(document.body).backgroundColor,
  });
});</script>
"""


def opened(page: Path, width: int, scheme: int) -> tuple[dict[str, Any], list[str]]:
    """What the page looks like in a window, and what it writes to the console. Scheme 0 is dark, 1 light."""
    looking = page.with_name("looking.html")
    looking.write_text(page.read_text().replace("<head>", f"<head>{LOOK}", 1))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},2000", f"--blink-settings=preferredColorScheme={scheme}", looking.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stdout[:500]
    return json.loads(title[1]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.timeout(300)
def test_it_fits_every_window_in_both_themes(run_dir: Path) -> None:
    assert run(*map(str, sorted(RESULTS.glob("*/seed1.json"))), "out=page.html", command=mtrl.report.__main__) == 0
    papers = set()
    for width in (1300, 500):
        for scheme in (0, 1):
            page, console = opened(Path("page.html").resolve(), width, scheme)
            assert console == []
            assert page["width"] == width
            assert page["needs"] <= width
            assert page["figures"] >= 4
            assert page["empty"] == 0
            papers.add(page["paper"])
    assert len(papers) == 2
