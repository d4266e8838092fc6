"""Kills, full disks, lost rights, stepping clocks, frozen workers, races, damage and no memory, in real processes.

After each: no finished run is lost, no wrong number is served (every table equals an undisturbed run's byte for byte), and
the next call completes. `make test` does a few of each, `make test-long` the counts that docs/faults.md shows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rwclib import RunConfig, archive, training
from rwclib.errors import ArchiveError, OutOfTimeError
from tests.conftest import ROOT, contents, rwc, tables
from tests.sweeps import victims
from tests.sweeps.victims import Victim

CONFIGS = [
    RunConfig(model="lenet5", dataset="fashion_mnist_sample", width=8, epochs=3, n_train=128, n_test=50, batch_size=32,
              lr=0.01, snapshot_every=1, seed=seed)
    for seed in range(4)
]  # fmt: skip
FIRST, OLD = CONFIGS[0], CONFIGS[1:3]
PHASES = ["training", "archive writing"]


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
    """What undisturbed processes have made: four runs, one of them also just before its end."""

    results: Path
    brink: Path
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
    made = {config: numbers(folder / "results", config) for config in CONFIGS}
    assert any(name.endswith(".npy") for name in made[FIRST])
    found = World(folder / "results", folder / "brink", made)
    for phase in PHASES:  # how long each takes, and how many file operations
        scene = Scene(phase, found, tmp_path_factory.mktemp("measured"))
        victim = scene.victim().end()
        assert victim.code == 0, victim.answer
        found.seconds[phase], found.operations[phase] = victim.seconds, victim.operations
        scene.check_whole()
    return found


class Scene:
    """A folder in which a process is about to train a run or to write it into the archive."""

    def __init__(self, phase: str, world: World, folder: Path) -> None:
        self.phase, self.world, self.folder, self.count = phase, world, folder, itertools.count()
        self.results = folder / "results"
        if phase == "archive writing":
            shutil.copytree(world.brink, self.results)
        else:
            for config in OLD:
                place = archive.run_dir(world.results, config)
                shutil.copytree(place, self.results / place.relative_to(world.results))

    def victim(self, **hurt: object) -> Victim:
        """The process at work."""
        return Victim(self.folder / f"log{next(self.count)}", victims.train, FIRST, self.results, **hurt)

    def check(self) -> None:
        """Nothing that was there is lost or wrong."""
        self.world.check(self.results, OLD)

    def check_next(self, **rights: object) -> None:
        """The next call completes, and all is as if nothing had happened."""
        victim = self.victim(**rights).end()
        assert victim.code == 0, victim.answer
        self.check_whole()

    def check_whole(self) -> None:
        self.world.check(self.results, [FIRST, *OLD])
        assert litter(self.results) == []


def often(few: int, many: int) -> pytest.MarkDecorator:
    """The test with a small count, and marked long with a large one."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=pytest.mark.long)])


def one_sentence(victim: Victim, *words: str) -> None:
    """It ended with a deliberate error, which says this."""
    assert victim.code == 1, victim.answer
    assert "\n" not in victim.answer
    assert all(word in victim.answer for word in words), victim.answer


@pytest.fixture
def note(record_property):
    """Put a row into the table that a green `make test-long` stores."""

    def enter(fault: str, during: str, how: str, tried: int, landed: int, then: str) -> None:
        row = {"fault": fault, "during": during, "how": how, "tried": tried, "in_the_middle": landed, "then": then}
        record_property("fault", row)

    return enter


@often(2, 14)
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_process_loses_nothing(phase, times, world, tmp_path, note):
    rng, tried, landed = random.Random(f"kill {phase}"), 0, 0
    while landed < times:
        scene = Scene(phase, world, tmp_path / str(tried))
        tried += 1
        assert tried < 4 * times + 4
        if tried % 2:
            victim = scene.victim()
            time.sleep(rng.uniform(0, world.seconds[phase]))
            hit = victim.kill()
        else:
            hit = scene.victim(operation=rng.randint(1, world.operations[phase])).end().code is None
        landed += hit
        scene.check()
        scene.check_next()
    how = "SIGKILL, in turn after a random time and before a random file operation"
    note("killed", phase, how, tried, landed, "the next call completes")


@often(5, 12)
def test_a_run_killed_again_and_again_ends_with_the_tables_of_an_undisturbed_one(times, world, tmp_path, note):
    """Each time after the first checkpoint that the process writes, so that no call is without use."""
    arguments = (
        "train", "--model", "lenet5", "--dataset", "fashion_mnist_sample", "--width", 8, "--epochs", 8 * times,
        "--n-train", 200, "--n-test", 50, "--lr", 0.01, "--threads", 1, "--checkpoint-seconds", 0, "--device", "cpu", "--results",
    )  # fmt: skip
    whole = Victim(tmp_path / "log", victims.command, *arguments, tmp_path / "whole").end()
    assert whole.code == 0, whole.answer
    (reference,) = archive.directories(tmp_path / "whole")
    killed, rng = tmp_path / "killed", random.Random("again")

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in killed.rglob("checkpoint.safetensors")}

    for kills in range(times):
        seen = stamps()
        victim = Victim(tmp_path / "log", victims.command, *arguments, killed)
        victims.until(lambda seen=seen: stamps() not in ({}, seen))
        time.sleep(rng.uniform(0, 0.2))
        assert victim.kill(), f"the run ended before kill {kills + 1}; make it longer"
    last = Victim(tmp_path / "log", victims.command, *arguments, killed).end()
    assert last.code == 0, last.log.read_text()
    (place,) = archive.directories(killed)
    assert last.log.read_text().splitlines()[-1] == str(place)
    assert tables(place) == tables(reference)
    assert archive.read_dir(place).record["provenance"]["resumed"] == times
    assert archive.read_dir(place).record["provenance"]["threads"] == 1
    assert litter(killed) == []

    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    assert Victim(tmp_path / "log", victims.command, *arguments, killed).end().code == 0
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*")} == before
    how = "SIGKILL of one run again and again, after a random time"
    note(
        "killed",
        "training",
        how,
        times,
        times,
        "the next call goes on; in the end the run says that it resumed that often",
    )


def ration(victim: Victim, scene: Scene, rng: random.Random) -> Callable[[], None]:
    """Let the process write no file beyond some bytes (RLIMIT_FSIZE)."""
    resource.prlimit(victim.process.pid, resource.RLIMIT_FSIZE, (rng.randrange(4096), resource.RLIM_INFINITY))
    return lambda: None


def fill(victim: Victim, scene: Scene, rng: random.Random) -> Callable[[], None]:
    """Leave the file system at most two free pages."""
    filler, left = scene.folder / "filler", 4096 * rng.randrange(3)
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - left))
    return filler.unlink


def write_protect(victim: Victim, scene: Scene, rng: random.Random) -> Callable[[], None]:
    """Take the right to write from every folder and file."""
    top = scene.results
    before = {path: path.stat().st_mode for path in [top, *top.rglob("*")]}
    for path, mode in before.items():
        path.chmod(mode & ~0o222)
    return lambda: [path.chmod(mode) for path, mode in before.items() if path.exists()]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("a file system can be mounted only by root")
    yield place
    subprocess.run(["umount", place], check=True)


HARDSHIPS = {
    "ration": (ration, "disk full", "RLIMIT_FSIZE of a random size, from a random file operation on"),
    "fill": (fill, "disk full", "a small tmpfs filled, from a random file operation on"),
    "write_protect": (write_protect, "made read-only", "all folders and files, from a random file operation on"),
}


@often(1, 4)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("hardship", HARDSHIPS)
def test_a_disk_that_fills_or_turns_read_only_is_one_sentence_and_loses_nothing(
    hardship, phase, times, world, tmp_path, note, request
):
    """The process stops itself at a random file operation, the hardship begins, and it goes on."""
    inflict, fault, how = HARDSHIPS[hardship]
    folder = request.getfixturevalue("small_disk") if inflict is fill else tmp_path
    rng, tried, landed = random.Random(f"{hardship} {phase}"), 0, 0
    rights = {"unprivileged": inflict is write_protect and os.geteuid() == 0}
    while landed < times:
        scene = Scene(phase, world, folder / str(tried))
        tried += 1
        assert tried < 4 * times + 4
        victim = scene.victim(operation=rng.randint(1, world.operations[phase]), act="freeze", **rights)
        assert victim.wait_frozen()
        relieve = inflict(victim, scene, rng)
        victim.go_on()
        victim.end()
        scene.check()
        relieve()
        if victim.code:
            one_sentence(victim, "cannot write", "choose")
            landed += 1
        scene.check()
        scene.check_next(**rights)
        shutil.rmtree(scene.folder)
    note(fault, phase, how, tried, landed, "one sentence names the file; the next call completes")


@often(1, 8)
@pytest.mark.parametrize("phase", ["training", "archive writing"])
def test_a_worker_frozen_past_its_heartbeat_does_no_harm_when_it_goes_on(phase, times, world, tmp_path, note):
    """It stops itself at a random file operation, another takes its run over, and it goes on while that one works."""
    rng, tried, landed = random.Random(f"freeze {phase}"), 0, 0
    while landed < times:
        scene = Scene(phase, world, tmp_path / str(tried))
        lock = archive.lock_path(scene.results, FIRST)
        tried += 1
        assert tried < 4 * times + 4
        frozen = scene.victim(operation=rng.randint(1, world.operations[phase]), act="freeze", stale=1.0)
        assert frozen.wait_frozen()
        robbed = lock.exists() and lock.stat().st_ino
        if robbed:
            victims.until(lambda lock=lock: time.time() - lock.stat().st_mtime > 1.0)
        successor = scene.victim(stale=1.0)
        victims.until(lambda s=successor, r=robbed, lock=lock: s.over() or (lock.exists() and lock.stat().st_ino != r))
        time.sleep(rng.uniform(0, world.seconds[phase]))
        frozen.go_on()
        frozen.end(), successor.end()
        assert successor.code == 0, successor.answer
        if frozen.code:
            one_sentence(frozen, "was taken over" if robbed else "is being worked on by")
        landed += bool(robbed)
        scene.check()
        scene.check_next()
    how = (
        "SIGSTOP before a random file operation until its lock is stale, SIGCONT while another process works on its run"
    )
    note(
        "frozen",
        phase,
        how,
        tried,
        landed,
        "the other one finishes; the frozen one gives up or ends with the same numbers",
    )


@often(2, 4)
def test_a_clock_that_steps_back_an_hour_spoils_no_deadline_lock_or_provenance(times, world, tmp_path, note):
    rng, tried, landed = random.Random("clock"), 0, 0
    seconds = world.seconds["training"] / 3
    while landed < times:
        scene, calls = Scene("training", world, tmp_path / str(tried)), 0
        tried += 1
        assert tried < 2 * times + 2, "no deadline was kept"
        while not archive.is_finished(scene.results, FIRST):
            operation = rng.randint(1, world.operations["training"] // 5 if calls else 5)  # at first before any batch
            task, what = (victims.train_for, FIRST) if tried % 2 else (victims.sweep_for, [FIRST])
            victim = Victim(
                tmp_path / "log", task, what, scene.results, seconds, operation=operation, act="step back"
            ).end()
            if task is victims.train_for and victim.code:
                one_sentence(victim, "call again to go on")
            else:
                assert victim.code == 0, victim.answer
            calls += 1
            assert calls < 100
        landed += calls > 1
        seconds /= 1 + (calls == 1)  # faster than it was measured
        provenance = archive.read(scene.results, FIRST).record["provenance"]
        assert provenance["started"] <= provenance["finished"]
        assert all(0 <= second < victims.LIMIT for second in provenance["epoch_seconds"])
        scene.check_whole()
    how = "time.time() steps back an hour before a random file operation, under a deadline much sooner than the end of the run"
    note("clock set back", "training", how, tried, landed, "stopped by its deadline and finished by later calls")


@often(1, 4)
def test_racing_sweeps_train_every_run_once_even_if_one_of_them_is_killed(times, world, tmp_path, note):
    rng, landed = random.Random("race"), 0
    for tried in range(times):
        results = tmp_path / str(tried)
        racers = [Victim(tmp_path / f"log{i}", victims.sweep_for, CONFIGS, results) for i in range(3)]
        time.sleep(rng.uniform(0, 2 * world.seconds["training"]))
        landed += racers[0].kill()
        for racer in racers[1:]:
            assert racer.end().code == 0, racer.answer
        trained = [name for racer in racers[1:] for name in racer.answer]
        assert len(trained) == len(set(trained))
        world.check(results, CONFIGS)
        assert litter(results) == []
        again = Victim(tmp_path / "log", victims.sweep_for, CONFIGS, results).end()
        assert (again.code, again.answer) == (0, [])
    how = "three sweeps of the same runs on one folder, one of them killed with SIGKILL after a random time"
    note(
        "race", "sweeps", how, times, landed, "the others finish every run, none twice; a further sweep trains nothing"
    )


SWEEP_WITH_LITTLE_MEMORY = r"""
import json, re, resource, sys
from pathlib import Path
from rwclib import RunConfig
from rwclib.sweeps.sweep import run_all
here = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (here + 2 * 2**30,) * 2)
report = run_all([RunConfig(**c) for c in json.loads(sys.argv[1])], results=sys.argv[2], device="cpu", jobs=1)
print(json.dumps({"trained": report.trained, "failed": report.failed}))
"""


@often(1, 2)
def test_a_run_without_memory_fails_in_one_sentence_and_the_others_finish(times, world, tmp_path, note):
    """A sweep with a limit of its address space (RLIMIT_AS), one of whose runs has more weights than that."""
    too_large = dataclasses.replace(FIRST, model="resnet18", width=1024)
    runs = [CONFIGS[1], too_large, CONFIGS[2]]
    for tried in range(times):
        results = tmp_path / str(tried)
        for order in (runs, runs[::-1])[: 1 + (times > 1)]:
            settings = json.dumps([config.to_dict() for config in order])
            words = [sys.executable, "-c", SWEEP_WITH_LITTLE_MEMORY, settings, str(results)]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=victims.LIMIT)
            assert done.returncode == 0, done.stderr
            report = json.loads(done.stdout)
            assert list(report["failed"]) == [too_large.name]
            assert "\n" not in report["failed"][too_large.name]
            assert "memory" in report["failed"][too_large.name]
            assert sorted(report["trained"]) == sorted(config.name for config in (OLD if order is runs else []))
            world.check(results, OLD)
            assert litter(results) == []
    how = "RLIMIT_AS on a sweep, one of whose three runs has more weights than that"
    note(
        "out of memory",
        "sweep",
        how,
        2 * times,
        2 * times,
        "that run fails in one sentence; the others finish in the same call",
    )


def cut(file: Path, other: Path, rng: random.Random) -> list[Path]:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(1, len(content))])
    return [file]


def cut_off_the_last_byte(file: Path, other: Path, rng: random.Random) -> list[Path]:
    file.write_bytes(file.read_bytes()[:-1])
    return [file]


def flip(file: Path, other: Path, rng: random.Random) -> list[Path]:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return [file]


def empty(file: Path, other: Path, rng: random.Random) -> list[Path]:
    file.write_bytes(b"")
    return [file]


def swap(file: Path, other: Path, rng: random.Random) -> list[Path]:
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [file, other]


DAMAGES = {
    "cut": "truncated anywhere", "cut_off_the_last_byte": "truncated by one byte", "flip": "one bit flipped anywhere",
    "empty": "emptied", "swap between runs": "swapped with another run's of the same name",
    "swap within a run": "swapped with another of the same run",
}  # fmt: skip


def named(problem: str, file: Path) -> bool:
    return str(file.parent) in problem and file.name in problem and "\n" not in problem


@often(4, 100)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_found_and_named(damage, times, world, tmp_path, note):
    """Every kind of file in turn, the rest undamaged; where only few damages are possible, all of them."""
    rng, results = random.Random(damage), tmp_path / "results"
    places = []
    for config in OLD:
        places.append(archive.run_dir(results, config))
        shutil.copytree(archive.run_dir(world.results, config), places[-1])
    names = sorted(file.name for file in places[0].iterdir())
    assert {name.rpartition(".")[2] for name in names} == {"json", "parquet", "npy"}
    pairs = [(places[0] / name, places[1] / name) for name in names]
    if damage == "swap within a run":
        pairs = [(places[0] / a, places[0] / b) for a, b in itertools.combinations(names, 2)]
    inflict = {"cut": cut, "flip": flip, "empty": empty, "cut_off_the_last_byte": cut_off_the_last_byte}.get(
        damage, swap
    )
    tried = 0
    for _ in range(times if inflict in (cut, flip) else 1):
        for file, other in pairs:
            before = file.read_bytes(), other.read_bytes()
            assert before[0] != before[1]
            damaged = inflict(file, other, rng)
            record = [path for path in damaged if path.name == "run.json"]
            problems = archive.verify(results)
            expected = record if record and damage == "swap within a run" else damaged  # the digests are in run.json
            assert len(problems) == len(expected), (file, problems)
            assert all(any(named(problem, path) for problem in problems) for path in expected), (file, problems)
            with pytest.raises(ArchiveError):
                archive.load(OLD, results)
            file.write_bytes(before[0]), other.write_bytes(before[1])
            tried += 1
    assert archive.verify(results) == []
    inflict(*pairs[-1], rng)
    for config in OLD:
        victim = Victim(tmp_path / "log", victims.train, config, results).end()
        assert victim.code == 0, victim.answer
    world.check(results, OLD)
    note(
        "damaged file",
        "archive",
        DAMAGES[damage],
        tried,
        tried,
        "found and named by verify, never loaded; trained again",
    )


def test_the_command_names_every_damaged_file_at_once(world, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(world.results, results)
    places = archive.directories(results)
    for place in places[:2]:
        for file in place.iterdir():
            if file.name != "run.json":
                flip(file, file, random.Random(file.name))
    empty(places[2] / "run.json", places[2], random.Random())
    done = rwc("results", "verify", "--results", results)
    assert (done.returncode, done.stdout) == (1, "runs ok: 1, damaged: 3\n")
    damaged = [file for place in places[:2] for file in place.iterdir() if file.name != "run.json"]
    lines = done.stderr.splitlines()
    assert len(lines) == len(damaged) + 1
    assert all(any(named(line, file) for line in lines) for file in [*damaged, places[2] / "run.json"])
