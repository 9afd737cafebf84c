"""The solve-rate filter: bounds, verdicts, resuming at the completion, early stop, replay; over real models."""

import json
from dataclasses import replace

import pytest

from data_curation import audit, rates, solve_rate
from data_curation.inputs import check_model
from data_curation.rates import SolveOptions, Tally, bounds, decide
from data_curation.stage import CodeTests, Context, Row
from evals.benches import arith
from evals.engines.hf import HFEngine
from evals.errors import UserError
from evals.store import SampleRow, Store


@pytest.mark.parametrize(
    ("n", "low", "high", "expected"),
    [
        (16, 0.5, 0.8, (8, 12)),
        (10, 0.5, 0.8, (5, 8)),
        (8, 0.5, 0.8, (4, 6)),
        (5, 0.2, 0.6, (1, 3)),
        (3, 0.0, 1.0, (0, 3)),
    ],
)
def test_both_ends_are_included_exactly(n, low, high, expected):
    assert bounds(n, low, high) == expected  # 0.8 * 10 and 0.6 * 5 are no floats


@pytest.mark.parametrize(
    ("tally", "verdict"),
    [
        (Tally(8, 8), "keep"),
        (Tally(12, 4), "keep"),
        (Tally(7, 9), "low"),
        (Tally(13, 3), "high"),
        (Tally(0, 9), "low"),  # 7 more could all be right, and would not do
        (Tally(0, 8), "open"),
        (Tally(13, 0), "high"),
        (Tally(8, 4), "keep"),  # 8 to 12 whatever comes
        (Tally(8, 3), "open"),
        (Tally(7, 8, 1), "open"),  # a try without a verdict is no wrong answer
        (Tally(6, 9, 1), "low"),
    ],
)
def test_a_verdict_is_given_when_nothing_can_change_it(tally, verdict):
    assert decide(tally, 16, 0.5, 0.8) == verdict


def test_bounds_that_no_fraction_meets_are_refused():
    with pytest.raises(ValueError, match="no fraction with denominator n=2 lies in"):
        SolveOptions(n=2, low=0.6, high=0.9)
    with pytest.raises(ValueError, match="are one try"):
        SolveOptions(n=4, temperature=0)


ROWS = [Row(f"arith:{i}", "arith", item.prompt, item.answer) for i, item in enumerate(arith.items("train", 24, 5))]
OTHERS = [Row("math:0", "math", "1+1", "2")]


def options(model: str, **changes) -> SolveOptions:
    base = {
        "model": model,
        "sources": ["arith"],
        "prompt": "arith",
        "grader": "exact",
        "n": 4,
        "low": 0.25,
        "high": 0.75,
    }
    return SolveOptions(**{**base, "max_tokens": 64, "seed": 1, **changes})


def completions(store) -> int:
    return sum(run.samples for run in store.runs("curation"))


def test_problems_between_the_bounds_go_on_with_their_numbers(tiny, store):
    said = []
    result = solve_rate.run(ROWS + OTHERS, options(tiny), Context(said.append, store=store))
    assert "1/4 to 3/4 (0.25 to 0.75)" in said[0]
    assert result.rows[-1] == OTHERS[0]  # of a source that is not asked
    kept = result.rows[:-1]
    assert kept
    assert {one.reason for one in result.drops} <= {"solve rate below the bounds", "solve rate above the bounds"}
    assert len(kept) + len(result.drops) == 24
    assert completions(store) == 96
    (run,) = store.runs("curation")
    right = {row.id: 0 for row in ROWS}
    names = {solve_rate.item_of("", row).prompt: row.id for row in ROWS}
    for sample in store.samples(run.id):
        right[names[sample.prompt.removesuffix("=")]] += sample.reward == 1.0
    for row in kept:
        assert row.meta["solve_right"] == right[row.id]
        assert row.meta["solve_rate"] == right[row.id] / 4
        assert row.meta["solve_low"] < row.meta["solve_rate"] < row.meta["solve_high"]  # Wilson's interval
        assert 1 <= right[row.id] <= 3
    for one in result.drops:
        assert right[one.id] in (0, 4)
        assert one.detail["solve_right"] == right[one.id]
    assert sum(result.facts["right of n"].values()) == 24


class Limited:
    """The real engine, which dies after some completions."""

    def __init__(self, engine, left: int):
        self._engine, self._left = engine, left
        self.tokenizer, self.max_context, self.eos_ids = engine.tokenizer, engine.max_context, engine.eos_ids
        self.asked = 0

    def generate(self, requests, sampling):
        self.asked += sum(len(request.seeds) for request in requests)
        for output in self._engine.generate(requests, sampling):
            if self._left == 0:
                raise RuntimeError("the machine is gone")
            self._left -= 1
            yield output

    def close(self) -> None:
        pass


def test_it_goes_on_at_the_completion(tiny, store, monkeypatch):
    calm = solve_rate.run(ROWS, options(tiny, seed=2), Context(store=store))
    before = completions(store)
    engine = HFEngine.load(tiny, device="cpu", max_sequences=4)
    monkeypatch.setattr("evals.engines.load_engine", lambda *_, **__: Limited(engine, 5))
    with pytest.raises(RuntimeError, match="the machine is gone"):
        solve_rate.run(ROWS, options(tiny, seed=3), Context(store=store))
    assert completions(store) == before + 5
    second = Limited(engine, 10**6)
    monkeypatch.setattr("evals.engines.load_engine", lambda *_, **__: second)
    again = solve_rate.run(ROWS, options(tiny, seed=3), Context(store=store))
    assert second.asked == 96 - 5
    third = Limited(engine, 10**6)
    monkeypatch.setattr("evals.engines.load_engine", lambda *_, **__: third)
    assert solve_rate.run(ROWS, options(tiny, seed=3), Context(store=store)) == again
    assert third.asked == 0
    assert solve_rate.run(ROWS, options(tiny, seed=2), Context(store=store)) == calm


def test_other_bounds_and_more_tries_use_what_is_there(tiny, store, monkeypatch):
    solve_rate.run(ROWS, options(tiny), Context(store=store))
    (run,) = store.runs("curation")

    monkeypatch.setattr("evals.engines.load_engine", no_engine)
    other = solve_rate.run(ROWS, options("", replay=run.id, low=0.0, high=1.0), Context(store=store))
    assert len(other.rows) == 24
    fewer = solve_rate.run(ROWS, options("", replay=run.id, n=2, low=0.5, high=0.5), Context(store=store))
    assert {row.meta["solve_tries"] for row in fewer.rows} == {2}
    with pytest.raises(UserError, match="no completions of 1 of 25 problems"):
        solve_rate.run([*ROWS, Row("arith:99", "arith", "9+9", "18")], options("", replay=run.id), Context(store=store))
    monkeypatch.undo()
    solve_rate.run(ROWS, options(tiny, n=6), Context(store=store))
    (run,) = store.runs("curation")
    assert run.samples == 24 * 6


def test_early_stop_asks_less_and_says_the_same(tiny, store):
    some = ROWS[:8]
    whole = solve_rate.run(some, options(tiny, n=8, low=0.4, high=0.6, seed=7), Context(store=store))
    asked = completions(store)
    early = options(tiny, n=8, low=0.4, high=0.6, seed=7, early_stop=True, round=2)
    with Store.open(store.path.with_name("early.db")) as other:
        less = solve_rate.run(some, early, Context(store=other))
        assert completions(other) < asked
    assert [row.id for row in less.rows] == [row.id for row in whole.rows]
    assert {one.id: one.reason for one in less.drops} == {one.id: one.reason for one in whole.drops}
    assert less.facts["stopped early"] > 0


def no_engine(*_, **__):
    raise AssertionError("no model is asked")


def test_other_answers_are_judged_anew_and_nothing_is_asked_again(tiny, store, monkeypatch):
    """The verdict belongs to a completion and a reference; the completion to the problem alone."""
    wide = options(tiny, low=0, high=1)
    first = solve_rate.run(ROWS[:4], wide, Context(store=store))
    changed = [replace(row, answer="999") for row in ROWS[:3]] + [ROWS[3]]
    asked = completions(store)
    engine = Limited(HFEngine.load(tiny, device="cpu"), 10**6)
    monkeypatch.setattr("evals.engines.load_engine", lambda *_, **__: engine)
    second = solve_rate.run(changed, wide, Context(store=store))
    assert engine.asked == 0
    assert [row.meta["solve_right"] for row in second.rows[:3]] == [0, 0, 0]
    assert second.rows[3] == first.rows[3]
    assert completions(store) == asked + 3 * 4  # a verdict is a row of the store
    assert solve_rate.run(ROWS[:4], wide, Context(store=store)) == first
    monkeypatch.setattr("evals.engines.load_engine", no_engine)
    (run,) = store.runs("curation")
    again = solve_rate.run([replace(ROWS[0], answer="998")], replace_model(wide, run.id), Context(store=store))
    assert again.rows[0].meta["solve_right"] == 0
    assert again.facts["model"] == "tiny"  # of the run, for the replay names none


def replace_model(wide: SolveOptions, run: str) -> SolveOptions:
    return wide.model_copy(update={"model": "", "replay": run})


def test_one_problem_with_two_answers_has_two_tallies(tiny, store, monkeypatch):
    two = [ROWS[0], replace(ROWS[0], id="arith:900", answer="999"), replace(ROWS[0], id="arith:901")]
    engine = Limited(HFEngine.load(tiny, device="cpu"), 10**6)
    monkeypatch.setattr("evals.engines.load_engine", lambda *_, **__: engine)
    result = solve_rate.run(two, options(tiny, low=0, high=1), Context(store=store))
    one, other, same = (row.meta["solve_right"] for row in result.rows)
    assert one == same > 0
    assert other == 0
    assert engine.asked == 4


def test_references_that_majorities_contradict_are_listed(tiny, store, tmp_path, capsys):
    """The model is good at sums: where most of its tries agree on another answer, the reference is wrong."""
    rows = [replace(ROWS[0], answer="999"), *ROWS[1:6]]
    for seed in (1, 2):  # two models
        result = solve_rate.run(
            rows, options(tiny, n=8, low=0.1, high=1, temperature=0.3, seed=seed), Context(store=store)
        )
        (dropped,) = [one for one in result.drops if one.id == "arith:0"]
        assert dropped.detail["majority"] == ROWS[0].answer
        assert dropped.detail["majority_tries"] > 4
    url, out = store.url, tmp_path / "audit"
    assert audit.main(["--store", url, "--out", str(out)]) == 0
    assert "1 reference answers to look at, of 2 runs" in capsys.readouterr().out
    (found,) = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert (found["row"], found["reference"], found["majority"]) == ("arith:0", "999", ROWS[0].answer)
    assert f"<b>{ROWS[0].answer}</b>" in out.with_suffix(".html").read_text()
    assert audit.main(["--store", url, "--out", str(out)]) == 0  # an earlier output is replaced
    out.with_suffix(".jsonl").write_text('{"problem": "mine"}\n')
    assert audit.main(["--store", url, "--out", str(out)]) == 2
    assert "is not a file of this command" in capsys.readouterr().err
    assert out.with_suffix(".jsonl").read_text() == '{"problem": "mine"}\n'
    assert audit.main(["--store", str(tmp_path / "none.db"), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "none.db").exists()


def test_tests_of_a_program_belong_to_the_verdict():
    code = CodeTests(["1"], ["2"], time_limit=1.0)
    row = Row("c:0", "c", "Add one.", "", {}, code)
    other = replace(row, code=replace(code, outputs=["3"]))
    assert rates.item_key(row) != rates.item_key(other)
    assert rates.item_key(row) == rates.item_key(replace(row, code=replace(code, references=["x"])))


def test_an_early_end_is_no_missing_verdict_under_other_bounds(tiny, store):
    """Rows that were not asked often enough for the new bounds are never dropped."""
    early = options(tiny, n=8, low=0.4, high=0.6, early_stop=True, round=2)
    first = solve_rate.run(ROWS[:8], early, Context(store=store))
    assert first.facts["stopped early"]
    (run,) = store.runs("curation")
    with pytest.raises(UserError, match=r"no completions of 0 of 8 problems, and too few of \d for these bounds"):
        solve_rate.run(ROWS[:8], options("", n=8, low=0.1, high=0.9, replay=run.id), Context(store=store))
    again = solve_rate.run(ROWS[:8], options("", n=8, low=0.4, high=0.6, replay=run.id), Context(store=store))
    assert [row.id for row in again.rows] == [row.id for row in first.rows]


def refuse_some(server, path, body, number):
    from http_server import Status, vllm_like

    refused = body["max_tokens"] == 64 and sum(body["prompt"]) % 2
    return Status(400, "bad words") if refused else vllm_like(server, path, body, number)


def test_what_a_server_refuses_is_left_out_with_its_reason(tiny, store):
    from http_server import FakeServer

    tokenizer = HFEngine.load(tiny, device="cpu").tokenizer
    odd = {row.id for row in ROWS if sum(tokenizer(row.problem + "=").input_ids) % 2}
    assert 1 < len(odd) < len(ROWS) - 1
    with FakeServer(refuse_some) as server:
        how = options(f"{server.url}#m", engine="openai", engine_options={"tokenizer": tiny}, low=0, high=1)
        said = []
        result = solve_rate.run(ROWS, how, Context(said.append, store=store, max_errors=len(odd)))
        assert {one.id for one in result.drops} == odd
        assert {one.reason for one in result.drops} == {"refused by the server"}
        assert "HTTP 400" in result.drops[0].detail["why"]
        assert "bad words" in result.drops[0].detail["why"]
        assert len(result.rows) == len(ROWS) - len(odd)
        assert f"{len(odd)} problems refused" in said[-1]
        with pytest.raises(UserError, match=r"problem [0-9a-f-]{25}: .*HTTP 400"):
            solve_rate.run(ROWS, how, Context(store=store, max_errors=len(odd) - 1))


def test_the_chat_template_and_top_k_reach_a_server(store):
    from http_server import FakeServer, chat

    def server_that_chats(server, path, body, number):
        return chat(body, "so \\boxed{4}")

    with FakeServer(server_that_chats) as server:
        changes = {"prompt": "qwen-boxed", "top_k": 20, "chat_template_kwargs": {"enable_thinking": False}}
        changes |= {"engine": "openai", "engine_options": {"tokenizer": "none"}}
        how = options(f"{server.url}#m", low=0, high=1, **changes)
        solve_rate.run(ROWS[:1], how, Context(store=store))
        asked = server.posts[-1]
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["top_k"] == 20
    (run,) = store.runs("curation")
    assert run.config["top_k"] == 20  # other completions: another run


def test_what_does_not_fit_the_context_is_listed(tiny, store):
    long = Row("arith:100", "arith", "+".join(["1"] * 300), "300")
    result = solve_rate.run([ROWS[0], long], options(tiny, low=0, high=1), Context(store=store))
    assert {one.id: one.reason for one in result.drops} == {"arith:100": "does not fit the model's context"}


def test_a_missing_model_or_source_is_said(store):
    with pytest.raises(UserError, match="needs a model"):
        solve_rate.run(ROWS, options(""), Context(store=store))
    with pytest.raises(UserError, match="no rows of dapo"):
        solve_rate.run(ROWS, options("", sources=["dapo"]), Context(store=store))


@pytest.mark.parametrize(
    ("engine", "given", "words"),
    [
        ("tgi", {}, "unknown engine 'tgi'"),
        ("hf", {"top_k": 5}, "engine hf: no option 'top_k'"),
        ("hf", {"max_sequences": "many"}, "max_sequences: expected a whole number, not 'many'"),
        ("vllm", {"max_num_seqs": 0}, "max_num_seqs: expected greater than or equal to 1, not 0"),
        ("openai", {"concurrency": "many"}, "concurrency: expected a whole number, not 'many'"),
    ],
)
def test_options_that_no_engine_has_are_found_before_a_build(engine, given, words):
    with pytest.raises(UserError, match=words):
        check_model(options("nowhere", engine=engine, engine_options=given), Context())


@pytest.mark.slow
def test_over_smollm2_by_the_command(smollm2, tmp_path, monkeypatch, capsys):
    """The command that runs Qwen3-32B behind a server, on a CPU and a small scale."""
    import json

    from data_curation import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    problems = [("What is 2 + 2?", "4"), ("What is 3 + 4?", "7"), ("What is 731 times 977?", "714187")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in problems))
    (tmp_path / "r.yaml").write_text(
        "name: r\nsources: [{name: t, kind: table, path: p.jsonl}]\n"
        "stages: {solve_rate: {engine: hf, n: 4, low: 0.25, high: 1.0, max_tokens: 48, temperature: 0.8}}\n"
    )
    assert build.main(["--recipe", "r.yaml", "--set", f"solve_rate.model={smollm2}", "--set", "solve_rate.low=0"]) == 0
    whole = json.loads((tmp_path / "data/r/manifest.json").read_text())
    facts = whole["content"]["stages"][0]["facts"]
    assert facts["problems asked"] == 3
    assert sum(facts["right of n"].values()) == 3
    assert (tmp_path / "data/r/images/solve_rate_all.png").is_file()
    assert "4 tries express 0/4 to 4/4" in capsys.readouterr().out


def test_an_audits_problems_are_read_together(store, monkeypatch):
    """Each query reads the whole index of a run: one for each reference is ten times slower at 500."""
    run = store.start_run("curation", solve_rate.RUN, model="m", config={})
    about = {"outcome": "wrong", "reward": 0.0, "answer": "7", "reference": "8", "response": "", "path": "box"}
    about |= {"token_ids": (), "logprobs": None, "finish_reason": "stop", "seed": 0, "seconds": 0.0}
    store.log_samples(run, [SampleRow("a", f"i{k}", r, 0, f"p{k}", **about) for k in range(5) for r in (0, 1)])
    asked, samples = [], Store.samples
    monkeypatch.setattr(Store, "samples", lambda *a, **how: (asked.append(how), samples(*a, **how))[1])
    found = audit.audit(store, store.runs(), 0.5)
    assert [(one["item"], one["problem"], one["models"]) for one in found] == [
        (f"i{k}", f"p{k}", {"m": (2, 2)}) for k in range(5)
    ]
    assert len(asked) == 1
