from __future__ import annotations

import csv
import json
import math

import pytest

from genmatch.training import Row
from genmatch.training.log import Log

COLUMNS = ["step", "loss", "lr", "grad_norm", "seconds", "samples"]


def row(step: int) -> Row:
    return Row(step, loss=math.pi / step, lr=1e-5 / 3, grad_norm=0.1 + 0.2, seconds=1.5, samples=step * 128)


def read(path) -> list[dict]:
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return [{name: float(value) for name, value in line.items()} for line in csv.DictReader(text.splitlines())]


@pytest.fixture(params=["log.csv", "log.jsonl"])
def path(request, tmp_path):
    return tmp_path / "runs" / request.param


def write(path, steps, start=0):
    log = Log(path, start)
    for step in steps:
        log.write(row(step))
    log.close()


def test_rows_come_back_to_the_last_digit(path):
    write(path, [10, 20])
    rows = read(path)
    assert [list(line) for line in rows] == [COLUMNS, COLUMNS]
    assert rows == [{name: getattr(row(step), name) for name in COLUMNS} for step in (10, 20)]


def test_rows_are_there_at_once(path):
    log = Log(path, 0)
    log.write(row(10))
    assert len(read(path)) == 1
    log.close()


def test_a_resumed_log_drops_the_rows_after_its_step_and_appends(path):
    write(path, [10, 20, 30])
    write(path, [30, 40], start=25)
    assert [line["step"] for line in read(path)] == [10, 20, 30, 40]


def test_rows_up_to_the_step_are_kept(path):
    write(path, [10, 20, 30])
    before = path.read_text()
    write(path, [], start=30)
    assert path.read_text() == before


def test_a_new_run_starts_the_file_anew(path):
    write(path, [10, 20])
    write(path, [5])
    assert [line["step"] for line in read(path)] == [5]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_half_a_line_at_the_end_is_dropped(path, cut):
    write(path, [10, 20])
    path.write_text(path.read_text()[:-cut])
    write(path, [20], start=15)
    assert [line["step"] for line in read(path)] == [10, 20]


def test_a_last_line_without_its_end_is_dropped_even_if_it_reads_well(path):
    write(path, [10, 20])
    path.write_text(path.read_text()[:-1])  # 2560 could have been 25601
    write(path, [], start=20)
    assert [line["step"] for line in read(path)] == [10]


def test_a_csv_killed_within_its_head_starts_anew(tmp_path):
    path = tmp_path / "log.csv"
    for text in ("", "step,lo", ",".join(COLUMNS)):
        path.write_text(text)
        write(path, [10])
        assert [line["step"] for line in read(path)] == [10]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "name,age\nx,3\n"),
        ("log.csv", "results of last week"),
        ("log.csv", ",".join(COLUMNS) + "\n10,1,1,1,1,1\nx,y\n20,1,1,1,1,1\n"),
        ("log.csv", ",".join(COLUMNS) + "\n10,1,1\n20,1,1,1,1,1\n"),
        ("log.jsonl", '{"a": 1}\n'),
        ("log.jsonl", "results of last week"),
        ("log.jsonl", "results of last week\n"),
        ("log.jsonl", "[1, 2]\n"),
        ("log.jsonl", "3\n"),
    ],
)
@pytest.mark.parametrize("start", [0, 15])
def test_another_file_is_not_overwritten(tmp_path, name, text, start):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=r"log\.\w+ is not a metrics log"):
        Log(path, start)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["log.txt", "log", "log.json"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"log must end in \.csv or \.jsonl, got"):
        Log(tmp_path / name, 0)
