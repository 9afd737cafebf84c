"""What a step is measured by, the live table it is shown in, and plain words where the numbers need them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agpo.batch import Group, MiniBatch, plain_tokens, raw_rewards
from agpo.objective import live_groups
from agpo.policy import Update

COLUMNS = (
    ("step", "step", "{:.0f}"),
    ("reward", "reward/mean", "{:.3f}"),
    ("live groups", "groups/live", "{:.0f}"),
    ("tokens", "tokens/response_mean", "{:.1f}"),
    ("right", "tokens/right_mean", "{:.1f}"),
    ("wrong", "tokens/wrong_mean", "{:.1f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("loss", "loss/raw", "{:+.4f}"),
    ("clipped", "clip/clipped_updates", "{:.0f}"),
    ("grad norm", "grad_norm", "{:.2f}"),
    ("tokens/s", "speed/tokens_per_second", "{:.0f}"),
    ("left", "speed/seconds_left", "{}"),
)
GAP = ("gap", "mismatch/gap_mean", "{:.1e}")
"""shown where the engine has weights of its own"""
METRICS = (  # for reports: name, title, unit, what it is, name of its figure
    ("reward/mean", "Reward", "mean reward", "mean of the step's samples", "reward"),
    ("tokens/response_mean", "Response length", "tokens", "tokens, mean of the step's samples", "response_tokens"),
    ("entropy", "Entropy", "nats per token", "nats per token", "entropy"),
    ("groups/live", "Live groups", "per step", "groups with a signal, of a step's", "live_groups"),
    ("clip/clipped_updates", "Clipped updates", "per step", "", "clipped"),
    ("clip/rate", "Clip rate", "share of updates", "share of the step's updates that the clip dropped", ""),
    ("eval/pass1", "Held-out Pass@1", "share", "evaluations during training", ""),
)
ROWS_SHOWN = 12
PROGRAMS: tuple[str, ...] = ("AC", "WA", "RE", "TLE", "CE", "SE")
"""the sandbox's verdicts that are counted in every step with programs, the others where there are some"""


def step_metrics(groups: Sequence[Group], plan: Sequence[MiniBatch], updates: Sequence[Update]) -> dict[str, float]:
    """The metrics of one step, over every group that was sampled. A mean over nothing is left out, not 0.

    `entropy` is minus the mean log-probability of all sampled tokens: an unbiased estimate of the policy's entropy at
    the sampling temperature, in nats, over masked and clipped groups too, for which nothing else is computed.
    """
    samples = [sample for group in groups for sample in group.samples]
    rewards_GN = raw_rewards(groups)
    live_G = live_groups(rewards_GN)
    dead = [{s.verdict.outcome for s in group.samples} for group, live in zip(groups, live_G, strict=True) if not live]
    logps = [x for s in samples for x in s.completion.logprobs or ()]
    norms = [u.grad_norm for u in updates if u.grad_norm is not None and not u.refused]
    drift = [u.ratio_deviation for u in updates if u.ratio_deviation is not None]
    live_tokens = sum(m.live_tokens for m in plan)
    all_tokens = sum(len(s.completion.token_ids) for s in samples)
    run_tokens = sum(u.tokens_run for u in updates)
    parts: dict[str, list[float | None]] = {}
    for s in samples:
        for name, value in s.verdict.parts.items():
            parts.setdefault(name, []).append(value)
    judged = [str(s.verdict.meta["real"]) for s in samples if "real" in s.verdict.meta]  # programs, by the sandbox
    programs = {f"code/{verdict}": float(judged.count(verdict)) for verdict in (*PROGRAMS, *judged)} if judged else {}
    whole = plain_tokens(groups)
    clipped = sum(u.decision.clipped and bool(m.rows) for u, m in zip(updates, plan, strict=True))
    with_signal = clipped + sum(u.stepped or u.refused for u in updates)
    metrics = {
        "reward/mean": _mean([s.reward for s in samples if s.reward is not None]),
        "tokens/response_mean": _mean([len(s.completion.token_ids) for s in samples]),
        "tokens/right_mean": _mean([len(s.completion.token_ids) for s in samples if s.verdict.outcome == "right"]),
        "tokens/wrong_mean": _mean(
            [len(s.completion.token_ids) for s in samples if s.verdict.outcome in ("wrong", "no_answer")]
        ),
        "tokens/truncated": _mean([float(s.completion.finish_reason == "length") for s in samples]),
        "samples/unscored": float(sum(s.reward is None for s in samples)),
        "samples/no_answer": float(sum(s.verdict.outcome == "no_answer" for s in samples)),
        "groups/live": float(live_G.sum()),
        "groups/masked": float((~live_G).sum()),
        "groups/all_right": float(sum(outcomes == {"right"} for outcomes in dead)),
        "groups/all_wrong": float(sum(outcomes <= {"wrong", "no_answer"} for outcomes in dead)),
        "groups/live_token_share": live_tokens / all_tokens if all_tokens else None,
        "entropy": -_total(logps) / len(logps) if logps else None,
        "loss/raw": _mean([u.decision.value for u, m in zip(updates, plan, strict=True) if m.rows]),
        "loss/value": _mean([u.decision.loss for u, m in zip(updates, plan, strict=True) if m.rows]),
        "clip/clipped_updates": float(clipped),
        "clip/rate": clipped / with_signal if with_signal else None,
        "clip/ties": float(sum(u.decision.tie and bool(m.rows) for u, m in zip(updates, plan, strict=True))),
        "updates/made": float(sum(u.stepped for u in updates)),
        "updates/dead": float(sum(not m.live_groups for m in plan)),
        "updates/refused": float(sum(u.refused for u in updates)),
        "ratio/deviation": _mean(drift),
        "grad_norm": _mean(norms),
        "saved/tokens": float(whole - run_tokens),
        "saved/of_tokens": float(whole),
        "saved/share": 1 - run_tokens / whole if whole else None,
        **{f"reward/{name}": _mean(values) for name, values in parts.items()},
        **programs,
    }
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _total(values: Sequence[float]) -> float:
    return float(sum(values))


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return _total(numbers) / len(numbers) if numbers else None


PATIENCE = 5
"""steps without a live group until the run says that there is nothing left to learn"""


@dataclass
class Tally:
    """Sums over the steps of a run. A resumed run makes them from the store, so that it counts and says the same."""

    made: float = 0.0
    clipped: float = 0.0
    dead: float = 0.0
    refused: float = 0.0
    saved_tokens: float = 0.0
    of_tokens: float = 0.0
    dead_steps: int = 0
    """in a row, up to now"""
    said: bool = False
    """that there is nothing left to learn"""

    @classmethod
    def of(cls, metrics: Iterable[tuple[int, str, float]]) -> "Tally":
        """From the rows of a run in the store."""
        steps: dict[int, dict[str, float]] = {}
        for step, name, value in metrics:
            steps.setdefault(step, {})[name] = value
        tally = cls()
        for step in sorted(steps):
            if "groups/live" in steps[step]:
                tally.add(step, steps[step])
        return tally

    def add(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Count a step; what there is to say about it."""
        self.made += metrics["updates/made"]
        self.clipped += metrics["clip/clipped_updates"]
        self.dead += metrics["updates/dead"]
        self.refused += metrics["updates/refused"]
        self.saved_tokens += metrics["saved/tokens"]
        self.of_tokens += metrics["saved/of_tokens"]
        if metrics["groups/live"]:
            self.dead_steps = 0
            return []
        self.dead_steps += 1
        if self.said:
            return []
        right, wrong = metrics["groups/all_right"], metrics["groups/all_wrong"]
        other = metrics["groups/masked"] - right - wrong
        told = [f"step {step}: no live group, so no update: {right:.0f} all right, {wrong:.0f} all wrong"]
        if other:
            told[0] += f", {other:.0f} otherwise alike or with too few scorable samples"
        if self.dead_steps == PATIENCE:
            self.said = True
            told.append(
                f"{PATIENCE} steps in a row without a live group: nothing left to learn. {_advice(right, wrong, other)}"
            )
        return told

    def line(self) -> str:
        """One line for the end of a run."""
        share = 100 * self.saved_tokens / self.of_tokens if self.of_tokens else 0.0
        return (
            f"updates     {self.made:.0f} made, {self.clipped:.0f} clipped, {self.dead:.0f} without a live group, "
            f"{self.refused:.0f} refused; "
            f"{self.saved_tokens:,.0f} of {self.of_tokens:,.0f} tokens ({share:.0f} %) not run"
        )


def _advice(right: float, wrong: float, other: float) -> str:
    if other > right + wrong:
        return "Check the reward: it gives all samples of a prompt the same number, or cannot score them."
    if right >= wrong:
        return "The problems are solved: give harder ones."
    return (
        "The problems are out of reach: give easier ones, more samples per prompt (rollout.samples_per_prompt) or "
        "longer answers (rollout.max_tokens), and check prompt and reward on the stored responses."
    )


class Progress:
    """The live table on a terminal; one line per step where the output is a file or a pipe."""

    def __init__(self, console: Console, steps: int, first: int, *, gap: bool = False):
        self.columns = (*COLUMNS[:-2], GAP, *COLUMNS[-2:]) if gap else COLUMNS
        self.console, self.steps, self.first = console, steps, first
        self.started = time.perf_counter()
        self.rows: list[dict[str, float | str]] = []
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
            self.console.print(self._table())

    def seconds_left(self, done: int) -> float:
        """From the mean time of the steps this process made."""
        return (time.perf_counter() - self.started) / max(done - self.first, 1) * (self.steps - done)

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics after `done` steps."""
        row = {**metrics, "step": done, "speed/seconds_left": _clock(self.seconds_left(done))}
        self.rows.append(row)
        if self.live:
            self.live.update(self._table())
        else:
            if len(self.rows) == 1:
                self.console.print(" ".join(f"{title:>11}" for title, _, _ in self.columns))
            self.console.print(self._line(row), highlight=False)

    def _table(self) -> Table:
        done = self.rows[-1]["step"] if self.rows else self.first
        table = Table(title=f"step {done} of {self.steps}", title_justify="left")
        for title, _, _ in self.columns:
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows[-ROWS_SHOWN:]:
            table.add_row(*(_cell(row, name, form) for _, name, form in self.columns))
        return table

    def _line(self, row: Mapping[str, float | str]) -> str:
        return " ".join(f"{_cell(row, name, form):>11}" for _, name, form in self.columns)


def _cell(row: Mapping[str, float | str], name: str, form: str) -> str:
    return form.format(row[name]) if name in row else "-"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
