"""Opens a report with every kind of block, and with hostile texts in it, in a real headless browser."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("BILEVEL_BUILD", Path(__file__).parents[2] / "build"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Runs before anything of the page does.
WATCH = """<script>
window.seen = { errors: [], alerts: 0, violations: [] };
window.alert = () => { seen.alerts += 1; };
addEventListener("error", (event) => seen.errors.push(String(event.message || event.target)), true);
addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective + " " + event.blockedURI));
</script>"""

# Runs at the end: a series counts as drawn where pixels of its own colour lie inside the axes of its chart.
PROBE = """<script>
addEventListener("load", () => {
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const charts = [...document.querySelectorAll("canvas")].map((canvas) => {
    const chart = window.Chart && Chart.getChart(canvas);
    if (!chart) return { series: [] };
    const ratio = chart.currentDevicePixelRatio, area = chart.chartArea;
    const [x, y, w, h] = [area.left, area.top, area.right - area.left, area.bottom - area.top].map((v) => Math.round(v * ratio));
    const pixels = canvas.getContext("2d").getImageData(x, y, w, h).data;
    const series = chart.data.datasets.map((set) => {
      const [r, g, b] = rgb(set.backgroundColor);
      let count = 0;
      for (let i = 0; i < pixels.length; i += 4) {
        const distance = Math.abs(pixels[i] - r) + Math.abs(pixels[i + 1] - g) + Math.abs(pixels[i + 2] - b);
        if (pixels[i + 3] > 200 && distance < 40) count += 1;
      }
      return { name: set.label, pixels: count };
    });
    return { series, width: canvas.clientWidth, height: canvas.clientHeight };
  });
  const result = {
    ...seen,
    charts,
    counted: document.documentElement.dataset.charts,
    expected: JSON.parse(document.getElementById("charts").textContent).length,
    images: [...document.images].map((image) => image.naturalWidth),
    alternatives: [...document.images].every((image) => image.alt !== "") &&
      [...document.querySelectorAll("canvas")].every((canvas) => canvas.getAttribute("aria-label")),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
    background: getComputedStyle(document.body).backgroundColor,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: innerWidth,
    scripts: document.scripts.length,
  };
  document.documentElement.dataset.probe = JSON.stringify(result);
});
</script>"""


@pytest.fixture(scope="session")
def browser():
    for name in BROWSERS:
        if shutil.which(name):
            return name
    pytest.fail("no browser: the report must be tested in one; `make setup` gets the Debian package chromium")


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    subprocess.run([BUILD / "tests" / "report_example", path], check=True, stdout=subprocess.DEVNULL, timeout=120)
    return path.read_text(encoding="utf-8")


def instrumented(text):
    assert text.count("<head>") == 1 and text.count("</body>") == 1
    return text.replace("<head>", "<head>" + WATCH).replace("</body>", PROBE + "</body>")


def open_page(browser, text, folder, *options):
    """The page's DOM once it has come to rest, and the lines of its console."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile",
               "--no-first-run", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probe(dom):
    found = re.search(r'<html[^>]* data-probe="([^"]*)"', dom)
    assert found, "the probe did not run"
    return json.loads(html.unescape(found.group(1)))


def lightness(color):
    return sum(map(int, re.findall(r"\d+", color)[:3])) / (3 * 255)


LIGHT = "--blink-settings=preferredColorScheme=1"
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.mark.parametrize("size, scheme", [("1200,1400", LIGHT), ("1200,1400", DARK), ("500,900", LIGHT), ("500,900", DARK)],
                         ids=["light", "dark", "narrow-light", "narrow-dark"])
def test_every_chart_is_drawn_and_nothing_is_wrong(browser, page, tmp_path, size, scheme):
    dom, console = open_page(browser, instrumented(page), tmp_path, f"--window-size={size}", scheme)
    seen = probe(dom)
    assert console == []
    assert seen["errors"] == [] and seen["violations"] == [] and seen["requests"] == []
    assert seen["alerts"] == 0
    assert seen["scripts"] == 3 + 2  # the page's own, and the two of this test: no text has become a script
    assert len(seen["charts"]) == seen["expected"] == int(seen["counted"]) == 9
    for chart in seen["charts"]:
        assert chart["series"], "a canvas without a chart"
        assert chart["width"] > 150 and chart["height"] > 100
        for series in chart["series"]:
            assert series["pixels"] > 15, f"series {series['name']!r} is not to be seen"
    assert len(seen["images"]) == 10 and min(seen["images"]) > 0
    assert seen["alternatives"]
    assert seen["overflow"] <= 0, "the page is wider than the window"
    assert seen["width"] <= int(size.split(",")[0])
    assert (lightness(seen["background"]) > 0.8) == (scheme == LIGHT)


def test_a_dark_page_is_printed_on_white(browser, page, tmp_path):
    script = """<script>
      const look = () => [getComputedStyle(document.body).backgroundColor, Chart.getChart(document.querySelector("canvas")).data.datasets[0].backgroundColor];
      const looks = [look()];
      for (const event of ["beforeprint", "afterprint"]) { dispatchEvent(new Event(event)); looks.push(look()); }
      document.documentElement.dataset.probe = JSON.stringify(looks);
    </script>"""
    dom, console = open_page(browser, page.replace("</body>", script + "</body>"), tmp_path, DARK)
    before, printed, after = probe(dom)
    assert console == []
    assert before == after and printed[1] != before[1]
    assert lightness(before[0]) < 0.2 and lightness(printed[0]) > 0.8


def test_hostile_texts_are_shown_as_they_are(browser, page, tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"
    script = "<script>document.documentElement.dataset.title = document.querySelectorAll('h2')[4].textContent;</script>"
    dom, _ = open_page(browser, page.replace("</body>", script + "</body>"), tmp_path)
    found = re.search(r'data-title="([^"]*)"', dom)
    assert found and html.unescape(found.group(1)) == hostile


def test_without_javascript_the_numbers_are_there(browser, page, tmp_path):
    # --dump-dom itself needs scripts, so the page stands in a frame that may not run any, and the page around it looks inside.
    around = """<!DOCTYPE html><meta charset="utf-8"><iframe sandbox="allow-same-origin" width="1000" height="900" srcdoc="%s"></iframe><script>
      addEventListener("load", () => {
        const inside = document.querySelector("iframe").contentDocument;
        const shown = (selector) => [...inside.querySelectorAll(selector)].filter((element) => element.checkVisibility()).length;
        inside.querySelectorAll("details").forEach((element) => { element.open = true; });
        document.documentElement.dataset.probe = JSON.stringify({
          charts: inside.documentElement.dataset.charts, plots: shown(".plot"), tables: shown("details table"),
          notice: shown("noscript p"), row: inside.querySelector("details tbody tr").textContent });
      });</script>""" % html.escape(page)
    dom, _ = open_page(browser, around, tmp_path)
    seen = probe(dom)
    assert "charts" not in seen  # the scripts did not run
    assert seen["plots"] == 0 and seen["notice"] == 1
    assert seen["tables"] == 9
    assert seen["row"] == "labeller 01.88 ± 0.131.98"


def test_the_checks_above_can_fail(browser, page, tmp_path):
    """A page whose script throws, and one whose curves are not drawn, are found out."""
    start = '"use strict";\n(() => {'
    assert page.count(start) == 1
    (tmp_path / "a").mkdir()
    dom, console = open_page(browser, instrumented(page.replace(start, start + 'throw new Error("broken");')), tmp_path / "a")
    assert any("broken" in line for line in console)
    seen = probe(dom)
    assert seen["errors"] and all(not chart["series"] for chart in seen["charts"])

    (tmp_path / "b").mkdir()
    assert page.count(": series.y[k],") == 1
    dom, _ = open_page(browser, instrumented(page.replace(": series.y[k],", ": null,")), tmp_path / "b")
    lines = [s["pixels"] for chart in probe(dom)["charts"] for s in chart["series"]]
    assert 0 in lines
