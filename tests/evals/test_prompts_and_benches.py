"""Prompt presets, benchmarks, and reading items from files."""

import gzip
import itertools
import json

import pytest

from evals.benches import BENCHES, arith, find, load
from evals.errors import UserError
from evals.grading.grader import NAMES
from evals.items import Item, derive_seed, read_items
from evals.models import find_target
from evals.prompts import PRESETS, encode, own_preset, render


class Chat:
    """A tokenizer's face towards prompts: a chat template that writes its own special token, one id per character."""

    chat_template = "<template>"

    def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        assert add_generation_prompt
        assert not tokenize
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in chat) + "[assistant]"

    def __call__(self, text, add_special_tokens, **_):
        ids = [0] * add_special_tokens + [ord(c) for c in text]
        return type("Encoding", (), {"input_ids": ids})()

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_presets_render_literally():
    problem = r"Find $\frac{1}{2}$ of {x}"
    boxed = r"Please reason step by step, and put your final answer within \boxed{}."
    assert render("qwen25-math-cot", problem, Chat()) == f"<s>[system]{boxed}[user]{problem}[assistant]"
    assert render("r1", "1+1", Chat()).count("[system]") == 0
    assert render("verl-math", "1+1?", Chat()).endswith(
        r"[user]1+1? Let's think step by step and output the final answer within \boxed{}.[assistant]"
    )
    assert render("none", problem, Chat()) == problem
    assert render("arith", "3+5-2", Chat()) == "3+5-2="


def test_no_doubled_special_token():
    assert encode("qwen-boxed", "1", Chat()).count(0) == 0  # the template wrote it
    assert encode("none", "1", Chat())[0] == 0


def test_text_that_a_tokenizer_does_not_know_is_refused():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_target("tiny").path)
    assert len(encode("arith", "3+5-2", tokenizer)) == 6
    with pytest.raises(UserError, match="does not know l, p, s, u in '3 plus 5='"):
        encode("arith", "3 plus 5", tokenizer)


def test_a_chat_preset_without_a_template_names_those_that_work():
    plain = Chat()
    plain.chat_template = None
    with pytest.raises(UserError, match=r"has none\. Presets that work without: .*none.*arith"):
        render("qwen-boxed", "1+1", plain)
    with pytest.raises(UserError, match="unknown prompt preset 'gpt'"):
        render("gpt", "1+1", plain)


def test_every_bench_names_a_grader_and_a_preset_that_exist():
    for bench in BENCHES.values():
        assert bench.grader in NAMES
        assert bench.prompt in PRESETS
    with pytest.raises(UserError, match=r"unknown benchmark 'aime'.*math500"):
        find("aime")


def test_math500_from_its_file(data):
    items = load(find("math500"), str(data / "math500/test.jsonl.gz"))
    assert len(items) == len({item.id for item in items}) == 500
    assert {item.meta["level"] for item in items} == {1, 2, 3, 4, 5}
    assert len({item.meta["subject"] for item in items}) == 7


def test_math500_through_the_data_folder(data, tmp_path, monkeypatch):
    (tmp_path / "math500.jsonl.gz").write_bytes((data / "math500/test.jsonl.gz").read_bytes())
    monkeypatch.setenv("AGPO_DATA", str(tmp_path))
    assert len(load(find("math500"), None)) == 500


def test_a_file_of_another_shape_is_named_with_row_and_column(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2", "unique_id": "a"}\n{"problem": "1+1", "unique_id": "b"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, row 1: no column 'answer'"):
        load(find("math500"), str(path))


def test_without_a_network_the_hub_is_one_clear_message(monkeypatch):
    monkeypatch.delenv("AGPO_DATA", raising=False)
    with pytest.raises(UserError, match=r"cannot load HuggingFaceH4/MATH-500 .* give a local file"):
        load(find("math500"), None)


def test_arith_sides_are_disjoint_repeatable_and_right():
    train, heldout = arith.items("train", 2000, seed=3), arith.items("heldout", 500, seed=3)
    assert train == arith.items("train", 2000, seed=3)
    assert train != arith.items("train", 2000, seed=4)
    assert not {i.id for i in train} & {i.id for i in heldout}
    assert not {i.id for i in arith.items("train", 2000, seed=9)} & {i.id for i in heldout}
    for item in train + heldout:
        terms = item.prompt.replace("-", "+-").split("+")
        assert sum(map(int, terms)) == int(item.answer)
        assert 3 <= len(terms) == item.meta["terms"] <= 5


@pytest.mark.parametrize("seed", [0, derive_seed("arith", "train", 7), 2**31 - 500, 2**40 + 7])
@pytest.mark.parametrize("terms", [(3, 5), (4, 6), (1, 12)])
def test_arith_has_the_problems_of_reasoning_gym(seed, terms):
    made = pytest.importorskip("reasoning_gym.arithmetic.chain_sum")

    def theirs(seed):
        config = made.ChainSumConfig(
            min_terms=terms[0], max_terms=terms[1], min_digits=1, max_digits=1, seed=seed % 2**31, size=1024
        )
        for row in made.ChainSumDataset(config):
            yield row["metadata"]["expression"].replace(" ", ""), row["answer"]

    ours = list(itertools.islice(arith._expressions(seed, *terms), 2048))
    assert ours == [*theirs(seed), *theirs(derive_seed(seed, "next"))]


def test_arith_says_when_there_are_not_that_many():
    with pytest.raises(UserError, match="found only"):
        arith.items("heldout", 10_000, min_terms=2, max_terms=2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "1"\n', "line 1: not valid JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a list, not a JSON object"),
        ("a.jsonl", b'{"prompt": "1"}\n', "no column 'answer'"),
        ("a.jsonl", b'{"prompt": null, "answer": "1"}\n', "row 0: column 'prompt' is null"),
        ("a.jsonl", b'{"prompt": "1", "answer": ["a", "b"]}\n', "row 0: the answer is a list"),
        ("a.jsonl", b'{"prompt": "1", "answer": true}\n', "row 0: the answer is a bool, and a text or a number"),
        ("a.jsonl", b'{"prompt": "1", "answer": NaN}\n', "row 0: the answer is NaN"),
        ("a.jsonl", b'{"prompt": {"text": "1"}, "answer": "1"}\n', "row 0: the prompt is a dict"),
        ("a.jsonl", b'{"prompt": "1", "answer": "1", "id": ["a"]}\n', "row 0: the id is a list"),
        ("a.jsonl", b'{"prompt": "1", "reward_model": {"ground_truth": ""}}\n', "no 'ground_truth', or an empty one"),
        ("a.jsonl", b'{"prompt": "1", "reward_model": "rule"}\n', "row 0: no column 'answer'"),
        ("a.jsonl", b'{"prompt": "1", "answer": "1", "images": ["x.png"]}\n', "row 0: it has images"),
        ("a.jsonl", b'{"prompt": "1", "answer": "1", "image": "x.png"}\n', "row 0: it has image"),
        ("a.jsonl", b'{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}\n', "more than text"),
        ("a.jsonl", b'{"prompt": [{"role": "tool", "content": "1"}]}\n', "row 0, 'prompt': a turn uses tools"),
        (
            "a.jsonl",
            b'{"prompt": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n',
            "must be the user's",
        ),
        ("a.jsonl", b'{"prompt": [{"role": "system", "content": "1"}]}\n', "no turn is the user"),
        ("a.jsonl", b"\xff\xfe\n", "line 1: not UTF-8"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "has no rows"),
        ("a.jsonl.gz", b"not gzip", "not a readable gzip file"),
        ("a.parquet", b"not parquet", "not a readable parquet file"),
        ("a.txt", b"prompt,answer", "unknown kind of file"),
        ("a.csv", b"prompt,answer\n1\n", "row 0: another number of columns"),
        (None, None, "no such file"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    path = tmp_path / (name or "none.jsonl")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_items(path)


def test_what_a_row_says_besides_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    thought = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "weight": 1}
    chat = [{"role": "user", "content": "2+2"}, thought, {"role": "user", "content": "sure?"}]
    path.write_text(json.dumps({"prompt": chat, "answer": 4, "extra_info": "a note", "tools": "[]"}) + "\n")
    (item,) = read_items(path)
    assert item.chat[1] == {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    assert (item.answer, item.meta["extra_info"]) == ("4", "a note")


def test_items_of_plain_columns_and_of_verls_schema(tmp_path):
    path = tmp_path / "a.jsonl"
    verl = {
        "data_source": "lighteval/MATH",
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1"}]}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 7, "level": 3},
    }
    path.write_text(json.dumps(verl) + "\n")
    assert read_items(path) == [
        Item("7", "1+1", "2", {"data_source": "lighteval/MATH", "index": 7, "level": 3}, was_chat=True)
    ]
    path.write_text('{"q": "1+1", "a": 2, "source": "x"}\n')
    (item,) = read_items(path, prompt="q", answer="a")
    assert (item.prompt, item.answer, item.meta) == ("1+1", "2", {"source": "x"})
    assert len(item.id) == 16


def test_seeds_depend_on_every_part_and_nothing_else():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert len({derive_seed(1, "a", 2), derive_seed(1, "a", 3), derive_seed(11, "a", 2), derive_seed(1, "a2")}) == 4
    assert 0 <= derive_seed("x") < 2**63


TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And {problem}?"},
]


def test_a_chat_is_asked_as_it_is_by_the_models_own_template(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": TURNS, "tests": ["a", "b"], "id": 1}, {"prompt": TURNS[:2]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_items(path, answer="")
    assert first.chat == tuple(TURNS)
    assert (first.answer, first.meta["tests"], first.labels) == ("", ["a", "b"], {"id": 1})
    assert second.id != read_items(path, answer="")[0].id
    with_template = TinyTokenizer("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<{{ who or 'ai' }}>")
    assert render("qwen-boxed", first, with_template) == (
        "<system>Be short.<user>1+1<assistant>2<user>And {problem}?<ai>"
    )
    with pytest.raises(UserError, match=r"a chat of several turns .* 'none' is plain text"):
        render("none", first, with_template)
    strict = TinyTokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"'1'.*\(system, user, assistant, user\).*roles must alternate"):
        render("chat", first, strict)


def test_words_of_ones_own_take_the_place_of_a_presets():
    tokenizer = TinyTokenizer("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<{{ who or 'ai' }}>")
    own = own_preset("qwen-boxed", "In {JSON}.", "Q: {problem} in \\boxed{}", {"who": "me"})
    assert render(own, "1+{1}", tokenizer) == "<system>In {JSON}.<user>Q: 1+{1} in \\boxed{}<me>"
    assert render(own_preset("qwen-boxed", "", None, {}), "1", tokenizer).startswith("<user>1\nPlease")
    assert own_preset("r1", None, None, {}) == "r1"
    for given, said in (
        (("none", "x", None, {}), "is plain text"),
        (("r1", None, "no place", {}), "has no {problem}"),
    ):
        with pytest.raises(UserError, match=said):
            own_preset(*given)
    with pytest.raises(UserError, match="does not use 'enable_thinking'"):
        render(own_preset("r1", None, None, {"enable_thinking": False}), "1", tokenizer)


def test_a_text_that_begins_as_a_template_does_gets_no_second_first_token(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.add_bos_token = True
    text = tokenizer.bos_token + "hello"
    assert encode("none", text, tokenizer).count(tokenizer.bos_token_id) == 1


class TinyTokenizer:
    """What rendering asks of a tokenizer, with transformers' own templates."""

    def __init__(self, template):
        self.chat_template = template

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **given):
        from transformers.utils.chat_template_utils import render_jinja_template

        assert add_generation_prompt
        return render_jinja_template([messages], chat_template=self.chat_template, **given)[0][0]
