"""Pictures of a manifest: the funnel and the histograms, as PNG. Drawn from the numbers in the manifest alone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure  # not pyplot: no display, no global state

from data_curation import manifest
from data_curation.stage import Record

BLUE, ORANGE, INK = "#0072B2", "#D55E00", "#222222"
TITLES = {"length": "length of the problem (characters)", "solve_rate": "share of right tries"}
MOST = 60
"""bars of a picture: a column of the data may have any number of values"""
Bar = tuple[str, int, str]
"""name, length, what is written beside it"""


@matplotlib.rc_context({"text.parse_math": False})  # a subject may have a `$`
def draw(content: Record, folder: Path) -> None:
    """funnel.png, and NAME.png for every histogram that the manifest has. Equal numbers give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    funnel = [(name, one["out"], f"{one['out']:,}   {_why(one['reasons'])}") for name, one in manifest.steps(content)]
    bars(funnel, folder / "funnel.png", "rows left", room=1.95)
    for name, histogram in content["histograms"].items():
        title = f"{content['recipe']['name']}: {content['kept']:,} problems"
        bars(_ordered(histogram), folder / f"{name}.png", "problems", TITLES.get(name) or name, title)
    for stage in content["stages"]:
        if asked := stage["facts"].get("right of n"):
            facts = stage["facts"]
            label = f"right of {facts['tries']} (kept: {facts['fractions within the bounds']})"
            title = f"{facts['model']}: right tries of {facts['tries']}, all problems asked"
            bars(_ordered(asked), folder / "solve_rate_all.png", "problems", label, title)


def bars(rows: Sequence[Bar], path: Path, across: str, down: str = "", title: str = "", room: float = 1.1) -> None:
    """One bar per row, the first on top, at most MOST. room: the width of the picture in longest bars."""
    if len(rows) > MOST:
        rows, title = rows[:MOST], f"{title} ({MOST} of {len(rows)} bars)"
    figure = Figure(figsize=(11, 1.0 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    longest = max([length for _, length, _ in rows] + [1])
    for at, (name, length, said) in enumerate(rows):
        axes.barh(at, length, color=ORANGE if name.startswith("read ") else BLUE, height=0.62)
        axes.text(length + longest * 0.01, at, said, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * room)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the version of matplotlib is in no byte


def _why(reasons: dict[str, int]) -> str:
    few = [f"{n:,} {reason}" for reason, n in reasons.items()]
    return "− " + ", ".join(few[:2]) + (", ..." if len(few) > 2 else "") if few else ""


def _ordered(histogram: dict[str, int]) -> list[Bar]:
    """Numbers in their order, then words."""
    order = sorted(histogram, key=lambda name: (float(name), "") if _is_number(name) else (float("inf"), name))
    return [(name, histogram[name], f"{histogram[name]:,}") for name in order]


def _is_number(name: str) -> bool:
    return name.replace(".", "", 1).isdecimal()
