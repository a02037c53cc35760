"""The page of a sweep: what it says, and what a real browser makes of it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.support.browser import measure
from tests.support.faults import TINY, train_tiny

from dctps.analysis.figure_runs import keep_failures
from dctps.analysis.sweep_report import write_report
from dctps.cli import main
from dctps.experiments.folder import RunFolderError

HOSTILE = '<script>alert("1")</script> & <img src=x>'
CONFIGS = {
    f"{method}-{density}-{seed}": replace(TINY, method=method, density=density, seed=seed)
    for method in ("dctps", "random-epl", "dense")
    for density in ((0.2, 0.1) if method != "dense" else (0.2,))
    for seed in (0, 1)
}
UNFINISHED, FAILED, MISSING = "random-epl-0.1-1", "dctps-0.1-1", "dctps-0.1-0"


class Stop(BaseException):
    pass


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs of every fate."""
    root = tmp_path_factory.mktemp("page") / "a & <b>"
    for name, config in CONFIGS.items():
        if name not in (FAILED, MISSING, UNFINISHED):
            train_tiny(root / name, config)

    def stop(record):
        raise Stop

    with pytest.raises(Stop):
        train_tiny(root / UNFINISHED, CONFIGS[UNFINISHED], on_epoch=stop)
    keep_failures(root, CONFIGS, {FAILED: HOSTILE})
    return root


@pytest.fixture(scope="module")
def page(sweep):
    file = sweep.parent / "report.html"
    write_report(sweep, file=file, wanted=CONFIGS)
    return file.read_text()


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.open, self.cells = [], [], [], [[]]
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += data


def test_it_is_one_file_in_which_one_script_runs(page):
    elements = Elements(page)
    assert not elements.open
    assert not {"iframe", "object", "img"} & set(elements.tags)
    assert elements.tags.count("script") == 1
    # Test and validation, on two axes each; by epoch, of each density.
    assert elements.tags.count("figure") == 6
    assert elements.links and all(link.startswith("data:") for link in elements.links)


def test_it_tells_each_runs_fate_and_the_numbers_of_its_summary(page, sweep):
    rows = {row[0]: row[1:] for row in Elements(page).cells if row and row[0] in CONFIGS}
    assert list(rows) == sorted(CONFIGS)
    for name, row in rows.items():
        if (sweep / name / "summary.json").exists():
            summary = json.loads((sweep / name / "summary.json").read_text())
            trained = sum(summary["report"]["trainable"].values())
            assert row[:2] == ["finished", f"{100 * summary['last_test_accuracy']:.2f}"]
            assert row[4] == f"{trained:,}"
    assert rows[UNFINISHED][0] == "unfinished, epoch 1 of 2"
    assert rows[FAILED][0] == f"failed: {HOSTILE}"
    assert rows[MISSING][0] == "missing"
    assert "10 runs: 7 finished, 1 unfinished, 1 failed, 1 missing." in page


def test_its_means_are_those_of_the_runs(page, sweep):
    def accuracy(name):
        return 100 * json.loads((sweep / name / "summary.json").read_text())["last_test_accuracy"]

    cells = Elements(page).cells
    assert ["density", "all", "20%", "10%"] in cells
    rows = {row[0]: row for row in reversed(cells) if row and row[0] in ("dense", "DCTpS", "Random (EPL)")}
    for row, method, place in ((rows["DCTpS"], "dctps", 2), (rows["dense"], "dense", 1)):
        values = [accuracy(f"{method}-0.2-0"), accuracy(f"{method}-0.2-1")]
        mean, std = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
        assert row[place] == f"{mean:.1f} ± {std:.1f}"
    assert rows["DCTpS"][3] == "failed"
    assert rows["Random (EPL)"][3] == f"{accuracy('random-epl-0.1-0'):.1f}(n=1 of 2)"


def test_settings_that_differ_are_told_apart(tmp_path):
    for lr in (0.01, 0.001):
        train_tiny(tmp_path / f"lr{lr}", replace(TINY, lr=lr, epochs=1))
    write_report(tmp_path, file=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>Test accuracy: tiny, tiny, 1 epoch, lr 0.01</h2>") == 1
    assert page.count("<h2>Test accuracy: tiny, tiny, 1 epoch, lr 0.001</h2>") == 1


# Sorts the table of runs by its test accuracies, and points at the last place of each curve of each chart.
PROBE = """(page, window) => {
  const table = [...page.querySelectorAll("table")].find(t => t.tHead.textContent.includes("seconds"));
  const column = place => [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
  const sorted = [];
  for (const click of [2, 2, 0]) {
    table.tHead.rows[0].cells[click].querySelector("button").click();
    sorted.push([column(click), table.tHead.rows[0].cells[click].getAttribute("aria-sort")]);
  }
  const told = [];
  for (const figure of page.querySelectorAll("figure")) {
    const chart = figure.querySelector(".chart"), tip = figure.querySelector(".tip");
    for (const curve of chart.querySelectorAll(".curve")) {
      const points = curve.querySelector("polyline").getAttribute("points").split(" ");
      const at = points.at(-1).split(",").map(Number);
      const box = chart.getBoundingClientRect(), scale = box.width / chart.viewBox.baseVal.width;
      const place = { clientX: box.left + at[0] * scale, clientY: box.top + at[1] * scale };
      chart.dispatchEvent(new window.PointerEvent("pointermove", place));
      const shown = tip.getBoundingClientRect(), whole = figure.getBoundingClientRect();
      const above = place.clientY - shown.bottom;
      const inside = shown.left >= whole.left - 1 && shown.right <= whole.right + 1 && above > 3 && above < 20
        && place.clientX >= shown.left - 1 && place.clientX <= shown.right + 1;
      told.push([JSON.parse(curve.dataset.tips).at(-1), tip.textContent,
        !tip.hidden && shown.width > 20 && inside, chart.querySelectorAll(".on").length]);
    }
    chart.dispatchEvent(new window.PointerEvent("pointerleave"));
    told.push(["", "", tip.hidden, 1 + chart.querySelectorAll(".on").length]);
  }
  const style = element => window.getComputedStyle(element);
  const cut = [...page.querySelectorAll(".chart text")].filter(text => {
    const own = text.getBoundingClientRect(), whole = text.closest("svg").getBoundingClientRect();
    return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
  }).map(text => text.textContent);
  return { sorted, told, cut, back: style(page.body).backgroundColor, ink: style(page.body).color,
    letters: [...page.querySelectorAll(".chart text")].map(text => parseFloat(style(text).fontSize)
      * text.closest("svg").getBoundingClientRect().width / 480),
    curves: [...page.querySelectorAll(".curve polyline")].map(line => style(line).stroke) };
}"""


def luminance(color):
    """Relative luminance of `rgb(r, g, b)`, WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_at_the_width_of_a_phone_and_of_a_screen(page, dark):
    found, complaints = measure(page, [390, 1280], PROBE, dark)
    assert complaints == []
    for frame in found.values():
        assert frame["scrolls"] == 0 and frame["beyond"] == []
        assert frame["resources"] == [] and frame["scripts"] == 1
        assert HOSTILE in frame["text"]
        probed = frame["probed"]
        assert min(probed["letters"]) > 10 and probed["cut"] == []
        assert (luminance(probed["back"]) < 0.05) == dark
        assert contrast(probed["back"], probed["ink"]) > 12
        assert min(contrast(probed["back"], curve) for curve in probed["curves"]) > 3


def percent(tip):
    return float(re.search(r": ([\d.]+)", tip)[1])


def test_its_tables_sort_and_its_charts_tell_their_values(page):
    (frame,) = measure(page, [390], PROBE)[0].values()
    (down, how), (up, other), (names, _) = frame["probed"]["sorted"]
    numbers = [float(cell) for cell in down if cell]
    assert len(numbers) == 7 and numbers == sorted(numbers, reverse=True) and how == "descending"
    assert [float(cell) for cell in up if cell] == sorted(numbers) and other == "ascending"
    assert down[7:] == up[7:] == [""] * 3  # runs without a value stay last
    assert names == sorted(CONFIGS)
    told = frame["probed"]["told"]
    assert len(told) > 15
    for wanted, shown, visible, lit in told:
        assert visible and lit == 1
        # Where two curves meet either may be told: then the values are equal.
        assert wanted == shown or percent(wanted) == pytest.approx(percent(shown), abs=0.11)
    assert any("DCTpS: " in shown and "% (n=2) at 20%, " in shown for _, shown, *_ in told)


def test_the_browser_would_notice(page):
    """What the tests above look for, were it there."""
    bad = page.replace(
        "</body>",
        '<div style="width: 2000px">x</div><img src="http://127.0.0.1:9/x.png"><script>document.title = "no"'
        "</script></body>",
    )
    found, complaints = measure(bad, [390], "page => page.title")
    assert found[390]["scrolls"] > 0 and found[390]["beyond"]
    assert found[390]["images"] == [0] and found[390]["probed"] != "no"
    assert sum("Content Security Policy" in line for line in complaints) >= 2
    assert contrast("rgb(255, 255, 255)", "rgb(240, 228, 66)") < 3


def test_one_density_has_a_chart_by_method(tmp_path):
    for method in ("dctps", "random-epl", "dense"):
        train_tiny(tmp_path / method, replace(TINY, method=method, epochs=1))
    write_report(tmp_path, file=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    (chart,) = re.findall(
        r'<svg class="chart" role="img" aria-label="test accuracy, density 20%.*?</svg>', page
    )
    assert re.findall("<title>(.*?)</title>", chart).__len__() == 3
    for method in ("dctps", "random-epl", "dense"):
        summary = json.loads((tmp_path / method / "summary.json").read_text())
        assert f"{100 * summary['last_test_accuracy']:.1f}% (n=1)" in chart


def test_the_command(sweep, tmp_path, capsys):
    assert main(["report", str(sweep), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert "<title>Sweep a &amp; &lt;b&gt;</title>" in (tmp_path / "page.html").read_text()
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "no.html")]) == 2
    assert "holds no run folders" in capsys.readouterr().err
    assert main(["report", str(sweep), "--file", "sweep.toml"]) == 2
    with pytest.raises(RunFolderError, match="there is no folder"):
        write_report(tmp_path / "nowhere", file=tmp_path / "no.html")


def test_a_method_whose_runs_all_failed_keeps_its_place(tmp_path, capsys):
    """Neither a folder nor a sweep file knows the runs: the sweep itself has written down what they were."""
    runs = "model=fixup-resnet20 dataset=digits epochs=1 train_images=32 density=0.1,0.05 method=dctps,snip"
    sweep = ["sweep", *runs.split(), "--no-progress", "--out", str(tmp_path / "x")]
    assert main(sweep) == 2
    reason = json.loads((tmp_path / "x" / "failed.json").read_text())
    assert not [path for path in (tmp_path / "x").iterdir() if path.is_dir() and "snip" in path.name]
    assert main(["report", str(tmp_path / "x"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    cells = [row for row in Elements(page).cells if row and row[0] in ("DCTpS", "SNIP")]
    assert [row[0] for row in cells[:2]] == ["DCTpS", "SNIP"] and cells[1][1:] == ["failed", "failed"]
    assert "SNIP: all runs failed: " in page and "scores are" in page
    assert "4 runs: 2 finished, 2 failed." in page and len(reason) == 2


def test_failures_of_an_earlier_version_and_damaged_ones(tmp_path):
    train_tiny(tmp_path / "one", replace(TINY, epochs=1))
    (tmp_path / "failed.json").write_text(json.dumps({"two": "too hot"}))
    write_report(tmp_path, file=tmp_path / "page.html")
    assert "failed: too hot" in (tmp_path / "page.html").read_text()
    for bad in ("[", '{"two": {"reason": "x", "config": {"epochs": "many"}}}', '{"two": {"config": 3}}'):
        (tmp_path / "failed.json").write_text(bad)
        write_report(tmp_path, file=tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "failed.json is damaged" in page and "DCTpS" in page
