"""The report in a real browser, offline: categories, captions, figures that show something.

Needs Chromium (Debian's package `chromium`): skipped without it, unless REQUIRE_BROWSER=1.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Workflow
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.report.sentences import sentences

CATEGORIES = ("Answer", "Course", "Energy", "Quality", "Reuse", "Tables")
SENTENCES = {  # figure -> what only its caption says, and colours [RGB] that it draws
    "energy_by_stage.svg": ("one segment per stage", [(0, 114, 178), (86, 180, 233), (204, 121, 167)]),
    "energy_quality.svg": ("At one height, further left is cheaper", [(0, 114, 178), (213, 94, 0)]),
    "quality_by_row.svg": ("Right of the line is better", [(0, 0, 0)]),
    "cost_by_reuse.svg": ("where a curve crosses it lies N*", [(213, 94, 0), (0, 158, 115)]),
    "power.svg": ("The area under a curve is the energy on the bill", [(0, 114, 178), (86, 180, 233), (204, 121, 167)]),
    "loss_by_joules.svg": ("A curve does not start at 0", [(0, 114, 178), (213, 94, 0)]),
}
METHODS = {(213, 94, 0): "demo_kd", (0, 158, 115): "demo_sft"}
SCALE = 3  # pixels per CSS pixel: a marker that others half cover still has hundreds
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000")


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("REQUIRE_BROWSER") != "1":
        pytest.skip("no Chromium on this machine; REQUIRE_BROWSER=1 makes that an error")
    assert found is not None, "REQUIRE_BROWSER=1, but there is no chromium: apt-get install chromium"
    return found


@pytest.fixture(scope="module")
def report(tiny_run: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    tiny_run.snakemake("--report", str(folder / "report.html"))
    return folder / "report.html"


def chromium(browser: str, page: Path, *options: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *OFFLINE, *options]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    result = subprocess.run([*command, profile, page.as_uri()], capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def opened(report: Path, path: str) -> Path:
    """A copy of the report that opens a result by itself, as a click on it does."""
    kind = "html" if path.endswith(".html") else "img"
    key = json.dumps(path)
    view = f"{{navbarMode: 'resultinfo', resultPath: {key}, content: '{kind}', contentPath: results[{key}].data_uri}}"
    script = f"<script>(function open() {{ app ? app.setView({view}) : setTimeout(open, 50); }})();</script>"
    head, _, tail = report.read_text().rpartition("</body>")
    page = report.with_name(f"{Path(path).stem}.html")
    page.write_text(f"{head}{script}</body>{tail}")
    return page


def text_of(dom: str) -> str:
    """Visible text: no scripts, no tags, plain spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"<style\b.*?</style>", "", without_scripts(dom), flags=re.S)))


def without_scripts(dom: str) -> str:
    """The page as its scripts left it."""
    return re.sub(r"<script\b.*?</script>", "", dom, flags=re.S)


def test_the_report_opens_offline_with_its_categories(browser: str, report: Path) -> None:
    dom = chromium(browser, report, "--dump-dom")
    shown = text_of(dom)
    for category in CATEGORIES:
        assert category in shown
    assert "Which way of distilling a language model costs how many joules for what quality?" in shown
    assert not re.search(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=[\"']?https?:", dom), "nothing comes from the network"


@pytest.mark.parametrize("figure", SENTENCES)
def test_every_figure_is_drawn_and_explained(browser: str, report: Path, tiny_run: Workflow, figure: str) -> None:
    sentence, colours = SENTENCES[figure]
    page = opened(report, f"results/comparison/{figure}")
    dom = chromium(browser, page, "--dump-dom")
    assert sentence in text_of(dom)
    assert re.search(r'<img src="data:image/svg\+xml', dom)
    still = page.with_name(f"{page.stem}-still.html")  # as it stands: a screenshot does not wait for scripts on a busy machine
    still.write_text(without_scripts(dom))
    screenshot = page.with_suffix(".png")
    chromium(browser, still, f"--screenshot={screenshot}", "--window-size=1700,1250", f"--force-device-scale-factor={SCALE}")
    pixels = np.asarray(Image.open(screenshot).convert("RGB")).astype(int)[:, 420 * SCALE :]  # right of the menu
    white = (pixels > 250).all(axis=2).mean()
    assert 0.2 < white < 0.97, f"{white:.0%} of the page is white"
    kinds = {row["experiment"]: row["kind"] for row in tiny_run.json("results/comparison/comparison.json")["answers"]}
    for colour in colours:
        refused = figure == "cost_by_reuse.svg" and kinds[METHODS[colour]] == "not comparable"  # other work ran beside it
        near = (np.abs(pixels - np.array(colour)).max(axis=2) < 12).sum()
        assert near == 0 if refused else near > 60, f"{figure}: {near} pixels of {colour}"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_answer_page_says_what_the_runs_hold(browser: str, report: Path, tiny_run: Workflow, width: int) -> None:
    comparison = Comparison.read(tiny_run.path("results/comparison/comparison.json"))
    page = tiny_run.path("results/comparison/answer.html")
    dom = chromium(browser, page, "--dump-dom", f"--window-size={width},2000")
    shown = html.unescape(text_of(dom))
    said = sentences(comparison)
    assert len(said) == 4 and not {row.kind for row in comparison.answers} - {"undetermined", "not comparable"}, "one seed"
    for text in (*(part for pair in said for part in pair), *comparison.warnings):
        assert " ".join(text.split()) in shown
    assert dom.count("<svg") == 4 and dom.count("<title>") > 4, "figures stand in the page, with words on their points"
    assert page.stat().st_size < 3_000_000
    picture = report.with_name(f"answer-{width}.png")
    chromium(browser, page, f"--screenshot={picture}", f"--window-size={width},3000")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (pixels[:, -4:] > 250).all(), "nothing stands over the right edge"


def test_the_answer_page_stands_in_the_report(browser: str, report: Path) -> None:
    dom = chromium(browser, opened(report, "results/comparison/answer.html"), "--dump-dom")
    assert re.search(r"<iframe[^>]+src=\"data:text/html", dom)
