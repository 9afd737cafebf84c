"""Private tests of LiveCodeBench: both encodings, and what must never be run, filled or believed."""

import base64
import json
import multiprocessing
import os
import pickle
import zlib

import pytest
from lcb_records import encode, pack, stdin_test

from evals.benches import private_tests
from evals.benches.private_tests import BadTests, read

TESTS = [stdin_test("1\n", "2\n"), stdin_test("é\n", "\\ufffd\n")]


def test_both_encodings_give_the_same_tests():
    assert read(json.dumps(TESTS)) == TESTS
    assert read(encode(TESTS)) == TESTS
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        assert read(pack(pickle.dumps(json.dumps(TESTS), protocol))) == TESTS
    assert read("[]") == read("") == read(encode([])) == []


def test_the_other_mirrors_shape():
    content = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"], "fn_name": None}
    packed = pack(pickle.dumps({"input_output": json.dumps(content)}))
    assert read(packed) == [stdin_test("1\n", "2\n"), stdin_test("2\n", "4\n")]
    with pytest.raises(BadTests, match="2 inputs and 1 outputs"):
        read(json.dumps({"inputs": ["1", "2"], "outputs": ["1"]}))


def test_really_encoded_tests(data):
    rows = [json.loads(line) for line in (data / "livecodebench/encoded_private_tests_sample.jsonl").open()]
    counts = {json.loads(row["labels"])["task_id"]: read(row["test"]) for row in rows}
    assert len(counts) == 3
    assert all(counts.values())
    assert counts["codeforces/1873_A"][0]["input"].startswith("6\nabc\nacb\n")
    assert {t["testtype"] for t in counts["leetcode/2727"]} == {"functional"}


class Touch:
    """What a hostile pickle does: call something."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_is_not_run(tmp_path, protocol):
    target = tmp_path / "ran"
    for hostile in (Touch(target), [Touch(target)], {"input_output": Touch(target)}):
        with pytest.raises(BadTests, match="more than text"):
            read(pack(pickle.dumps(hostile, protocol)))
    assert not target.exists()
    pickle.loads(pickle.dumps(Touch(target), protocol))  # it does run elsewhere
    assert target.exists()


def test_a_memo_of_four_billion_entries_is_refused_unread():
    hostile = b"\x80\x04X\x01\x00\x00\x00ar\xff\xff\xff\xff."  # BINUNICODE, LONG_BINPUT 2**32 - 1, STOP
    with pytest.raises(BadTests, match="LONG_BINPUT"):
        read(pack(hostile))


def test_a_zlib_bomb_stops_at_the_limit():
    bomb = base64.b64encode(zlib.compress(b"\0" * 2**24)).decode()
    assert len(bomb) < 2**15
    with pytest.raises(BadTests, match=r"more than 1 MB after decompression, from [\d,]+ bytes: a zlib bomb\?"):
        read(bomb, limit=2**20)
    exactly = pickle.dumps(json.dumps(TESTS))
    assert read(pack(exactly), limit=len(exactly)) == TESTS
    with pytest.raises(BadTests, match="zlib bomb"):
        read(pack(exactly), limit=len(exactly) - 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "not valid JSON"),
        ("[1]", "test 0 has no text 'input'"),
        ('[{"input": "1", "output": 2}]', "test 0 has no text 'output'"),
        ('{"a": 1}', "a list of tests was expected, not a dict"),
        ("@@@", "neither JSON nor base64"),
        ("été", "neither JSON nor base64"),
        (base64.b64encode(b"plain").decode(), "not zlib data"),
        (encode(TESTS)[:40], "cut off after 30 bytes: is the file complete"),
        (pack(pickle.dumps(json.dumps(TESTS))[:-20]), "not a readable pickle"),
        (pack(b""), "not a readable pickle"),
        (pack(pickle.dumps(None)), "holds 0 texts"),
        (pack(pickle.dumps({"a": "b"})), "holds 2 texts"),
        (pack(pickle.dumps(7)), "BININT1"),
        (encode("[{]"), "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_damage_is_named(text, words):
    with pytest.raises(BadTests, match=words):
        read(text)


def test_the_cache_is_by_content_and_survives_damage(tmp_path):
    text = encode(TESTS)
    assert read(text, tmp_path / "new" / "cache") == TESTS
    (file,) = (tmp_path / "new" / "cache").iterdir()
    assert json.loads(file.read_text()) == TESTS
    other = [stdin_test("9", "9")]
    file.write_text(json.dumps(other))
    assert read(text, file.parent) == other  # it is read from there
    assert read(encode(other), file.parent) == other
    assert len(list(file.parent.iterdir())) == 2
    file.write_text('[{"input"')
    assert read(text, file.parent) == TESTS
    assert json.loads(file.read_text()) == TESTS


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    assert read(encode(TESTS), tmp_path / "file") == TESTS


def _read_all(folder, start):
    start.wait()
    for number in range(20):
        many = [stdin_test(str(number), "x" * 50_000)] * 20
        assert read(encode(many), folder) == many


def test_processes_that_fill_one_cache_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [context.Process(target=_read_all, args=(tmp_path, start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 20  # no temporary file is left


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("AGPO_CACHE", raising=False)
    assert private_tests.cache_folder() == tmp_path / "x" / "agpo" / "livecodebench"
    monkeypatch.setenv("AGPO_CACHE", str(tmp_path / "a"))
    assert private_tests.cache_folder() == tmp_path / "a" / "livecodebench"
