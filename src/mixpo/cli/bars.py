"""Live progress bars: in a terminal drawn by rich, in a notebook by tqdm."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mixpo.cli.output import printable


class Bars:
    """One live bar at a time, drawn by rich."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.close()
        self._progress = _WithNote(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._progress.start()
        self._task = self._progress.add_task(title, total=total or None, completed=done, note="")

    def advance(self, count: int, note: str = "") -> None:
        if self._progress is None or self._task is None:
            return
        if note:
            self._progress.update(self._task, advance=count, note=note)
        else:
            self._progress.update(self._task, advance=count)

    def finish(self) -> None:
        if self._progress is not None and self._task is not None:
            task = self._progress.tasks[0]
            self._progress.update(self._task, total=task.total or task.completed)
        self.close()

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar and restore the cursor; also in the middle of a stage."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None


class NotebookBars:
    """One bar at a time below a cell; it stays when it is complete, as those of tqdm do."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """stream: of the bars, by default standard error."""
        self._stream = stream or sys.stderr
        self._bar: Any = None

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(total=total or None, initial=done, desc=printable(title), unit=f" {unit}", file=self._stream, dynamic_ncols=True)

    def advance(self, count: int, note: str = "") -> None:
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(printable(note), refresh=False)
            self._bar.update(count)

    def finish(self) -> None:
        self.close()

    def say(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(printable(text), file=self._stream)

    def close(self) -> None:
        """End the bar; also in the middle of a stage."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class _WithNote(Progress):
    """The bar, with the latest figures on the line below, truncated at the width of the terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", style="dim", no_wrap=True, overflow="ellipsis")
