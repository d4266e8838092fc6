"""What became of the runs of a sweep."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field

from rwclib.errors import DivergedError, OutOfTimeError, RwcError

ATTEMPTS = 3  # of a run whose worker process dies


@dataclass
class Report:
    """What became of every run of a sweep, by run name; messages where there is something to say."""

    already: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # finished by another process, or by one that then died
    diverged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # out of time

    @property
    def ok(self) -> bool:
        """Whether no run failed. Diverged runs are results; runs left over by a time budget go on next time."""
        return not self.failed

    def enter(self, name: str, outcome: bool | Exception) -> None:
        """Note how a run has ended: whether it was trained, or the exception that stopped it."""
        if isinstance(outcome, bool):
            (self.trained if outcome else self.elsewhere).append(name)
        elif isinstance(outcome, OutOfTimeError):
            self.left.append(name)
        elif isinstance(outcome, BrokenExecutor):
            log = f"; {outcome}" if type(outcome) is BrokenExecutor and str(outcome) else ""
            self.failed[name] = f"its worker process died {ATTEMPTS} times (out of memory?){log}"
        else:
            kind = self.diverged if isinstance(outcome, DivergedError) else self.failed
            kind[name] = str(outcome) if isinstance(outcome, RwcError) else f"{type(outcome).__name__}: {outcome}"

    def summary(self) -> str:
        counts = {
            "trained": self.trained, "in the archive already": self.already, "finished by another process": self.elsewhere,
            "diverged": self.diverged, "failed": self.failed, "left for the next call": self.left,
        }  # fmt: skip
        return ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "no runs"

    def problems(self) -> list[str]:
        """One line for each message, with the run or the number of runs that it is about."""
        names: dict[str, list[str]] = {}
        for name, message in (self.failed | self.diverged).items():
            names.setdefault(message, []).append(name)
        return [f"{same[0] if len(same) == 1 else f'{len(same)} runs'}: {message}" for message, same in names.items()]
