"""The errors rwclib raises on purpose: one sentence each, saying what is wrong, what was expected and what to do."""


def one_line(error: object) -> str:
    """An error's text, or any other, as it can stand in a sentence."""
    return " ".join(str(error).split())


class RwcError(Exception):
    """Base of every deliberate error; the command line prints its sentence and exits with `exit_code`."""

    exit_code = 1


class ConfigError(RwcError, ValueError):
    """A setting, name or parameter that cannot be used (bad usage)."""

    exit_code = 2


class DataError(RwcError):
    """A data set that is missing, cannot be fetched, or whose file is not what it should be."""


class ArchiveError(RwcError):
    """A run directory, results folder or exported file that is damaged or cannot be read or written."""


class RunLockedError(RwcError):
    """Another live process is working on this run."""


class DivergedError(RwcError):
    """Training produced a non-finite loss or weight; the run is archived with status `diverged`."""


class OutOfTimeError(RwcError):
    """The time budget ended before the run did; its checkpoint is kept and the next call goes on from there."""


class NotebookError(RwcError):
    """A notebook that cannot be executed as asked."""
