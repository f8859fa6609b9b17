"""docs/operations.md: its service unit is sound, its log lines are those of the code, its backup holds what it must."""

from __future__ import annotations

import ast
import configparser
import inspect
import re
import shutil
import sqlite3
import subprocess

import pytest
from page_blocks import DOCS, ROOT, blocks, file_block, table

from pacs_ai import config
from pacs_ai.receive import problem
from pacs_ai.store import migrate, version
from pacs_ai.store.database import Database

PAGE = DOCS / "operations.md"
LEVELS = {"info", "warning", "error"}
FIELD = re.compile(r"%(?:\.\d)?[sdgf]")


def formats_in_code():
    """The format of every log line of the node, as it stands in the code."""
    found = set()
    for path in sorted((ROOT / "pacs_ai").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found - {"%s"}  # an error's own words


def literal_length(text):
    return len(FIELD.sub("", text))


def test_log_lines_are_those_of_the_code():
    """Every example fits a format of the code, and every format has an example."""
    formats = sorted(formats_in_code(), key=literal_length, reverse=True)
    shown = [line.strip("`") for line, _ in table(PAGE, "What the log says")]
    fitting = {line: next((form for form in formats if matches(form, line)), None) for line in shown}
    assert [line for line, form in fitting.items() if form is None] == []
    assert set(formats) - set(fitting.values()) == set()


def matches(form, line):
    expression = ".*".join(re.escape(part) for part in FIELD.split(form))
    return re.fullmatch(expression, line) is not None


def test_the_unit_is_sound(tmp_path):
    text = file_block(PAGE, "pacs-ai.service")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["ExecStart"].split()[0] == "/opt/pacs-ai/bin/pacs-ai"
    receive = config.Receive()
    assert int(unit["Service"]["TimeoutStopSec"]) > receive.grace_seconds + 10, "the supervisor may use so long"
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze MISSING: the service unit of docs/operations.md was not held against systemd")
    program = tmp_path / "pacs-ai"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "pacs-ai.service"
    path.write_text(text.replace("/opt/pacs-ai/bin/pacs-ai", str(program)).replace("User=pacs-ai\n", ""))
    verdict = subprocess.run([tool, "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
    about_it = [line for line in verdict.stderr.splitlines() if "pacs-ai" in line]
    assert (verdict.returncode, about_it) == (0, [])


def test_the_state_directory_is_the_data_folder():
    (folder,) = {
        line.split('"')[1] for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("folder = ")
    }
    assert folder == "/var/lib/pacs-ai"
    assert "StateDirectory=pacs-ai\n" in file_block(PAGE, "pacs-ai.service")


def test_retention_and_address_are_those_of_the_code():
    text = PAGE.read_text()
    kept = config.Retention()
    assert f"`retention.inputs_days` ({kept.inputs_days:g})" in text
    assert f"`retention.unrouted_days` ({kept.unrouted_days:g})" in text
    assert f"{config.Receive().port} (`receive.port`)" in text


def test_backup_by_sqlite_holds_what_was_committed(tmp_path):
    """`.backup` copies what is still in the write-ahead log; the copy of the file alone does not."""
    url = f"sqlite:///{tmp_path / 'pacs_ai.sqlite'}"
    database = Database(url)
    migrate.upgrade(database)
    with sqlite3.connect(tmp_path / "pacs_ai.sqlite") as live, sqlite3.connect(tmp_path / "copy.sqlite") as copy:
        live.backup(copy)
    live.close()
    copy.close()
    database.close()
    restored = Database(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    version.check(restored)
    restored.close()
    assert "pacs_ai.sqlite" in PAGE.read_text()
    assert config.Config().database_url.endswith("/pacs_ai.sqlite")


def test_what_a_receive_process_says_is_wrong_is_on_the_page():
    said = re.findall(r'"((?:refuses|cannot|lags)[^"{]*)', inspect.getsource(problem))
    assert len(said) == 6
    assert [words for words in said if f"`{words}" not in PAGE.read_text()] == []
