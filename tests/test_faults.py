"""Kills, full disks, lost rights, stepping clocks, frozen workers, races, damage and no memory, in real processes.

After each: no finished run is lost, no wrong number is served (every table equals an undisturbed run's byte for byte), and
the next call completes. `make test` does a few of each, `make test-long` the counts that README's table shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rwclib import RunConfig, archive, training
from rwclib.errors import OutOfTimeError

from . import victims
from .conftest import ROOT, command, contents, rwc
from .victims import Victim

NOBODY = 65534
CONFIGS = [
    RunConfig(model="lenet5", dataset="fashion_mnist_sample", width=8, epochs=3, n_train=128, n_test=50, batch_size=32,
              lr=0.01, snapshot_every=1, seed=seed)
    for seed in range(4)
]  # fmt: skip
FIRST, OLD = CONFIGS[0], CONFIGS[1:3]
PHASES = ["training", "archive writing", "export", "import"]


def numbers(results: Path, config: RunConfig) -> dict[str, bytes]:
    """The bytes of all that a run has measured: everything but its record, which holds times."""
    found = contents(archive.run_dir(results, config))
    del found["run.json"]
    return found


def litter(results: Path) -> list[str]:
    """Files below a results folder that belong to no finished run."""
    places = archive.directories(results)
    files = (path for path in results.rglob("*") if path.is_file())
    return [str(path) for path in files if path.parent not in places or path.name.endswith(".part")]


@dataclasses.dataclass
class World:
    """What undisturbed processes have made: four runs, one of them also just before its end, and their tar."""

    results: Path
    brink: Path
    tar: Path
    numbers: dict[RunConfig, dict[str, bytes]]
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    operations: dict[str, int] = dataclasses.field(default_factory=dict)

    def check(self, results: Path, finished: list[RunConfig]) -> None:
        """No finished run is lost, and none of those in the archive has a wrong number."""
        assert archive.verify(results) == []
        assert all(archive.is_finished(results, config) for config in finished)
        for place in archive.directories(results):
            config = archive.read_dir(place).config
            assert numbers(results, config) == self.numbers[config]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    victims.start_server()
    folder = tmp_path_factory.mktemp("world")
    for config in CONFIGS:
        victims.train(config, folder / "results")
    old = [archive.run_dir(folder / "results", config) for config in OLD]
    for place in old:
        shutil.copytree(place, folder / "brink" / place.relative_to(folder / "results"))
    for _ in range(3 * (4 + 1)):
        with pytest.raises(OutOfTimeError):
            training.run(FIRST, results=folder / "brink", threads=1, deadline=0.0)
    assert archive.export(folder / "results", folder / "runs.tar.gz") == len(CONFIGS)
    made = {config: numbers(folder / "results", config) for config in CONFIGS}
    assert any(name.endswith(".npy") for name in made[FIRST])
    found = World(folder / "results", folder / "brink", folder / "runs.tar.gz", made)
    for phase in PHASES:  # how long each takes, and how many file operations
        scene = Scene(phase, found, tmp_path_factory.mktemp("measured"))
        victim = scene.victim().end()
        assert victim.code == 0, victim.answer
        found.seconds[phase], found.operations[phase] = victim.seconds, victim.operations
        scene.check_whole()
    return found


class Scene:
    """A folder in which a process is about to train a run, write it into the archive, export or import."""

    def __init__(self, phase: str, world: World, folder: Path) -> None:
        self.phase, self.world, self.folder, self.count = phase, world, folder, itertools.count()
        self.results, self.file = folder / "results", folder / "out" / "runs.tar.gz"
        self.finished = OLD
        if phase == "archive writing":
            shutil.copytree(world.brink, self.results)
        else:
            wanted = CONFIGS if phase == "export" else OLD
            for config in wanted:
                place = archive.run_dir(world.results, config)
                shutil.copytree(place, self.results / place.relative_to(world.results))
            self.finished = wanted
        if phase == "export":
            archive.export(self.results, self.file, lambda config: config in OLD)
            self.before = self.file.read_bytes()

    def victim(self, **hurt: object) -> Victim:
        """The process at work."""
        task = {
            "export": (archive.export, self.results, self.file),
            "import": (archive.import_, self.world.tar, self.results),
        }.get(self.phase, (victims.train, FIRST, self.results))
        return Victim(self.folder / f"log{next(self.count)}", *task, **hurt)

    def check(self) -> None:
        """Nothing that was there is lost or wrong."""
        self.world.check(self.results, self.finished)
        if self.phase == "export" and self.file.read_bytes() != self.before:
            self._check_tar()

    def _check_tar(self) -> None:
        there = self.folder / f"imported{next(self.count)}"
        assert archive.import_(self.file, there) == (len(CONFIGS), 0)
        assert contents(there) == contents(self.world.results)

    def check_next(self, **rights: object) -> None:
        """The next call completes, and all is as if nothing had happened."""
        victim = self.victim(**rights).end()
        assert victim.code == 0, victim.answer
        self.check_whole()

    def check_whole(self) -> None:
        self.world.check(self.results, CONFIGS if self.phase in ("import", "export") else [FIRST, *OLD])
        assert litter(self.results) == []
        if self.phase == "export":
            self._check_tar()
        if self.phase == "import":
            assert contents(self.results) == contents(self.world.results)


def often(few: int, many: int) -> pytest.MarkDecorator:
    """The test with a small count, and marked long with a large one."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=pytest.mark.long)])


@often(3, 16)
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_process_loses_nothing(phase, times, world, tmp_path):
    """Every other kill comes after a random time, the others before a random file operation."""
    rng, tried, landed = random.Random(f"{phase}{times}"), 0, 0
    while landed < times:
        scene = Scene(phase, world, tmp_path / str(tried))
        tried += 1
        assert tried < 4 * times
        if tried % 2:
            victim = scene.victim()
            time.sleep(rng.uniform(0, world.seconds[phase]))
            hit = victim.kill()
        else:
            hit = scene.victim(operation=rng.randint(1, world.operations[phase])).end().code is None
        scene.check()
        landed += hit
        scene.check_next()
