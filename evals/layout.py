"""How the report prints: tables on the console or in Markdown, short names, durations."""

from rich import box
from rich.console import Console
from rich.table import Table


def print_table(header: list[str], lines: list[list[str]], caption: str, style: str, console: Console) -> None:
    if style == "md":
        clean = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rule = ["---"] * len(header)
        print("\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *clean]) + f"\n\n{caption}\n")
        return
    table = Table(title=caption or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(cell.replace("[", "\\[") for cell in line))
    console.print(table)


def short(model: str) -> str:
    """A model folder's or hub id's last part, and the part before where that alone says little (".../step-100")."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:])


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
