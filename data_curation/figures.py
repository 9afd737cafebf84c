"""Pictures of a manifest: the funnel and the histograms, as PNG. Drawn from the numbers in the manifest alone."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display, no global state

from data_curation import manifest

BLUE, ORANGE, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#666666"
TITLES = {
    "level": "level",
    "subject": "subject",
    "length": "length of the problem (characters)",
    "solve_rate": "share of right tries",
}


@matplotlib.rc_context({"text.parse_math": False})  # a subject may have a `$`
def draw(content: manifest.Content, folder: Path) -> list[Path]:
    """funnel.png, and NAME.png for every histogram that the manifest has. Equal numbers give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [_save(funnel(content), folder / "funnel.png")]
    for name, histogram in content["histograms"].items():
        title = f"{content['recipe']['name']}: {content['kept']:,} problems"
        made.append(_save(bars(histogram, TITLES[name], title), folder / f"{name}.png"))
    for stage in content["stages"]:
        if asked := stage["facts"].get("right of n"):
            n = stage["facts"]["tries"]
            title = f"{stage['facts']['model']}: right tries of {n}, all problems asked"
            within = stage["facts"]["fractions within the bounds"]
            made.append(_save(bars(asked, f"right of {n} (kept: {within})", title), folder / "solve_rate_all.png"))
    return made


def funnel(content: manifest.Content) -> Figure:
    """Rows left after each stage, and what each dropped, with its most common reasons."""
    lines = [(name, one["out"], _why(one["reasons"])) for name, one in manifest.steps(content)]
    figure = Figure(figsize=(11, 0.6 + 0.55 * len(lines)), layout="constrained")
    axes = figure.subplots()
    top = max([sum(source["out"] for source in content["sources"]), 1])
    for at, (name, left, why) in enumerate(lines):
        axes.barh(at, left, color=ORANGE if name.startswith("read ") else BLUE, height=0.62)
        axes.text(left + top * 0.01, at, f"{left:,}   {why}", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines])
    axes.invert_yaxis()
    axes.set_xlim(0, top * 1.95)
    axes.set_xlabel("rows left")
    _plain(axes)
    return figure


def _why(reasons: Mapping[str, int]) -> str:
    few = list(reasons.items())[:2]
    text = ", ".join(f"{n:,} {reason}" for reason, n in few) + (", ..." if len(reasons) > 2 else "")
    return f"− {text}" if text else ""


def bars(histogram: Mapping[str, int], label: str, title: str) -> Figure:
    figure = Figure(figsize=(max(5.0, 0.28 * len(histogram) + 2), 3.2), layout="constrained")
    axes = figure.subplots()
    names = sorted(histogram, key=_order)
    axes.bar(range(len(names)), [histogram[name] for name in names], color=BLUE, width=0.8)
    longest = max(map(len, names))
    turned = longest > 7
    step = max(1, -(-len(names) * (3 if turned else longest) // 60))  # as many labels as fit
    shown = range(0, len(names), step)
    axes.set_xticks(list(shown), [names[i] for i in shown])
    if turned:
        axes.tick_params("x", rotation=30)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
    axes.set_xlabel(label)
    axes.set_ylabel("problems")
    axes.set_title(title, fontsize=10, color=INK)
    _plain(axes)
    return figure


def _order(name: str) -> tuple[float, str]:
    try:
        return float(name), ""
    except ValueError:
        return float("inf"), name


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=FAINT)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the version of matplotlib is in no byte
    return path
