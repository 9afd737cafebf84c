"""Items from several files, from folders and from data sets of the hub."""

import json

import pytest
from datasets import Dataset, DatasetDict

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


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("shards", ["1", "2", "3"]),
        ("shards:test", ["9"]),
        ("saved", ["1", "2"]),
        ("both", ["1"]),
        ("both:test", ["9"]),
        ("snapshot:hard:test", ["9"]),
        ("shards, saved", ["1", "2", "3", "1", "2"]),
    ],
)
def test_a_folder_of_files_is_read_by_its_split(tmp_path, monkeypatch, place, expected):
    monkeypatch.chdir(tmp_path)
    for name, rows in {
        "shards/train-00000-of-00002.jsonl": "12",
        "shards/train-00001-of-00002.jsonl": "3",
        "shards/test.jsonl": "9",
        "snapshot/hard/test.jsonl": "9",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps({"prompt": "p" + n, "answer": n}) + "\n" for n in rows))
    readme = "---\nconfigs:\n- config_name: hard\n  data_files:\n  - split: test\n    path: hard/test.jsonl\n---\n"
    (tmp_path / "snapshot/README.md").write_text(readme)
    one, two, nine = ({"prompt": "p" + n, "answer": n} for n in "129")
    Dataset.from_list([one, two]).save_to_disk("saved")
    DatasetDict({"train": Dataset.from_list([one]), "test": Dataset.from_list([nine])}).save_to_disk("both")
    assert [item.answer for item in read_items(place)] == expected


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    DatasetDict({"test": Dataset.from_list([{"prompt": "p", "answer": "1"}])}).save_to_disk(tmp_path / "both")
    Dataset.from_list([{"prompt": "p", "answer": "1"}]).save_to_disk(tmp_path / "alone")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/a.jsonl").write_text('{"prompt": "p", "answer": "1"}\n')
    for place, said in (
        ("both", "'train'. It has test"),
        ("alone:valid", "'valid'. It has train"),
        ("plain:x", "'x'."),
    ):
        with pytest.raises(UserError, match=rf"no split {said}.*Name the one you mean: FOLDER:SPLIT"):
            read_items(tmp_path / place)
