"""The site builds without a warning, and every block of code of its pages runs, or says above it why it does not."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsdino.cli import COMMANDS, main, named, options, resolve
from fsdino.pipeline.recipe import read_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^( *)(?:<!-- (not run|run shortened): ([^\n]+) -->\n\1)?```(\w*)\n(.*?)^\1```$", re.M | re.S)
SHORT = [
    "--data.train=[{name: synthetic, options: {images_per_class: 3}}]", "--data.images=[]", "--data.test_list=null",
    "--data.val_episodes=3", "--data.test_episodes=3", "--cache.features=false", "--distill.epochs=0",
    "--train.epochs=1", "--train.epoch_length=4", "--train.batch_size=2", "--presence.episodes=8", "--draw.epochs=0",
    "--log.wandb=off", "--trainer.enable_progress_bar=false",
]  # fmt: skip
# What a page says that is there afterwards.
LEAVES = {
    "index": ["masks/overlays/1.jpg"],
    "first-mask": [
        *["masks/overlays/1.jpg", "masks/labels/2.png", "masks/classes.json", "masks/scores.csv"],
        *["masks/progress.jsonl", "masks-tiles/labels/1.png", "dog.fsmem", "masks-saved/labels/1.png"],
    ],
    "training": ["runs/fsdino-tiny/*/train/metrics.csv", "runs/fsdino-tiny/*/done"],
    "reproducing": [
        f"runs/evaluate/tiny/{file}" for file in ("results.csv", "classes.csv", "episodes.csv", "fold0.png")
    ],
    "api": ["kept/model.safetensors", "out/predictions.json", "dog-again.fsmem"],
}


@dataclass(frozen=True)
class Block:
    """A block of code; `mark` is "", "not run" or "run shortened", with its reason."""

    language: str
    text: str
    mark: str
    reason: str

    def commands(self) -> list[str]:
        """The lines of the shell, continued ones joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, without the indent of a list."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for indent, mark, reason, language, code in BLOCK.findall(text):
        found.append(Block(language, re.sub(rf"^{indent}", "", code, flags=re.M), mark, reason))
    assert len(found) == len(re.findall(r"^ *```\w*$", text, re.M)) / 2, f"a block of {page} is not closed"
    assert sum(bool(one.mark) for one in found) == len(re.findall("<!-- (?:not run|run shortened)", text)), page
    return found


def call(arguments: list[str]) -> int:
    """The command in this process, which has torch already."""
    try:
        return main(arguments)
    except SystemExit as ended:  # help
        return int(ended.code or 0)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install fsdino[docs]")
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install fsdino[docs]")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install fsdino[docs]")
    # Never with --quiet: warnings that are not shown are not counted, and --strict lets everything pass.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="fsdino.base.method.FewShotMethod.segment_batch"' in text
    assert "Every block below runs as it stands" in (tmp_path / "site" / "own-data.html").read_text(encoding="utf-8")
    # Whoever reads the pages without a network, or does not want to be seen, must have all of them.
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text("utf-8"))
        assert loaded == [], page.name


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        assert block.mark or block.language in ("bash", "python"), f"{page}: nothing runs {block.language!r}"
        assert block.mark != "not run" or len(block.reason.split()) > 1, f"{page}: {block.reason!r} says too little"


# Those of the annotation tools are read by tests/annotate, which knows what they need.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "annotating"])
def test_commands_have_these_options(page: str) -> None:
    for block in blocks(page):
        for line in block.commands() if block.mark and block.language == "bash" else []:
            program, *words = shlex.split(line, comments=True)
            if program == "fsdino" and words[0] == "run":
                read_run(words[1:])
            elif program == "fsdino":
                options(resolve(COMMANDS[words[0]][0]), words[0], named(words[0], words[1:]))


# A whole run of the tiny recipe; the fast tests have the tutorial's.
TRAINING = pytest.param("training", marks=pytest.mark.slow)


@pytest.mark.parametrize("page", [TRAINING if page == "training" else page for page in PAGES if page != "serving"])
def test_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [block for block in blocks(page) if block.mark != "not run"]
    shutil.copytree(DOCS / "photos", tmp_path / "docs" / "photos")
    monkeypatch.chdir(tmp_path)
    if page != "first-mask":  # which makes them itself
        shutil.copytree("docs/photos/dogs", "refs/dog", ignore=lambda _, names: [n for n in names if n[0].isdigit()])
        shutil.copytree("docs/photos/dogs", "photos", ignore=lambda _, names: [n for n in names if n[0] == "r"])
    names: dict[str, Any] = {}
    for block in todo:
        if block.language == "python":
            exec(compile(block.text, f"{page}.md", "exec"), names)
            continue
        for line in block.commands():
            program, *words = shlex.split(line, comments=True)
            if program == "fsdino":
                short = SHORT if block.mark == "run shortened" else []
                assert call(words + short) == 0, line
            else:
                subprocess.run(["bash", "-ec", line], check=True)
    for pattern in LEAVES.get(page, []):
        assert list(tmp_path.glob(pattern)), f"{page} leaves no {pattern}"
    assert page in LEAVES or not todo, f"say in LEAVES what is there after the blocks of {page}"


@pytest.mark.slow
def test_the_pages_service_is_started_asked_and_stopped(tmp_path: Path) -> None:
    for name in ("fastapi", "httpx", "multipart", "uvicorn"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install fsdino[serve] httpx")
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("curl or bash is not on this machine")
    shutil.copytree(DOCS / "photos", tmp_path / "docs" / "photos")
    (tmp_path / "bin").mkdir()
    for name, rest in {"python": "", "fsdino": "-m fsdino.cli"}.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {rest} "$@"\n')
        script.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    parts = ["set -eo pipefail", "trap 'kill $SERVER 2>/dev/null || true' EXIT"]
    for block in blocks("serving"):
        if block.mark != "not run":
            parts.append(block.text if block.language == "bash" else f"python - <<'END'\n{block.text}END\n")
    text = "\n".join(parts).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    text = text.replace("fsdino serve", f"fsdino serve --port {port}")
    places = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    shell = subprocess.Popen(
        ["bash", "-c", text], cwd=tmp_path, env={**os.environ, **places}, start_new_session=True, **pipes
    )
    try:
        said, complaints = shell.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        raise
    assert shell.returncode == 0, complaints
    assert re.search(r"1\.jpg coin (True|False) ", said) and re.search(r"^4\d\d \w", said, re.M), said
    assert all((tmp_path / name).stat().st_size > 0 for name in ("dogs.jpg", "dogs.zip", "dog.fsmem"))
