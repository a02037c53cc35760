import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_prints_a_line_for_each_network(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--epochs", "1", "--out", tmp_path],
        env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()[-5:]
    assert [line.split("  ")[0] for line in lines] == ["DCTpS", "sDCTpS", "SynFlow", "Random (EPL)", "dense"]
    trained = json.loads((tmp_path / "dense" / "summary.json").read_text())["report"]["trainable"]
    assert f"{sum(trained.values()):,}" in lines[-1]
