"""How the report prints: tables on the console, in Markdown and in LaTeX, short names, durations."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    caption: str
    header: Sequence[str]
    blocks: Sequence[Sequence[Sequence[str]]]
    """lines of cells; a rule is drawn between blocks"""
    notes: Sequence[str] = field(default_factory=tuple)
    """below the table"""


def print_grid(grid: Grid, console: Console) -> None:
    table = Table(title=grid.caption or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in grid.header:
        table.add_column(name.replace("[", "\\["), overflow="fold", no_wrap=name == "Run")  # an id is copied whole
    for block in grid.blocks:
        for line in block:
            table.add_row(*(cell.replace("[", "\\[") for cell in line))
        table.add_section()
    console.print(table)
    for note in grid.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)


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


TEXTS = ("Model", "Method", "Setting")
"""columns of words"""


def latex(grid: Grid) -> str:
    """A floating table; it wants the package booktabs."""

    def row(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    blocks = ("\n".join(map(row, block)) for block in grid.blocks)
    caption = row([". ".join([grid.caption, *(note.removesuffix(".") for note in grid.notes)])]).removesuffix(r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{''.join('l' if name in TEXTS else 'r' for name in grid.header)}}}",
            r"\toprule",
            row(grid.header),
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{caption}}}",
            r"\end{table}",
            "",
        ]
    )


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str, console: Console) -> None:
    print_grid(Grid(caption, header, [lines]), console)


def short(model: str) -> str:
    """A model folder's or hub id's last part, and the part before where that alone says little (".../step-100")."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:])


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
