"""LiveCodeBench: releases, windows, records, notes; and the whole way through `evals.run` with a real model."""

from collections import Counter

import pytest
from lcb_records import adding, doubling, encode, write

from evals.benches import find, lcb_facts, livecodebench, load
from evals.errors import UserError
from evals.grading.grader import open_grader
from evals.items import read_rows
from evals.prompts import LCB_SYSTEM, opened_thoughts, render
from evals.prompts import encode as encode_prompt
from evals.run import main
from evals.store import Store

BENCH = find("livecodebench")
ALL = {"release": "release_v5", "window": "all"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AGPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AGPO_DATA", raising=False)


def test_the_papers_window_on_release_v5_has_166_problems(data):
    whole, cut = data / "livecodebench/release_v5_offline.jsonl.gz", "release_v5_window_2024-10_2025-01.jsonl.gz"
    items = load(BENCH, str(whole))
    assert len(items) == 166
    assert {item.id for item in items} == {item.id for item in load(BENCH, str(data / "livecodebench" / cut))}
    assert min(item.meta["date"] for item in items) == "2024-10-05"
    assert max(item.meta["date"] for item in items) == "2025-01-04"
    assert Counter(item.meta["platform"] for item in items) == {"atcoder": 102, "leetcode": 64}
    assert Counter(item.code.mode for item in items) == {"stdin": 102, "call": 64}  # type: ignore[union-attr]
    (about, weak, errata) = BENCH.notes(items, {"release": "release_v5", "window": lcb_facts.PAPER_WINDOW})
    assert "a local file with all 880 problems of release_v5; 166 in the window, as in the paper" in about
    assert weak.startswith("46 of 166 problems have no private tests")
    assert "arc185_c" in errata
    assert "arc189_a" in errata
    assert errata.count("abc") == 0


def test_all_of_release_v5_and_its_errata(data):
    path = data / "livecodebench/release_v5_offline.jsonl.gz"
    items = load(BENCH, str(path), ALL)
    assert len(items) == len({item.id for item in items}) == 880
    assert {item.id for item in items if "errata" in item.meta} == set(lcb_facts.ERRATA)
    marked = {row["question_id"] for row in read_rows(path) if row["x_errata"]}
    assert marked == set(lcb_facts.ERRATA)
    assert all(item.code and item.code.problem.tests for item in items)


def test_release_names():
    assert list(lcb_facts.increments("release_v5")) == [1, 2, 3, 4, 5]
    assert list(lcb_facts.increments("v5")) == [5]
    assert list(lcb_facts.increments("v4_v5")) == [4, 5]
    assert list(lcb_facts.increments("release_latest")) == [1, 2, 3, 4, 5, 6]
    sizes = [lcb_facts.size(f"release_v{n}") for n in range(1, 7)]
    assert sizes == [400, 511, 612, 713, 880, 1055]
    assert lcb_facts.size("v4_v5") == 268
    for wrong in ("v7", "v0", "release_v0", "v5_v4", "5", "", "v5_", "release_v4_v5"):
        with pytest.raises(UserError, match=r"unknown release .* Known: release_v1 to release_v6"):
            lcb_facts.increments(wrong)


def test_the_window_compares_dates_and_not_midnights(tmp_path):
    whole = {"release": "release_v6", "window": "all"}
    dates = ["2024-09-30T23:59:00", "2024-10-01T00:00:00", "2025-02-01T18:30:00", "2025-02-02T00:00:00"]
    path = write(tmp_path / "a.jsonl", [doubling(f"abc{i}_a", date) for i, date in enumerate(dates)])
    ids = {
        window: [item.id for item in load(BENCH, path, whole | {"window": window})]
        for window in ("2024-10-01:2025-02-01", "2024-10-01:", ":2024-09-30", "2025-02-01:2025-02-01", "all")
    }
    assert list(ids.values()) == [
        ["abc1_a", "abc2_a"],
        ["abc1_a", "abc2_a", "abc3_a"],
        ["abc0_a"],
        ["abc2_a"],
        ["abc0_a", "abc1_a", "abc2_a", "abc3_a"],
    ]
    with pytest.raises(UserError, match=r"none of 4 problems lies in the window .* from 2024-09-30 to 2025-02-02"):
        load(BENCH, path, whole | {"window": "2023-01-01:2023-02-01"})
    for wrong in ("2024-10-01", "2024-10:2025-02", "a:b", "", "2024-10-01:2024-13-01", "2024-10-01:2025-02-01:"):
        with pytest.raises(UserError, match="expected START:END"):
            livecodebench.parse_window(wrong)
    with pytest.raises(UserError, match="it ends before it starts"):
        livecodebench.parse_window("2025-01-01:2024-01-01")


@pytest.mark.parametrize(
    ("release", "dates", "why"),
    [
        ("v6", ("2024-10-05", "2025-01-04"), "its last contest is of 2025-01-04, when v6 had not begun"),
        ("release_latest", ("2023-05-01", "2025-01-04"), "its last contest is of 2025-01-04, when v6 had not begun"),
        ("v6", ("2024-10-05", "2025-03-01"), "its first contest is of 2024-10-05, and v6 begins in January 2025"),
        ("v5", ("2025-01-10", "2025-04-06"), "its last contest is of 2025-04-06, and v5 ends in January 2025"),
        ("release_v5", ("2023-05-01", "2024-08-04"), "2024-08-04, when v5 had not begun"),
        ("v5", ("2024-10-05", "2025-01-04"), None),
        ("release_v6", ("2023-05-01", "2025-04-06"), None),
        ("v6", ("2025-01-11", "2025-04-06"), None),
    ],
)
def test_a_file_of_another_release_is_refused(tmp_path, release, dates, why):
    path = write(tmp_path / "a.jsonl", [doubling(f"abc{i}_a", f"{date}T00:00:00") for i, date in enumerate(dates)])
    if why is None:
        assert load(BENCH, path, {"release": release, "window": "all"})
        return
    with pytest.raises(UserError, match=f"is not LiveCodeBench's {release}: .*{why}. Say which --release it is"):
        load(BENCH, path, {"release": release, "window": "all"})


def test_a_file_with_as_many_problems_as_another_release_is_refused(data):
    path = str(data / "livecodebench/release_v5_offline.jsonl.gz")
    with pytest.raises(UserError, match=r"not LiveCodeBench's v5: it has 880 problems, as many as release_v5\. Say"):
        load(BENCH, path, {"release": "v5", "window": "all"})


def test_a_record_of_each_kind(tmp_path):
    twice, add = load(BENCH, write(tmp_path / "a.jsonl", [doubling(), adding()]))
    assert twice.code
    assert add.code
    assert (twice.id, twice.code.mode, twice.code.entry, twice.code.starter) == ("abc900_a", "stdin", "", "")
    assert [(t.input, t.expected) for t in twice.code.problem.tests] == [
        ("1\n", "2\n"),
        ("21\n", "42\n"),
        ("-3\n", "-6\n"),
    ]
    assert (add.code.mode, add.code.entry) == ("call", "Solution().addToEach")
    assert [(t.input, t.expected) for t in add.code.problem.tests] == [([[1, 2], 3], [4, 5]), ([[], -1], [])]
    assert twice.code.limits.cpu_s == 6
    assert twice.meta | {"source": ""} == {
        "difficulty": "easy",
        "platform": "atcoder",
        "month": "2024-11",
        "date": "2024-11-02",
        "contest": "abc900",
        "title": "Twice",
        "public_tests": 1,
        "private_tests": 2,
        "source": "",
    }
    plain = adding(starter_code="def addToEach(nums, k):\n    ")
    (function,) = load(BENCH, write(tmp_path / "a.jsonl", [plain]))
    assert function.code
    assert function.code.entry == "addToEach"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (doubling(private_test_cases="!"), "problem 'abc900_a': its private tests cannot be read: neither JSON"),
        (doubling(private_test_cases=encode([])[:-8]), "problem 'abc900_a': its private tests cannot be read"),
        (doubling(public_test_cases="[1]"), "problem 'abc900_a': its public tests cannot be read: test 0"),
        (
            doubling(public_test_cases="[]", private_test_cases="[]"),
            "'abc900_a': it has no tests, so nothing could fail",
        ),
        (adding(metadata="{"), "'9001': metadata is not a JSON object"),
        (adding(metadata="[]"), "'9001': metadata is not a JSON object"),
        (adding(public_test_cases='[{"input": "1 2", "output": "3"}]'), "'9001', test 0: expected one JSON value"),
        (doubling(contest_date="soon"), "row 0: contest_date is 'soon'"),
        ({"question_id": "x"}, "row 0: no column 'question_title'"),
    ],
)
def test_a_faulty_record_is_named(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        load(BENCH, write(tmp_path / "a.jsonl", [row]))


def test_line_ends_are_unixs(tmp_path):
    tests = '[{"input": "1\\r\\n2\\r\\n", "output": "3\\r\\n"}]'
    (item,) = load(BENCH, write(tmp_path / "a.jsonl", [doubling(public_test_cases=tests, private_test_cases="[]")]))
    assert item.code
    assert [(t.input, t.expected) for t in item.code.problem.tests] == [("1\n2\n", "3\n")]


def test_the_same_problem_twice(tmp_path):
    with pytest.raises(UserError, match="row 1: the problem 'abc900_a' is there twice"):
        load(BENCH, write(tmp_path / "a.jsonl", [doubling(), doubling()]))


def test_a_folder_with_the_hubs_files(tmp_path):
    write(tmp_path / "test4.jsonl", [doubling("abc4_a", "2024-09-07T00:00:00")])
    write(tmp_path / "test5.jsonl", [doubling("abc5_a", "2024-10-05T00:00:00")])

    def ids(release, window="all"):
        return [item.id for item in load(BENCH, str(tmp_path), {"release": release, "window": window})]

    assert ids("v4") == ["abc4_a"]
    assert ids("v4_v5") == ["abc4_a", "abc5_a"]
    assert ids("release_v5", lcb_facts.PAPER_WINDOW) == ["abc5_a"]  # the files that end before the window are not read
    with pytest.raises(UserError, match=r"no test\.jsonl, test2\.jsonl, test3\.jsonl, which release release_v5 needs"):
        ids("release_v5")
    with pytest.raises(UserError, match=r"release v4 of LiveCodeBench ends on 2024-09-30, before the window starts"):
        ids("v4", lcb_facts.PAPER_WINDOW)
    (item,) = load(BENCH, str(tmp_path), {"release": "v5", "window": lcb_facts.PAPER_WINDOW})
    assert "1 problems (expected 167: the data set has changed)" in item.meta["source"]
    assert "1 in the window (the paper's has 166)" in item.meta["source"]


def test_the_hubs_files_are_fetched_and_nothing_else(tmp_path, monkeypatch):
    """hf_hub_download is the hub's own cache lookup here: a folder laid out as it lays it out."""
    snapshot = tmp_path / "datasets--livecodebench--code_generation_lite/snapshots/0123456789abcdef"
    snapshot.mkdir(parents=True)
    write(snapshot / "test5.jsonl", [doubling()])
    (snapshot / "code_generation_lite.py").write_text("raise SystemExit('the loading script was run')")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123456789abcdef")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (item,) = load(BENCH, None)
    assert item.id == "abc900_a"
    assert item.meta["source"].startswith(
        "livecodebench/code_generation_lite at 0123456789ab (test5.jsonl), 1 problems (expected 167"
    )
    with pytest.raises(UserError, match=r"cannot load test\.jsonl of livecodebench/.* give --data: a folder"):
        load(BENCH, None, ALL)


class Chat:
    chat_template = "<template>"

    def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in chat) + "[assistant]<think>\n"

    def __call__(self, text, add_special_tokens, **_):
        return type("Encoding", (), {"input_ids": [0] * add_special_tokens + [ord(c) for c in text]})()

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_prompts_to_the_letter(tmp_path):
    twice, add = load(BENCH, write(tmp_path / "a.jsonl", [doubling(question_content="Twice {x}?"), adding()]))
    asked = (
        "### Question:\nTwice {x}?\n\n### Format: Read the inputs from stdin solve the problem and write the answer "
        "to stdout (do not directly test on the sample inputs). Enclose your code within delimiters as follows. Ensure "
        "that when the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT.\n"
        "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert render("lcb-chat", twice, Chat()) == f"<s>[system]{LCB_SYSTEM}[user]{asked}[assistant]<think>\n"
    assert render("lcb-generic", twice, Chat()) == f"{LCB_SYSTEM}\n\n{asked}"
    call = render("lcb-chat", add, Chat())
    assert (
        "### Format: You will use the following starter code to write the solution to the problem and enclose your "
        f"code within delimiters.\n```python\n{add.code.starter}\n```\n\n### Answer"  # type: ignore[union-attr]
    ) in call
    assert "stdin" not in call
    r1 = render("lcb-r1", add, Chat())
    assert "[system]" not in r1
    assert "\n\nQuestion: Given a list and k" in r1
    assert "class Solution:" in r1
    with pytest.raises(KeyError):  # a bare text has no starter code to show
        render("lcb-chat", twice.prompt, Chat())
    assert encode_prompt("lcb-chat", twice, Chat()).count(0) == 0  # the template wrote the first token
    assert encode_prompt("lcb-generic", twice, Chat())[0] == 0


def test_thoughts_that_the_template_opened_and_that_were_cut_off_are_no_answer(tmp_path):
    (item,) = load(BENCH, write(tmp_path / "a.jsonl", [doubling()]))
    program = "```python\nprint(2 * int(input()))\n```"
    opening = opened_thoughts(render("lcb-r1", item, Chat()))
    assert opening == "<think>\n"
    assert opened_thoughts(render("lcb-generic", item, Chat())) == ""
    with open_grader("code") as grader:
        cut_off, thought = (
            grader.submit(opening + text, item).result() for text in (program, f"first\n</think>\n{program}")
        )
    assert (cut_off.outcome, thought.outcome) == ("no_answer", "right")


def test_right_and_wrong_programs_of_both_kinds_in_the_sandbox(tmp_path):
    twice, add = load(BENCH, write(tmp_path / "a.jsonl", [doubling(), adding()]))
    method = "class Solution:\n    def addToEach(self, nums, k):\n        return [{} for x in nums]"
    answers = [
        (twice, "print(2 * int(input()))", "AC"),
        (twice, "print(2)", "WA"),  # passes the public test only
        (add, method.format("x + k"), "AC"),
        (add, method.format("x - k"), "WA"),
        (add, method.format("x + K"), "RE"),
    ]
    with open_grader("code") as grader:
        verdicts = [grader.submit(f"```python\n{code}\n```", item) for item, code, _ in answers]
        assert [v.result().meta["real"] for v in verdicts] == [expected for _, _, expected in answers]


def test_dry_run_says_it_all_and_loads_no_model(tmp_path, smollm2, capsys, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    path = write(tmp_path / "a.jsonl", [doubling(), adding(), doubling("arc185_c", "2024-10-13T00:00:00")])
    asked = ["--release", "v5", "--window", "2024-10-01:2025-02-01", "--data", path, "--model", str(smollm2)]
    assert main(["--bench", "livecodebench", *asked, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "problems: 3, 3 completions" in printed
    assert "v5, window 2024-10-01:2025-02-01 by contest date, both days included" in printed
    assert "a local file with 3 problems, not the 167 of v5; 3 in the window (the paper's has 166)" in printed
    assert "arc185_c (several answers are right, one is accepted)" in printed
    assert "released on 2024-11-01" in printed
    assert "1 of 3 problems are no newer" in printed
    assert "### Question:" in printed


@pytest.mark.slow
def test_a_real_model_through_lm_eval_and_the_sandbox(tmp_path, smollm2, capsys):
    path = write(tmp_path / "a.jsonl", [doubling(), adding()])
    run = ["--bench", "livecodebench", "--data", path, "--model", str(smollm2), "--max-tokens", "48"]
    assert main([*run, "--store", str(tmp_path / "s.db")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "difficulty easy" in printed
    assert "month 2024-12" in printed
    with Store.open(tmp_path / "s.db") as store:
        (evaluation,) = store.runs("eval")
        rows = list(store.samples(evaluation.id))
    assert evaluation.status == "done"
    assert evaluation.config["options"] == {"release": "release_v5", "window": lcb_facts.PAPER_WINDOW}
    assert evaluation.config["max_tokens"] == 48
    assert any("2 problems, not the 880 of release_v5" in note for note in evaluation.config["notes"])
    assert {row.item for row in rows} == {"abc900_a", "9001"}
    assert all(row.outcome in ("right", "wrong", "no_answer") for row in rows)
