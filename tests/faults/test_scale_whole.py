"""The scale benchmark from end to end, a little of everything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.cli import ROOT


@pytest.mark.long
def test_the_script_measures_both_parts_and_says_so_in_lines() -> None:
    done = subprocess.run(
        [sys.executable, "bench/bench_scale.py", "--quick"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1, 3}, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {line["metric"]: line["value"] for line in lines}
    assert found["passes_per_second_1"] > 0
    assert 0 < found["connections_2"] <= 10
    assert found["real_rows_inserted_per_1000_passes"] > found["chunks_per_real_pass"] * 1000
    assert found["real_wal_mb_per_1000_passes"] > 0
    # docs/scale.md reckons with what is printed.
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for name in found:
        if name.startswith(("real_passes", "real_growth", "real_wal", "chunks_", "crowded_")):
            assert name.removesuffix("_per_1000_passes") in page, name
