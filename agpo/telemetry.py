"""A step's metrics, the lines that show them, and advice where the numbers call for it."""

import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from agpo.batch import Group, MiniBatch, plain_tokens
from agpo.policy import Update
from evals.console import LINE_SECONDS
from evals.grading import FAILED

COLUMNS = (
    # title, metric, format, width, and which go first where the console is narrow
    ("step", "step", "{:.0f}", 5, 0),
    ("reward", "reward/mean", "{:.3f}", 6, 0),
    ("live", "groups/live", "{:.0f}", 4, 0),
    ("tokens", "tokens/response_mean", "{:.1f}", 7, 1),
    ("right", "tokens/right_mean", "{:.1f}", 7, 5),
    ("wrong", "tokens/wrong_mean", "{:.1f}", 7, 5),
    ("cut", "tokens/truncated", "{:.0%}", 4, 2),
    ("entropy", "entropy", "{:.3f}", 7, 4),
    ("loss", "loss/raw", "{:+.4f}", 7, 3),
    ("clipped", "clip/clipped_updates", "{:.0f}", 7, 1),
    ("ties", "clip/ties", "{:.0f}", 4, 2),
    ("grad", "grad_norm", "{:.2f}", 6, 3),
    ("gap", "mismatch/gap_mean", "{:.1e}", 7, 4),
    ("tokens/s", "speed/tokens_per_second", "{:.0f}", 8, 4),
    ("left", "speed/seconds_left", "{}", 7, 1),
)
QUIET_SECONDS = 0.8
"""without a terminal: how long a step may take before a line says what it is doing"""
HEAD_EVERY = 20
"""lines, on a terminal"""
METRICS = (  # for reports: name, title, unit, what it is, name of its figure
    ("reward/mean", "Reward", "mean reward", "mean of the step's samples", "reward"),
    ("tokens/response_mean", "Response length", "tokens", "tokens, mean of the step's samples", "response_tokens"),
    ("entropy", "Entropy", "nats per token", "nats per token", "entropy"),
    ("groups/live", "Live groups", "per step", "groups with a signal, of a step's", "live_groups"),
    ("clip/clipped_updates", "Clipped updates", "per step", "", "clipped"),
    ("clip/rate", "Clip rate", "share of updates", "share of the step's updates that the clip dropped", ""),
    ("eval/pass1", "Held-out Pass@1", "share", "evaluations during training", ""),
)
FACTS = (  # of a run, for `evals.report arms`: title, how it is computed, metric or axis
    ("updates made", "sum", "updates/made"),
    ("clipped", "sum", "clip/clipped_updates"),
    ("no live group", "sum", "updates/dead"),
    ("entropy, first", "first", "entropy"),
    ("entropy, last", "last", "entropy"),
    ("live groups, last", "last", "groups/live"),
    ("reward step to step", "noise", "reward/mean"),
    ("tokens generated", "total", "tokens"),
    ("tokens through the model", "total", "passes"),
    ("CPU seconds", "total", "cpu"),
)
PROGRAMS: tuple[str, ...] = ("AC", "WA", "RE", "TLE", "CE", "SE")
"""the sandbox's verdicts that are always counted in a step with programs; others only if they occur"""


def axes(samples_per_prompt: int) -> list[tuple[str, str, list[tuple[float | str, ...]]]]:
    """The axes along which runs are compared: (axis, title, terms), see `evals.store.RunRow.about`.

    A token through the model counts once when generated and three times in an update (a backward pass costs about two
    forward passes).
    """
    generated: list[tuple[float | str, ...]] = [
        (samples_per_prompt, "groups/live", "tokens/response_mean"),
        (samples_per_prompt, "groups/masked", "tokens/response_mean"),
    ]
    return [
        ("updates", "optimizer updates made", [(1, "updates/made")]),
        ("tokens", "tokens generated", generated),
        ("passes", "tokens through the model", [*generated, (3, "saved/of_tokens"), (-3, "saved/tokens")]),
        ("cpu", "CPU seconds", [(1, "speed/cpu_seconds")]),
    ]


def step_metrics(
    groups: Sequence[Group], live_G: Sequence[bool], plan: Sequence[MiniBatch], updates: Sequence[Update]
) -> dict[str, float]:
    """The metrics of one step, over every sampled group. A mean over nothing is left out, not 0.

    `entropy` is minus the mean log-probability of all sampled tokens, masked and clipped groups included: an unbiased
    estimate of the policy's entropy at the sampling temperature, in nats.
    """
    samples = [sample for group in groups for sample in group.samples]
    dead = [{s.verdict.outcome for s in group.samples} for group, live in zip(groups, live_G, strict=True) if not live]
    rewards = [s.reward for s in samples if s.reward is not None]
    logps = [x for s in samples for x in s.completion.logprobs or ()]
    norms = [u.grad_norm for u in updates if u.grad_norm is not None and not u.refused]
    once = {m.groups: m for m in plan}  # the plan has a mini-batch again for every pass over it
    live_tokens = sum(m.live_tokens for m in once.values())
    lengths = [len(s.completion.token_ids) for s in samples]
    lengths_of: dict[str, list[int]] = {}  # by outcome
    for s, length in zip(samples, lengths, strict=True):
        lengths_of.setdefault(s.verdict.outcome, []).append(length)
    run_tokens = sum(u.seen.tokens for u in updates)
    parts: dict[str, list[float | None]] = {}
    for s in samples:
        for name, value in s.verdict.parts.items():
            parts.setdefault(name, []).append(value)
    judged = [str(s.verdict.meta["real"]) for s in samples if "real" in s.verdict.meta]  # programs, by the sandbox
    programs = {f"code/{verdict}": float(judged.count(verdict)) for verdict in (*PROGRAMS, *judged)} if judged else {}
    whole = plain_tokens(groups) * len(plan) // max(len(once), 1)
    clipped = sum(u.decision.clipped and bool(m.rows) for u, m in zip(updates, plan, strict=True))
    with_signal = clipped + sum(u.stepped or u.refused for u in updates)
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "tokens/response_mean": _mean(lengths),
        "tokens/right_mean": _mean(lengths_of.get("right", [])),
        "tokens/wrong_mean": _mean([*lengths_of.get("wrong", []), *lengths_of.get("no_answer", [])]),
        "tokens/truncated": _mean([float(s.completion.finish_reason == "length") for s in samples]),
        "tokens/min": min(lengths, default=None),
        "tokens/max": max(lengths, default=None),
        "samples/failed": float(sum(s.verdict.outcome in FAILED for s in samples)),
        "samples/unscored": float(sum(s.reward is None for s in samples)),
        "samples/no_answer": float(sum(s.verdict.outcome == "no_answer" for s in samples)),
        "groups/live": float(sum(live_G)),
        "groups/masked": float(len(groups) - sum(live_G)),
        "groups/all_right": float(sum(outcomes == {"right"} for outcomes in dead)),
        "groups/all_wrong": float(sum(outcomes <= {"wrong", "no_answer"} for outcomes in dead)),
        "groups/live_token_share": live_tokens / sum(lengths) if sum(lengths) else None,
        "entropy": -sum(logps) / len(logps) if logps else None,
        "loss/raw": _mean([u.decision.value for u, m in zip(updates, plan, strict=True) if m.rows]),
        "loss/value": _mean([u.decision.loss for u, m in zip(updates, plan, strict=True) if m.rows]),
        "clip/clipped_updates": float(clipped),
        "clip/rate": clipped / with_signal if with_signal else None,
        "clip/ties": float(sum(u.decision.tie and bool(m.rows) for u, m in zip(updates, plan, strict=True))),
        "updates/made": float(sum(u.stepped for u in updates)),
        "updates/dead": float(sum(not m.live_groups for m in plan)),
        "updates/refused": float(sum(u.refused for u in updates)),
        **{
            name: _mean([u.seen.means.get(name) for u in updates])
            for name in ("ratio/deviation", "ratio/clipped", "kl")
        },
        "grad_norm": _mean(norms),
        "saved/tokens": float(whole - run_tokens),
        "saved/of_tokens": float(whole),
        "saved/share": 1 - run_tokens / whole if whole else None,
        **{f"reward/{name}": _mean(values) for name, values in parts.items()},
        **programs,
    }
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


DEAD = 5
"""steps in a row without a live group until the run says that nothing is left to learn"""


@dataclass
class Tally:
    """Sums over a run's steps. A resumed run rebuilds them from the store, so that it counts and says the same."""

    patience: int = 10
    """steps in a row without an update until the run says why"""
    total: Counter[str] = field(default_factory=Counter)
    """sums of the steps' metrics"""
    steps: int = 0
    free: int = 0
    """steps that did not move the weights"""
    said: bool = False
    """why there has been no update since the last one"""
    idle: list[Mapping[str, float]] = field(default_factory=list)
    """the metrics of the steps since the last update"""

    @classmethod
    def of(cls, metrics: Iterable[tuple[int, str, float]], patience: int = 10) -> "Tally":
        """From the rows of a run in the store."""
        steps: dict[int, dict[str, float]] = {}
        for step, name, value in metrics:
            steps.setdefault(step, {})[name] = value
        tally = cls(patience)
        for step in sorted(steps):
            if "groups/live" in steps[step]:
                tally.add(step, steps[step])
        return tally

    def add(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Count a step. Returns what there is to say about it: nothing more once it was said why there is no update."""
        self.total.update(metrics)
        self.steps, self.free = self.steps + 1, self.free + (not metrics["updates/made"])
        if metrics["updates/made"]:
            self.idle, self.said = [], False
            return []
        self.idle.append(metrics)
        if self.said:
            return []
        told = []
        if not metrics["groups/live"]:
            right, wrong = metrics["groups/all_right"], metrics["groups/all_wrong"]
            why = f"no live group, so no update: {right:.0f} all right, {wrong:.0f} all wrong"
            if "reward/mean" not in metrics:
                failed, none = metrics["samples/failed"], metrics["samples/unscored"] - metrics["samples/failed"]
                why = f"no update, since no sample has a reward: {none:.0f} None, {failed:.0f} failed"
            elif other := metrics["groups/masked"] - right - wrong:
                why += f", {other:.0f} otherwise equal or with too few scorable samples"
            told.append(f"step {step}: {why}")
        dead = sum(not one["groups/live"] for one in self.idle[-DEAD:])
        self.said = dead == DEAD or len(self.idle) >= self.patience
        return told + ([self._why_idle(step)] if self.said else [])

    def _why_idle(self, step: int) -> str:
        """Why there was no update for a while, and what to try."""
        total: Counter[str] = sum(map(Counter, self.idle), Counter())  # drops what is not above 0: sums of counts
        right, wrong, masked = (total[f"groups/{name}"] for name in ("all_right", "all_wrong", "masked"))
        cut, groups = total["tokens/truncated"] / len(self.idle), total["groups/live"] + masked
        tries = []
        if cut > 0.5:
            tries.append("raise rollout.max_tokens: truncated answers have equal lengths, which makes L a tie")
        if masked > groups / 2:
            tries.append(
                "another reward: it gives all samples of a prompt the same score, or cannot score them"
                if masked > 2 * (right + wrong)
                else "harder problems: these are solved"
                if right >= wrong
                else "easier problems, more samples per prompt (rollout.samples_per_prompt) or longer answers "
                "(rollout.max_tokens), and check prompt and reward on the stored responses"
            )
        if total["clip/clipped_updates"] > total["clip/ties"]:
            tries.append(
                "objective.clip_scope=group or sequence, or objective=agpo_no_clip: right answers are the longer ones, "
                "and the clip drops updates that lengthen"
            )
        return (
            f"step {step}: no update in {len(self.idle)} steps"
            f"{'' if total['groups/live'] else ', none with a live group: nothing left to learn'}: "
            f"{total['clip/clipped_updates']:.0f} clipped, "
            f"{total['clip/ties']:.0f} of them ties; {total['updates/dead']:.0f} without a live group "
            f"({masked:.0f} of {groups:.0f} groups dead); {total['updates/refused']:.0f} refused; "
            f"{cut:.0%} of the answers truncated. Try: {'; '.join(tries) or 'another objective or reward'}."
        )

    def line(self) -> str:
        """The summary at the end of a run."""
        total = self.total
        whole, early, wasted = (total[x] for x in ("saved/of_tokens", "speed/saved_seconds", "speed/wasted_seconds"))
        share = 100 * total["saved/tokens"] / whole if whole else 0.0
        return (
            f"updates     {total['updates/made']:.0f} made, {total['clip/clipped_updates']:.0f} clipped, "
            f"{total['updates/dead']:.0f} without a live group, {total['updates/refused']:.0f} refused; "
            f"{total['saved/tokens']:,.0f} of {whole:,.0f} tokens ({share:.0f} %) not run"
        ) + bool(early or wasted) * (
            f"\noverlap     {self.free} of {self.steps} steps moved nothing; {early:.1f} s of sampling begun "
            f"before its step, {wasted:.1f} s discarded"
        )


@dataclass
class Watch:
    """Shows and times the phases of a step."""

    doing: Callable[[str], None] = lambda text: None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    began: float = field(default_factory=time.perf_counter)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    """(phase, from, to), in seconds since the step began"""

    def span(self, name: str, since: float) -> None:
        """Record a phase from `since` (perf_counter) until now."""
        self.spans.append((name, since - self.began, time.perf_counter() - self.began))

    def tell(self, phase: str, how_far: str) -> None:
        self.doing(f"{phase} {how_far}".rstrip())

    @contextmanager
    def phase(self, name: str, how_far: str = "") -> Iterator[None]:
        started = time.perf_counter()
        self.tell(name, how_far)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.span(name, started)


SHORTEST_SPAN = 1e-3
"""seconds; shorter spans are not in the timeline"""


def timeline(ranks: Sequence[Sequence[tuple[str, float, float]]]) -> dict[str, float]:
    """The spans of every rank as metrics, which `evals.report` draws."""
    found: dict[str, float] = {}
    for rank, spans in enumerate(ranks):
        for number, (phase, start, end) in enumerate(spans):
            if end - start >= SHORTEST_SPAN:
                bar = f"speed/timeline/{rank}/{number}.{phase}"
                found |= {f"{bar}/from": max(start, 0.0), f"{bar}/to": end}
    return found


class Progress:
    """A line per step, and what the current step is doing: on a terminal a live line; in a file or pipe a line when a
    step takes over a second, and then every half minute."""

    def __init__(self, console: Console, steps: int, first: int, *, gap: bool = False):
        shown = [column for column in COLUMNS if gap or column[0] != "gap"]
        while sum(width + 2 for *_, width, _ in shown) - 2 > console.width and len(shown) > 3:
            shown.remove(max(shown, key=lambda column: column[4]))
        self.columns = shown
        self.console, self.steps, self.first = console, steps, first
        self.started = self.since = time.perf_counter()
        self.said, self.now, self.lines, self.done = 0.0, "", 0, first
        self._over = threading.Event()
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(get_renderable=self._status, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        else:
            threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.live:
            self.live.stop()

    def begin(self, what: str) -> None:
        """A step or an evaluation begins."""
        self.since, self.now = time.perf_counter(), what

    def doing(self, what: str) -> None:
        self.now = what

    def _status(self) -> Text:
        if not self.now:
            return Text()
        step = min(self.done + 1, self.steps)
        return Text(f"step {step} of {self.steps}: {self.now}, {_clock(time.perf_counter() - self.since)}")

    def _tick(self) -> None:
        while not self._over.wait(QUIET_SECONDS / 4):
            now = time.perf_counter()
            quiet = now - self.since > QUIET_SECONDS if self.said < self.since else now - self.said > LINE_SECONDS
            if self.now and quiet:
                self.said = now
                self.console.print(self._status())

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics after `done` steps."""
        step_seconds = (time.perf_counter() - self.started) / max(done - self.first, 1)
        row = {**metrics, "step": done, "speed/seconds_left": _clock(step_seconds * (self.steps - done))}
        self.done, self.now = done, ""
        if self.lines % (HEAD_EVERY if self.live else sys.maxsize) == 0:
            self._print([title for title, *_ in self.columns])
        self.lines += 1
        failed = metrics.get("samples/failed")
        more = f"  {failed:.0f} rewards failed" if failed else ""
        self._print([form.format(row[name]) if name in row else "-" for _, name, form, _, _ in self.columns], more)

    def _print(self, cells: Sequence[str], more: str = "") -> None:
        line = "  ".join(f"{cell:>{column[3]}}" for cell, column in zip(cells, self.columns, strict=True))
        self.console.print(line + more, markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
