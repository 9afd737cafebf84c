"""Figures of training: a run's curves, and one figure per metric with a line per method."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display, no global state, safe in threads
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LegendLocType
from PIL import Image  # matplotlib needs it too

from evals.console import plural
from evals.groups import grouped
from evals.outputs import replacing
from evals.report.arms import Comparison, Course
from evals.report.parts import arm_of, line_names, metrics_of, order
from evals.report.timeline import Timeline, timeline
from evals.store import RunRow, Store

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C564B", "#7F7F7F", "#BCBD22", "#17BECF")
"""of methods, by their order (Okabe and Ito first: safe for the colour-blind)"""
INK, FAINT = "#222222", "#666666"


def curves(store: Store, run_id: str, out: Path) -> Path:
    """Draw a run's reward, response tokens, entropy, live groups and clipped updates into one PNG. Returns `out`."""
    run = store.find_run(run_id)
    names = ["reward/mean", "tokens/response_mean", "tokens/right_mean", "tokens/wrong_mean", "entropy"]
    table = _series(store, run.id, [*names, "groups/live", "clip/clipped_updates", "eval/pass1"])
    (colour,) = line_colours({arm_of(run): run}).values()
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    (reward, tokens), (entropy, groups) = figure.subplots(2, 2)
    _line(reward, table.get("reward/mean"), "training", colour)
    if (held_out := table.get("eval/pass1")) is not None:
        reward.plot(held_out.index, held_out, "D", color=INK, mfc=colour, ms=8, label="held-out Pass@1", zorder=4)
    _line(tokens, table.get("tokens/response_mean"), "all", colour)
    _line(tokens, table.get("tokens/right_mean"), "right answers", "#009E73", thin=True)
    _line(tokens, table.get("tokens/wrong_mean"), "wrong answers", "#D55E00", thin=True)
    _line(entropy, table.get("entropy"), None, colour)
    _line(groups, table.get("groups/live"), "live groups", colour)
    if (clipped := table.get("clip/clipped_updates")) is not None:
        groups.vlines(clipped.index, 0, clipped, color=INK, alpha=0.35, lw=1.6, label="clipped updates")
    _finish(reward, "Reward", "mean reward", unit=True)
    _finish(tokens, "Response length", "tokens")
    _finish(entropy, "Entropy", "nats per token")
    _finish(groups, "Groups with a signal, updates clipped", "count per step", legend="center left")
    groups.set_ylim(bottom=0)
    parts = dict.fromkeys((run.name, run.method, Path(run.model).name, f"seed {run.seed}"))
    figure.suptitle(" · ".join(filter(None, parts)), fontsize=14, fontweight="bold", color=INK)
    figure.supxlabel("step   (faint: as measured; bold: running mean)", fontsize=9, color=FAINT)
    return _save(figure, out)


def figures(store: Store, out: Path) -> list[Path]:
    """Draw each metric with a figure (`metrics_of`) for each task (recipe and model), and a step's timeline.

    One line per method and variant: the mean over its seeds, over the steps that all reached, in a band from the lowest
    to the highest seed. Unfinished runs are drawn only if no run of their line is done. Returns the PNGs.
    """
    logged = (run for run in store.runs("train") if run.last_step is not None)
    tasks = grouped(logged, lambda run: (run.name, run.model))
    paths = []
    for (name, model), runs in tasks.items():
        words = "-".join(dict.fromkeys(part for part in (name, Path(model).name) if part))
        task = "-" + re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.").lower() if len(tasks) > 1 else ""
        lines = line_names(runs)
        colours = line_colours({lines[run.id]: run for run in runs})
        drawn = {name: told for name, told in metrics_of(runs).items() if told[3]}
        tables = {run.id: _series(store, run.id, drawn) for run in runs}
        for metric, (what, unit, _, figure_name) in drawn.items():
            figure = Figure(figsize=(7.2, 4.4), layout="constrained")
            axes = figure.subplots()
            most = 0
            for method, colour in colours.items():
                seeds = [tables[run.id] for run in _finished([run for run in runs if lines[run.id] == method])]
                _band(axes, [t[metric] for t in seeds if metric in t], method, colour)
                most = max(most, len(seeds))
            if not axes.lines:
                continue
            _finish(
                axes,
                name if Path(model).name in ("", name) else f"{name}, {Path(model).name}",
                f"{what}, {unit}",
                unit=metric == "reward/mean",
            )
            caption = "mean over seeds, band from lowest to highest; running mean" if most > 1 else "running mean"
            figure.supxlabel(f"step   ({caption})", fontsize=8.5, color=FAINT)
            paths.append(_save(figure, _free(out, f"{figure_name}{task}", paths)))
        last = max(_finished(runs), key=lambda run: run.started)
        if found := timeline(store, last.id):
            drawing = _timeline(found, f"{lines[last.id]}, seed {last.seed}")
            paths.append(_save(drawing, _free(out, f"timeline{task}", paths)))
    return paths


def _timeline(found: Timeline, title: str) -> Figure:
    """A row for each rank, its phases as bars; below them what went on beside them."""
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(found.ranks)), layout="constrained")
    axes = figure.subplots()
    for number, bars in enumerate(found.ranks):
        for bar in bars:
            span = [(bar.start, bar.end - bar.start)]
            axes.broken_barh(span, (number - 0.4 + 0.5 * bar.lane, 0.5 - 0.2 * bar.lane), color=bar.colour)
    axes.set_yticks(range(len(found.ranks)), [f"rank {number}" for number in range(len(found.ranks))])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the step began", color=FAINT)
    axes.set_title(f"{title}: step {found.step}", loc="left", fontsize=11.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    names = [Patch(color=colour, label=phase) for phase, colour in found.phases]
    figure.legend(handles=names, loc="outside lower center", ncols=len(names), frameon=False, labelcolor=INK)
    return figure


def arm_figures(found: Comparison, out: Path) -> list[Path]:
    """Draw the arms of a comparison: presets in one figure, scopes of the clip in another. Returns the PNGs.

    Panels: the metrics that have a figure, and held-out accuracy against response length. Lines are means over seeds,
    bands go from the lowest to the highest seed.
    """
    scopes = [arm for arm in found.arms if " " in arm]
    pictures = {"presets": [arm for arm in found.arms if " " not in arm]}
    if scopes:
        pictures["scopes"] = [arm for arm in found.arms if arm in (found.baseline, "agpo", *scopes)]
    paths = [(out / f"{stem}.png", arms) for stem, arms in pictures.items() if arms]  # all may be varied
    return [_save(_arms(found, arms), path, dpi=100, colours=128) for path, arms in paths]


def _arms(found: Comparison, arms: Sequence[str]) -> Figure:
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    by_arm = {arm: [course for course in found.courses if course.arm == arm] for arm in arms}
    colours = line_colours({arm: courses[0].run for arm, courses in by_arm.items()})
    drawn = [(name, told) for name, told in found.metrics.items() if told[3] and name in found.courses[0].series]
    for axes, (metric, (title, unit, *_)) in zip(panels, drawn, strict=False):
        for arm, courses in by_arm.items():
            seeds = [pd.Series(c.series[metric], index=range(1, len(c.series[metric]) + 1)) for c in courses]
            _band(axes, [s.dropna() for s in seeds], arm, colours[arm])
        _finish(axes, title, unit, unit=metric == "reward/mean", legend="none")
        axes.set_xlabel("step", color=FAINT, fontsize=9)
    last = figure.axes[5]
    for arm, courses in by_arm.items():
        _path(last, courses, arm, colours[arm])
    _finish(last, "Held-out accuracy against length", "Pass@1, %", legend="none")
    last.set_xlabel("response tokens", color=FAINT, fontsize=9)
    figure.suptitle(found.name, fontsize=14, fontweight="bold", color=INK, x=0.01, ha="left")
    lines = {line.get_label(): line for axes in figure.axes[:5] for line in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=list(lines.values()), loc="outside upper right", ncols=3, frameon=False, labelcolor=INK)
    seeds = max(len(courses) for courses in by_arm.values()) > 1
    caption = "mean over seeds, band from the lowest to the highest; " * seeds + "running mean over steps. "
    caption += "Last panel: from ●" + ", thin: seeds" * seeds
    figure.supxlabel(caption, fontsize=9, color=FAINT)
    return figure


def _path(axes: Axes, courses: Sequence[Course], arm: str, colour: str) -> None:
    """Pass@1 against response tokens from evaluation to evaluation."""
    paths = [np.array([course.tokens.mean(1), 100 * course.pass1.mean(1)]) for course in courses]
    for x, y in paths:
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.3)
    common = min(path.shape[1] for path in paths)
    x, y = np.mean([path[:, :common] for path in paths], axis=0)
    axes.plot(x, y, color=colour, lw=2.2, marker=".", label=arm)
    axes.plot(x[:1], y[:1], "o", color=colour, ms=9)


def _series(store: Store, run_id: str, names: Iterable[str]) -> dict[str, pd.Series]:
    """Metric name -> its finite values by step."""
    points: dict[str, dict[int, float]] = {}
    for step, name, value in store.metrics(run_id, names):
        if math.isfinite(value):
            points.setdefault(name, {})[step] = value
    return {name: pd.Series(values) for name, values in points.items()}


def _smooth(series: pd.Series) -> pd.Series:
    """A centred running mean over about a twentieth of the run."""
    window = len(series) // 40 * 2 + 1
    return pd.Series(series.rolling(window, center=True, min_periods=1).mean())


def _line(axes: Axes, series: pd.Series | None, label: str | None, colour: str, thin: bool = False) -> None:
    if series is None:
        return
    smooth = _smooth(series)
    if not thin:
        axes.plot(series.index, series, color=colour, alpha=0.25, lw=1)
    marker = "o" if len(series) == 1 else None
    axes.plot(smooth.index, smooth, color=colour, lw=1.3 if thin else 2.2, label=label, marker=marker)


def _band(axes: Axes, seeds: list[pd.Series], method: str, colour: str) -> None:
    table = pd.concat([_smooth(s) for s in seeds], axis=1).dropna() if seeds else pd.DataFrame()
    if table.empty:  # nothing logged, or the seeds have no step in common
        return
    label = f"{method} ({plural(len(seeds), 'seed')})"
    marker = "o" if len(table) == 1 else None
    axes.plot(table.index, table.mean(axis=1), color=colour, lw=2.2, label=label, marker=marker)
    if len(seeds) > 1:
        axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.18, lw=0)


def _finished(runs: Sequence[RunRow]) -> Sequence[RunRow]:
    return [run for run in runs if run.status == "done"] or runs


def _finish(
    axes: Axes, title: str, ylabel: str, unit: bool = False, legend: LegendLocType | Literal["none"] = "best"
) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.set_ylabel(ylabel, color=FAINT)
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    axes.tick_params(colors=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if unit:
        axes.set_ylim(-0.02, 1.02)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    elif legend != "none" and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc=legend)


def line_colours(lines: Mapping[str, RunRow]) -> dict[str, str]:
    """A colour for each line: a plain method's own, else one that no other line has."""
    plain = {order(run): line for line, run in reversed(list(lines.items())) if " " not in line}
    found = {line: PALETTE[at] for at, line in plain.items() if at < len(PALETTE)}
    spare = cycle([colour for colour in PALETTE if colour not in found.values()] or PALETTE)
    return {line: found.get(line) or next(spare) for line in lines}


def _free(out: Path, stem: str, taken: Sequence[Path]) -> Path:
    """A PNG in `out`, numbered if an earlier task of this call has the same name."""
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.png" for number in count(1))
    return next(out / name for name in names if out / name not in taken)


def _save(figure: Figure, out: Path, dpi: int = 150, colours: int = 0) -> Path:
    """Write a PNG, whole or not at all. colours: at most these, for size; 0: all."""
    with replacing(out) as path:
        figure.savefig(path, format="png", dpi=dpi, facecolor="white")
        if colours:
            with Image.open(path) as image:
                few = image.convert("RGB").quantize(colours)
            few.save(path, format="png", optimize=True)
    return out
