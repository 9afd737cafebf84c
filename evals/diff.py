"""`python -m evals.diff A B --bench ...`: where do two models differ on the same problems with the same noise?

Tokens are sampled with Gumbel noise per (sample, position, token) that both models share, so two answers are the same
until the models themselves differ. That narrows the interval of the difference, and shows what it consists of.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from rich.console import Console

from evals.console import make_console
from evals.errors import UserError, command
from evals.groups import grouped
from evals.models import Target, find_target
from evals.plan import Plan, asked_with, make_plans, plan_for
from evals.run import arguments as run_arguments
from evals.run import engine_name, engine_options, engines, facts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evals.engines import Engine
    from evals.store import Json, SampleRow, Store

SCORED = 400
"""partings whose probabilities are computed: enough for a mean, minutes on a CPU"""
SHOWN = 12
Pair = tuple["SampleRow", "SampleRow"]
EngineOf: TypeAlias = "Callable[[Target], Engine]"


@dataclass(frozen=True)
class Parting:
    """Where two answers to a problem, sampled with the same noise, first differ."""

    pair: Pair
    at: int
    """identical tokens before it"""
    logps: tuple[float, ...] = ()
    """of A's and B's token by model A, then by model B, at temperature 1; empty if not computed"""

    @property
    def tokens(self) -> tuple[int, int]:
        a, b = (row.token_ids[self.at] for row in self.pair)
        return a, b


def partings(pairs: Sequence[Pair]) -> list[Parting]:
    """Of the pairs that differ. Answers include their end-of-sequence token, so none is a prefix of another."""
    found = []
    for pair in pairs:
        ids = zip(pair[0].token_ids, pair[1].token_ids, strict=False)
        at = next((at for at, (a, b) in enumerate(ids) if a != b), None)
        if at is not None:
            found.append(Parting(pair, at))
    return found


def independent_error(rewards_a_PN: np.ndarray, rewards_b_PN: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean difference over P problems with N samples each: (as is, with independent noise).

    Shared noise removes 2 cov / N from a problem's variance, cov the covariance of the two rewards over its samples.
    The second is nan with one sample each.
    """
    n_problems, n = rewards_a_PN.shape
    shared = float(np.var(rewards_b_PN.mean(1) - rewards_a_PN.mean(1), ddof=1)) / n_problems
    if n < 2:
        return math.sqrt(shared), math.nan
    centred = [x - x.mean(1, keepdims=True) for x in (rewards_a_PN, rewards_b_PN)]
    cov_P = (centred[0] * centred[1]).sum(1) / (n - 1)
    return math.sqrt(shared), math.sqrt(max(0.0, shared + 2 * float(cov_P.mean()) / n / n_problems))


def evaluated(
    plan: Plan, target: Target, engine_of: "EngineOf", name: str, options: "Json", store: "Store", console: Console
) -> str:
    """The run with this model's answers: from the store, if the noise is the same, or made now."""
    from evals.bench_run import deciding, evaluate_plan

    facts = facts_of(target, name, options)
    wanted = deciding({**facts, **plan.settings})
    for run in reversed(store.runs("eval")):
        if run.status == "done" and deciding(run.config) == wanted:
            console.print(f"{target.path}: run {run.id} has its answers already", markup=False)
            return run.id
    return evaluate_plan(plan, target, facts, engine_of(target), store, console)


def with_logps(found: Sequence[Parting], plan: Plan, targets: Sequence[Target], engine_of: "EngineOf") -> list[Parting]:
    """An even sample of the partings, with both models' log-probabilities of both tokens."""
    from evals.prompts import encode

    some = [found[i] for i in np.linspace(0, len(found) - 1, min(SCORED, len(found))).astype(int)]
    by_id, asked = {item.id: item for item in plan.items}, asked_with(plan.settings)
    logps: list[dict[int, float]] = []
    for target in targets:
        engine = engine_of(target)
        if (score := getattr(engine, "score", None)) is None:
            return some
        contexts = [
            [*encode(asked, by_id[p.pair[0].item], engine.tokenizer), *p.pair[0].token_ids[: p.at]] for p in some
        ]
        asked_for = [(context, [token]) for context, p in zip(contexts, some, strict=True) for token in p.tokens]
        logps.append({i: logp for i, logp, _ in score(asked_for)})
    return [Parting(p.pair, p.at, tuple(side[2 * i + k] for side in logps for k in (0, 1))) for i, p in enumerate(some)]


def report(
    plan: Plan,
    pairs: Sequence[Pair],
    scored: Sequence[Parting],
    tokenizer: "PreTrainedTokenizerBase",
    noise: str,
    console: Console,
) -> None:
    """Print where and on which tokens the answers part, and the effect on Pass@1."""
    from evals.report.compare import verdict
    from evals.report.layout import print_table
    from evals.stats import columns, compare

    say = partial(console.print, markup=False, soft_wrap=True)
    found = partings(pairs)
    say(f"{plan.title}: {len(pairs):,} pairs of answers with the same noise ({noise}).")
    same = len(pairs) - len(found)
    say(f"The same, token for token: {same:,} ({100 * same / len(pairs):.1f} %).")
    if found:
        at = np.array([p.at for p in found])
        low, middle, high = np.quantile(at, [0.25, 0.5, 0.75])
        say(f"The others part at token {middle + 1:.0f} (half of them from {low + 1:.0f} to {high + 1:.0f}).")
        kinds = grouped(found, lambda p: p.tokens)
        known = grouped((p for p in scored if p.logps), lambda p: p.tokens)
        lines = []
        for kind, some in sorted(kinds.items(), key=lambda one: -len(one[1]))[:SHOWN]:
            means = np.mean([p.logps for p in known[kind]], axis=0) if kind in known else [math.nan] * 4
            right = [sum(p.pair[k].outcome == "right" for p in some) for k in (0, 1)]
            lines.append(
                [
                    *(repr(tokenizer.decode([token]))[1:-1] for token in kind),
                    f"{len(some):,}",
                    f"{np.median([p.at for p in some]) + 1:.0f}",
                    *("-" if math.isnan(x) else f"{x:.2f}" for x in means),
                    *(f"{100 * count / len(some):.0f}" for count in right),
                ]
            )
        header = ["A says", "B says", "times", "at token", "A: ln p(A's)", "A: ln p(B's)", "B: ln p(A's)"]
        header += ["B: ln p(B's)", "A right, %", "B right, %"]
        print_table(header, lines, f"On which token ({min(SHOWN, len(kinds))} of {len(kinds)} kinds)", console)
    a, b = (columns(rows) for rows in zip(*pairs, strict=True))
    c = compare(a, b)
    say(f"B is {verdict(c, 'A')}. A {100 * c.a:.1f} %, B {100 * c.b:.1f} %.")
    judged = grouped((p for p in pairs if None not in (p[0].reward, p[1].reward)), lambda p: p[0].item)
    whole = [[(x.reward, y.reward) for x, y in some] for some in judged.values() if len(some) == plan.settings["n"]]
    shared, apart = independent_error(*np.array(whole).transpose(2, 0, 1)) if len(whole) > 1 else (math.nan, math.nan)
    if math.isnan(apart):
        say("To see how much the shared noise narrows that interval, use two samples per problem or more (--n 4).")
    elif shared > 0:
        wider = f"{100 * apart:.2f} ({apart / shared:.2f} times as wide)"
        say(f"Standard error {100 * shared:.2f} points; with independent answers to the same problems {wider}.")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evals.diff",
        description="Where do two checkpoints of one model differ? Both answer the same problems with the same noise.",
        epilog="All other options are those of `python -m evals.run` (--bench, --data, --limit, --n, --temperature, "
        "--store, --engine, ...); --n is 4 unless given.",
    )
    parser.add_argument("a", metavar="A", help="model folder or hub id")
    parser.add_argument("b", metavar="B", help="another one, with the same tokenizer")
    own, rest = parser.parse_known_args(argv)
    args, console = run_arguments(["--n", "4", *rest]), make_console()
    if given := [
        flag for flag in ("model", "checkpoints", "resume", "regrade", "dry_run", "list") if getattr(args, flag)
    ]:
        raise UserError(f"--{given[0].replace('_', '-')} is an option of evals.run that evals.diff does not have.")
    name, options = engine_name(args), engine_options(args)
    if name == "openai" or own.a.startswith("openai:"):
        raise UserError("evals.diff compares token by token: engine hf or vllm, not a server's.")
    if name == "hf":
        options.setdefault("noise", "gumbel")
    targets = [find_target(own.a), find_target(own.b)]
    plans = [
        plan_for(plan_for(plan, targets[1], args.max_tokens), targets[0], args.max_tokens) for plan in make_plans(args)
    ]

    from evals.engines.hf import load_tokenizer
    from evals.store import Store

    tokenizers = [load_tokenizer(target.path) for target in targets]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise UserError(f"{own.a} and {own.b} have different tokenizers: their tokens cannot be compared.")
    with Store.open(args.store) as store, engines(name, options) as engine_of:
        for plan in plans:
            if not isinstance(plan, Plan):
                raise UserError("evals.diff takes benchmarks of ours and data:FILE, not tasks of lm-eval.")
            ids = [evaluated(plan, target, engine_of, name, options, store, console) for target in targets]
            rows = [
                {(row.item, row.repeat): row for row in store.samples(run, split=plan.bench.name, with_tokens=True)}
                for run in ids
            ]
            pairs = [(row, rows[1][key]) for key, row in rows[0].items() if key in rows[1]]
            scored = with_logps(partings(pairs), plan, targets, engine_of)
            console.print(f"A is {own.a} (run {ids[0]}), B is {own.b} (run {ids[1]}).", markup=False)
            report(plan, pairs, scored, tokenizers[0], str(options.get("noise", f"that of {name}")), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
