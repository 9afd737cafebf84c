"""Items from several files and from data sets of the hub."""

import pytest

from evals import items
from evals.errors import UserError
from evals.items import read_items


def test_several_files_are_one_and_ids_that_they_share_stay_apart(tmp_path):
    for name, problem in (("a", "1+1"), ("b", "2+2")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": 0, "prompt": "{problem}", "answer": "x"}}\n')
    found = read_items(f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl")
    assert [(item.id, item.prompt) for item in found] == [("a/0", "1+1"), ("b/0", "2+2")]
    assert read_items(tmp_path / "a.jsonl")[0].id == "0"
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match=r"b\.jsonl: the file has no rows"):
        read_items(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("openai/gsm8k:main:test", ("openai/gsm8k", "test", "main")),
        ("openai/gsm8k:test[:10%]", ("openai/gsm8k", "test[:10%]", None)),
        ("BytedTsinghua-SIA/DAPO-Math-17k", ("BytedTsinghua-SIA/DAPO-Math-17k", "train", None)),
    ],
)
def test_a_data_set_of_the_hub_is_named_with_its_configuration_and_split(monkeypatch, named, asked):
    seen = []
    rows = [{"question": "1+1", "answer": "2"}]
    monkeypatch.setattr(items, "hub_rows", lambda *given: (seen.append(given), rows)[1])
    assert read_items(named, "question")[0].answer == "2"
    assert seen == [asked]


@pytest.mark.parametrize("path", ["no/such.jsonl", "nosuch", "/no/such", "./no/such", "a/b/c"])
def test_a_file_that_is_not_there_is_no_name_on_the_hub(path):
    with pytest.raises(UserError, match="no such file"):
        read_items(path)
