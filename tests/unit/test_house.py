"""The house: rooms on floors, nothing imports upward, no circles, no module too big to read."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"
FLOORS = "Nothing imports upward, and every module has a floor"
CIRCLES = "No circles among siblings, at any depth"


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT_IMPORTS, "--no-logo", "--no-cache"],
        cwd=house,
        env={"PYTHONPATH": str(house), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied_house(tmp_path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "daemon", tmp_path / "daemon", ignore=ignore)
    return tmp_path


def test_every_import_keeps_to_the_floors() -> None:
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("settings.py", "import daemon.worker", FLOORS),
        ("queue/jobs.py", "from daemon.fullpass import steps", FLOORS),
        ("errors.py", "import daemon.settings", CIRCLES),
        ("queue/__init__.py", "import daemon.llm.ledger, daemon.llm", CIRCLES),
        ("attic.py", "", FLOORS),
    ],
)
def test_a_broken_rule_is_found(copied_house, module, line, broken) -> None:
    if "queue/__init__" in module:  # one half of a circle; the other half closes it
        with (copied_house / "daemon/llm/ledger.py").open("a", encoding="utf-8") as file:
            file.write("\nimport daemon.queue\n")
    with (copied_house / "daemon" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    checked = lint(copied_house)
    assert checked.returncode == 1
    assert f"{broken} BROKEN" in checked.stdout, checked.stdout + checked.stderr


def test_no_two_modules_import_each_other_however_far_around() -> None:
    # The linter sees rooms as wholes; this sees modules, and names the shortest circle.
    graph = grimp.build_graph("daemon", cache_dir=None)
    circles = [
        " -> ".join(chain)
        for module in sorted(graph.modules)
        for imported in graph.find_modules_directly_imported_by(module)
        if (chain := graph.find_shortest_chain(imported, module))
    ]
    assert not circles


def test_every_module_is_short_enough_to_be_read() -> None:
    long = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in (ROOT / "daemon").rglob("*.py")
        if path.stat().st_size > 18_000 and "_sql" not in path.parts
    }
    assert not long


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "daemon").rglob("*.py")
        if not path.read_text(encoding="utf-8").lstrip().startswith('"""')
    ]
    assert not silent


def test_only_the_command_line_prints() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "T201,T203", "--isolated", "daemon"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    printing = {
        line.partition("--> ")[2].partition(":")[0]
        for line in checked.stdout.splitlines()
        if "--> " in line
    }
    elsewhere = {name for name in printing if not name.startswith("daemon/cli")}
    assert not elsewhere, checked.stdout


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *itertools.chain(*project["project"]["optional-dependencies"].values()),
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {name.split(">")[0].split("[")[0].strip() for name in wanted}
    assert not names - pins.keys()
    assert not [line for line in lines if "/" in line.partition("#")[0] or "@" in line]


@pytest.mark.parametrize(
    "target",
    [
        "help",
        "install",
        "demo",
        "example",
        "test",
        "check",
        "faults",
        "bench",
        "bench-queue",
        "clean",
    ],
)
def test_make_knows_every_target(target) -> None:
    dry = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr


def test_what_ci_runs_is_a_valid_script() -> None:
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
