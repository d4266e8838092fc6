"""Runs that start from other runs' weights: which parents a sweep has to train for them, in which order, and when their
weights can go.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from pathlib import Path

from rwclib import archive, weights
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, DivergedError, RwcError


def finished(results: Path, config: RunConfig, keep: Container[str] = ()) -> bool:
    """Whether the run is in the archive, undamaged, and its weights are there if its hash is among those to `keep`."""
    try:
        there = archive.is_finished(results, config) and archive.read(results, config)
    except ArchiveError:
        return False
    if not there:
        return False
    return config.hash not in keep or there.record["status"] != "done" or weights.path(results, config.hash).exists()


def diverged(results: Path, config: RunConfig) -> bool:
    """Whether the run is in the archive, as one that diverged."""
    return finished(results, config) and archive.read(results, config).record["status"] == "diverged"


def generations(configs: Collection[RunConfig]) -> list[list[RunConfig]]:
    """The runs whose parents are not among them, then those whose parents are among these, and so on."""
    found, rest = [], list(configs)
    while rest:
        hashes = {config.hash for config in rest}
        found.append([config for config in rest if config.parent not in hashes])
        rest = [config for config in rest if config.parent in hashes]
    return found


def to_train(
    missing: Collection[RunConfig],
    known: Mapping[str, RunConfig],
    results: Path,
    failed: Mapping[str, str],
    keep: set[str],
) -> tuple[list[RunConfig], dict[RunConfig, RwcError]]:
    """What has to be trained so that the missing runs can be: they, and parents whose weights are gone.

    Args:
        missing: runs that are not finished.
        known: all runs of the sweep, by hash.
        results: the archive's folder.
        failed: messages, by name, of runs that cannot be trained.
        keep: hashes of the runs whose weights are needed; grows by those of parents' parents.

    Returns:
        The runs, and for each missing one whose parent cannot be had the reason.
    """
    chosen, lost = dict.fromkeys(missing), {}

    def trouble(parent: str) -> RwcError | None:
        """Why the parent's weights will not be there; None if they will."""
        if parent not in keep or weights.path(results, parent).exists() or known.get(parent) in chosen:
            return None
        if parent not in known:
            return RwcError(
                f"its parent {parent} is not among the runs and its weights are not kept; add the parent to the runs"
            )
        config = known[parent]
        if config.name in failed or config in lost:
            return RwcError(f"its parent {config.name} is not there: {failed.get(config.name) or lost[config]}")
        if diverged(results, config):
            return DivergedError(f"its parent {config.name} diverged")
        if config.parent:
            keep.add(config.parent)
            problem = trouble(config.parent)
            if problem:
                return type(problem)(f"its parent {config.name} is not there: {problem}")
        chosen[config] = None
        return None

    for config in (config for generation in generations(missing) for config in generation):
        problem = trouble(config.parent) if config.parent else None
        if problem:
            lost[config] = problem
            del chosen[config]
    return list(chosen), lost


def lend(results: Path, children: Collection[RunConfig]) -> None:
    """Give every unfinished child its own link to its parent's weights, before another sweep may drop them."""
    for child in children:
        if not archive.is_finished(results, child):
            weights.lend(results, child)


def drop_weights(configs: Collection[RunConfig], results: Path, unfinished: Container[str]) -> None:
    """Delete the final weights that none of the runs needs any more, `unfinished` being names; a run in progress has its own
    link to its parent's.
    """
    needed = {config.parent for config in configs if config.name in unfinished}
    for parent in {config.parent for config in configs if config.parent} - needed:
        weights.path(results, parent).unlink(missing_ok=True)
