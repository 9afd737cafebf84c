"""How the report prints: tables on the console, in Markdown and in LaTeX, short names, durations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    caption: str
    header: Sequence[str]
    blocks: Sequence[Sequence[Sequence[str]]]
    """lines of cells; a rule is drawn between blocks"""
    notes: Sequence[str] = field(default_factory=tuple)
    """below the table"""


TEXTS = ("task", "metric", "filter", "Model", "Method", "Setting", "Kind", "Name", "Status", "Tags", "Run", "run")
"""columns of words"""


def print_grid(grid: Grid, console: Console) -> None:
    """As a table; where the terminal is too narrow with broken headings, and then line by line. No cell is broken."""
    for broken in (False, True):
        table = _table(grid, broken)
        if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
            console.print(table)
            break
    else:
        _print_records(grid, console)
    for note in grid.notes:
        console.print(note, style="yellow", markup=False)


def _table(grid: Grid, broken: bool) -> Table:
    title = Text(grid.caption, "bold") if grid.caption else None
    near = {"padding": (0, 1, 0, 0) if broken else (0, 1), "show_edge": not broken, "pad_edge": not broken}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **near)  # type: ignore[arg-type]
    for at, name in enumerate(grid.header):
        words = name in TEXTS or at == 0
        heading = Text(re.sub(r" (?!%)", "\n", name) if broken else name)
        table.add_column(heading, no_wrap=True, justify="left" if words else "right")
    for block in grid.blocks:
        for line in block:
            table.add_row(*map(Text, line))
        table.add_section()
    return table


def _print_records(grid: Grid, console: Console) -> None:
    """Where the terminal is too narrow for the columns: line by line, a name and a value on each."""
    if grid.caption:
        console.print(Text(grid.caption, "bold"))
    width = max(map(len, grid.header))
    for line in (line for block in grid.blocks for line in block):
        console.print()
        for name, cell in zip(grid.header, line, strict=True):
            if cell:
                console.print(Text(f"{name:<{width}}  {cell}"), soft_wrap=True)
    console.print()


def markdown(grid: Grid) -> str:
    lines = [grid.header, ["---"] * len(grid.header), *(line for block in grid.blocks for line in block)]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([body, *([grid.caption] if grid.caption else []), *grid.notes]) + "\n"


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
}


def latex(grid: Grid) -> str:
    """A floating table; it wants the package booktabs."""

    def row(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    blocks = "\n\\midrule\n".join("\n".join(map(row, block)) for block in grid.blocks)
    columns = "".join("l" if name in TEXTS else "r" for name in grid.header)
    # LaTeX numbers its tables itself
    name = re.sub(r"^Table \d+: ", "", grid.caption)
    caption = row([". ".join([name, *(note.removesuffix(".") for note in grid.notes)])]).removesuffix(r" \\")
    label = re.sub(r"\W+", "-", name.split(" (")[0]).strip("-").lower()
    return rf"""\begin{{table}}
\centering
\begin{{tabular}}{{{columns}}}
\toprule
{row(grid.header)}
\midrule
{blocks}
\bottomrule
\end{{tabular}}
\caption{{{caption}}}
\label{{tab:{label}}}
\end{{table}}
"""


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str, console: Console) -> None:
    print_grid(Grid(caption, header, [lines]), console)


def short(model: str) -> str:
    """A model folder's or hub id's last part, and the part before where that alone says little (".../step-100"); of a
    served model its address."""
    if "://" in model:
        return model.partition("://")[2]
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:])


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
