"""What a person sees of the demo: a live table with a progress bar, and a summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ringlog.demo.report import Report
from ringlog.text import shown


class View:
    """The live view; with `quiet` nothing is drawn and only notes go to stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=quiet)
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), console=self.console,
        )  # fmt: skip
        self._task = self._progress.add_task("starting", total=None)
        self._live: Live | None = None

    def __enter__(self) -> View:
        if not self._quiet:
            self._live = Live(self._drawn({}), console=self.console, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Lines that stay, as they are: a terminal may wrap them, but they can be copied."""
        text = "\n".join(map(shown, text.split("\n")))
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, what: str) -> None:
        """The next part of the work, without figures and of unknown length until its first `update`."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=None)
        if self._live is not None:
            self._live.update(self._drawn({}))

    def update(self, done: float, figures: dict[str, Any]) -> None:
        """`done` from 0 to 1, and the figures by name."""
        self._progress.update(self._task, total=1.0, completed=done)
        if self._live is not None:
            self._live.update(self._drawn(figures))

    def _drawn(self, figures: dict[str, Any]) -> Group:
        table = Table(expand=False)
        for name in figures:
            table.add_column(name, justify="right", min_width=10)
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in figures.values()))
        return Group(table, self._progress) if figures else Group(self._progress)

    def summarise(self, report: Report, reading: str) -> None:
        """The last word: figures, the verdict, and how to read the data."""
        table = Table(title=f"{report.market}, {report.producers} executors, {report.ring} ring", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in report.figures():
            table.add_row(name, value)
        self.console.print(table)
        if report.is_exact:
            self.console.print("[green]every accepted record is in QuestDB exactly once[/green]")
        elif report.stored is None:
            self.console.print("[red]NOT verified: nobody could say what QuestDB holds[/red]")
        else:
            self.console.print("[red]NOT exactly once: see lost, duplicated and foreign above[/red]")
        if report.error:
            self.note(f"failed: {report.error}")
        if report.stored is not None:
            self.note(reading)
        if report.session is not None:
            self.note("\n".join(report.session.lines()))
