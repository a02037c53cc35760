"""A real browser, if there is one."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# The page in a frame of each width, which script of its own parent measures; the page itself may run none.
_FRAMES = """<!DOCTYPE html><meta charset="utf-8"><title>frames</title><link rel="icon" href="data:,">
<body><script>
const page = PAGE, found = {};
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 3000px; border: 0`;
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement;
    const images = [...inner.images];
    const right = element => element.getBoundingClientRect().right;
    found[width] = {
      scrolls: root.scrollWidth - root.clientWidth,
      beyond: [...inner.querySelectorAll("body *")].filter(e => !e.parentElement.closest(".scroll"))
        .filter(e => right(e) > root.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 200)),
      images: images.map(image => image.naturalWidth),
      shown: images.map(image => image.getBoundingClientRect().width),
      resources: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
      scripts: inner.scripts.length,
      styles: inner.styleSheets.length,
      cut: [...inner.querySelectorAll("math, pre, table")].filter(element => {
        const box = element.closest(".math-wrapper, .highlight, .table-wrapper");
        const shown = element.matches("math") ? element : box ?? element;
        return right(shown) > right(element.closest("article, body")) + 9;
      }).map(e => e.outerHTML.slice(0, 200)),
      formulas: [...inner.querySelectorAll(".math-wrapper")].map(e => [e.scrollWidth, e.clientWidth]),
      text: root.textContent,
      probed: (PROBE)(inner, frame.contentWindow),
    };
    if (Object.keys(found).length == WIDTHS.length) {
      const told = document.createElement("pre");
      told.textContent = JSON.stringify(found);
      document.body.replaceChildren(told);
    }
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script></body>"""


def measure(page, widths, probe="() => null", dark=False):
    """What a browser makes of a page of HTML, by width in pixels, and what it complained about.

    `probe` is a function of script, from the page's document and window to what is then under `probed`. It is
    called last. `dark` is what the reader prefers.

    Skips the test where there is no browser.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    script = (
        _FRAMES.replace("WIDTHS", json.dumps(widths))
        .replace("PROBE", probe)
        .replace("PAGE", json.dumps(page).replace("</", "<\\/"), 1)
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "frames.html"
        file.write_text(script)
        done = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *(f"--user-data-dir={scratch}/profile", "--window-size=1300,3000", "--enable-logging=stderr"),
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                *("--virtual-time-budget=20000", "--dump-dom", file.as_uri()),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    told = done.stdout.partition("<pre>")[2].partition("</pre>")[0]
    assert told, done.stdout[:1000] + done.stderr
    for name, character in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", "\xa0"), ("&amp;", "&")):
        told = told.replace(name, character)
    return {int(width): found for width, found in json.loads(told).items()}, complaints
