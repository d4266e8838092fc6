"""RWCTracker under DDP and FSDP2: two gloo processes on the CPU against one process, the same steps on the same batches.

One pair of processes runs all scenarios (`python -m tests.test_distributed RANK STORE`); each is a test of its own.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rwclib import RWCTracker
from rwclib.metrics import METRICS, measure

ROOT = Path(__file__).parents[1]
RANKS, BATCH = 2, 8


class Net(nn.Module):
    """Odd first dimensions (uneven shards), one of 1 (rank 1 has none of it), and layers larger than the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.body = nn.Sequential(nn.Conv2d(5, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 67), nn.Tanh())
        self.head = nn.Linear(67, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def train(model: nn.Module, step: int, part: slice = slice(None)) -> None:
    """One step of plain SGD on `part` of the step's batch."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64)[part].to(next(model.parameters()).dtype)
    model.zero_grad()
    (model(x) - x.sum((1, 2, 3))[:, None]).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def own() -> slice:
    """This rank's share of a batch."""
    share = BATCH // RANKS
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def shard(model: nn.Module, mesh_shape: tuple[int, ...] = (RANKS,), **options: object) -> nn.Module:
    """FSDP2: a group of parameters for the body and one for the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
    fully_shard(model.body, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The full weights, gathered."""
    return {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in model.state_dict().items()}


def assert_equal(history: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Histories, all metrics."""
    torch.testing.assert_close(history, expected, rtol=tolerance, atol=0, equal_nan=True)


def assert_same_on_every_rank(history: dict[str, Tensor]) -> None:
    values = torch.stack(list(history.values()))
    on_ranks = [torch.empty_like(values) for _ in range(RANKS)]
    dist.all_gather(on_ranks, values)
    assert torch.equal(*on_ranks)


def assert_tracks_as_one_process(model: nn.Module, single: nn.Module, tracker: RWCTracker) -> None:
    """Against a tracker of the gathered weights, and in float64 of a model trained by this process alone.

    In float64 because there the training itself is the same to 1e-6; the tracker computes in float32 either way.
    """
    gathered = copy.deepcopy(single)
    trackers = tracker, RWCTracker(gathered), RWCTracker(single)
    for step in range(3):
        train(model, step, own())
        train(single, step)
        gathered.load_state_dict(whole(model.module if isinstance(model, DistributedDataParallel) else model))
        steps = [each.step() for each in trackers]
        assert not steps[0] or list(steps[0]) == list(steps[1])
    history, fed, alone = (each.history() for each in trackers)
    if tracker.steps:
        assert history["rwc"].min() > 1e-6
        assert_equal(history, fed)
        assert torch.equal(history["rwc_median"], fed["rwc_median"])
        if next(single.parameters()).dtype == torch.float64:
            assert_equal(history, alone)
    assert tracker.layers == trackers[1].layers


def ddp_is_tracked_by_rank_0_alone() -> None:
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        model = DistributedDataParallel(net(torch.float64))
        tracker = RWCTracker(wrap(model))
        assert_tracks_as_one_process(model, net(torch.float64), tracker)
        assert tracker.steps == (3 if dist.get_rank() == 0 else 0)


def ddp_needs_no_communication() -> None:
    model = DistributedDataParallel(net())
    if dist.get_rank() == 0:  # would wait for rank 1 in vain
        tracker = RWCTracker(model)
        tracker.step()
        tracker.load_state_dict(tracker.state_dict())
        assert len(tracker.table()) == 4
    dist.barrier()


def ddp_other_ranks_are_inert() -> None:
    plain, tracker = RWCTracker(net()), RWCTracker(DistributedDataParallel(net()))
    plain.step()
    if dist.get_rank() == 0:
        return
    for _ in range(2):
        assert tracker.step() == {}
        assert {values.shape for values in tracker.history().values()} == {(0, 4)}
        assert list(tracker.table().columns) == list(plain.table().columns)
        assert len(tracker.table()) == 0
        assert not tracker.plot().axes[0].lines
        names = ["layers", "calls", *(f"history.{name}" for name in (*METRICS, "step", "depth", "size"))]
        assert sorted(tracker.state_dict()) == sorted(names)
        tracker.load_state_dict(plain.state_dict())  # what rank 0 has saved
        tracker.load_state_dict(tracker.state_dict())
        assert tracker._reference.state() == {}


def fsdp_equals_one_process() -> None:
    for dtype, offload in ((torch.float64, None), (torch.float32, "cpu")):
        model = shard(net(dtype))
        tracker = RWCTracker(model, offload=offload)
        assert_tracks_as_one_process(model, net(dtype), tracker)
        assert_same_on_every_rank(tracker.history())


def fsdp_keeps_and_measures_shards_with_one_all_reduce_a_step() -> None:
    model, calls, all_reduce = shard(net()), [], dist.all_reduce
    tracker = RWCTracker(model)
    warnings.filterwarnings("ignore", "no tracked weight has moved")
    dist.all_reduce = lambda *arguments, **options: (calls.append(1), all_reduce(*arguments, **options))
    try:
        tracker.step()
        tracker.step()
    finally:
        dist.all_reduce = all_reduce
    assert len(calls) == 2
    rows = [tracker.state_dict()[f"reference.{name}"].to_local().shape[0] for name in tracker.layers]
    assert rows == [[3, 4, 34, 1], [2, 4, 33, 0]][dist.get_rank()]
    assert list(tracker.table()["size"][:4]) == [5 * 27, 8 * 45, 67 * 128, 67]


def hsdp_counts_replicas_once() -> None:
    for mesh_shape in ((2, 1), (1, 2)):
        model = shard(net(torch.float64), mesh_shape)
        assert_tracks_as_one_process(model, net(torch.float64), RWCTracker(model))


def fsdp_is_tracked_after_evaluation_in_lower_precision() -> None:
    """A forward pass alone leaves full bfloat16 copies of the weights behind."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model, gathered = shard(net(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)), net()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
    tracker, fed = RWCTracker(model), RWCTracker(gathered)
    for step in range(2):
        train(model, step, own())
        with torch.no_grad():
            model(x)
        tracker.step()
        gathered.load_state_dict(whole(model))
        fed.step()
    assert_equal(tracker.history(), fed.history())


def fsdp_after_the_tracker_was_made() -> None:
    model = net(torch.float64)
    tracker = RWCTracker(model)
    assert_tracks_as_one_process(shard(model), net(torch.float64), tracker)


def fsdp_state_goes_round() -> None:
    """To a sharded tracker in memory and through a checkpoint, and to and from a tracker in one process."""
    from torch.distributed import checkpoint

    model, gathered = shard(net()), net()
    tracker, fed = RWCTracker(model), RWCTracker(gathered)
    for step in range(2):
        train(model, step, own())
        gathered.load_state_dict(whole(model))
        tracker.step(), fed.step()
    folder = Path(sys.argv[2]).parent / "checkpoint"
    with warnings.catch_warnings(action="ignore"):
        checkpoint.save({"tracker": tracker.state_dict()}, checkpoint_id=folder)
    states = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (tracker, fed)]
    train(model, 2, own())
    gathered.load_state_dict(whole(model))
    in_memory, stored, from_plain, to_plain = (
        RWCTracker(model),
        RWCTracker(model),
        RWCTracker(model),
        RWCTracker(gathered),
    )
    in_memory.load_state_dict(states[0])
    from_plain.load_state_dict(states[1])
    to_plain.load_state_dict(states[0])
    history = {f"history.{name}": torch.empty(2, 4, dtype=torch.float64) for name in METRICS}
    history |= {f"history.{name}": torch.empty(2, 4, dtype=torch.int64) for name in ("depth", "size")}
    state = stored.state_dict() | history | {"history.step": torch.empty(2, dtype=torch.int64)}
    with warnings.catch_warnings(action="ignore"):
        checkpoint.load({"tracker": state}, checkpoint_id=folder)
    stored.load_state_dict(state)
    for each in (tracker, fed, in_memory, stored, from_plain, to_plain):
        each.step()
        assert_equal(each.history(), tracker.history())
    for each in (in_memory, stored):
        assert_equal(each.history(), tracker.history(), tolerance=0)


def other_layouts_sample_the_same_elements() -> None:
    """Sharded by columns, over a mesh of two dimensions, replicated; channels last in memory."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    previous, change = torch.randn(2, 67, 31, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    current = previous + 0.1 * change
    for memory_format in (torch.contiguous_format, torch.channels_last):
        plain = [t.contiguous(memory_format=memory_format) for t in (current, previous)]
        expected = measure([plain[0]], [plain[1]])
        for mesh, placements in [
            (line, [Shard(0)]), (line, [Shard(1)]), (line, [Shard(2)]), (line, [Replicate()]),
            (grid, [Shard(0), Shard(1)]), (grid, [Shard(1), Shard(1)]), (grid, [Replicate(), Shard(1)]),
        ]:  # fmt: skip
            sharded = [distribute_tensor(t.clone(), mesh, placements) for t in plain]
            measured = measure([sharded[0]], [sharded[1]])
            assert_equal(measured, expected)
            assert measured["rwc_median"] == expected["rwc_median"], (placements, memory_format)
            measure([sharded[0]], [sharded[1]], update=True)
            assert torch.equal(sharded[1].full_tensor(), current)


def zero_and_non_finite_weights_are_seen_by_every_rank() -> None:
    model = net()
    nn.init.zeros_(model.stem.weight)
    tracker = RWCTracker(shard(model))
    with torch.no_grad():
        if dist.get_rank() == 0:
            model.head.weight.to_local()[0, 0] = torch.nan
        model.body[0].weight.mul_(1.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changes = tracker.step()
    assert ["NaN for stem.weight:" in str(warning.message) for warning in caught] == [True]
    assert [value != value for value in changes.values()] == [True, False, False, True]
    assert abs(changes["body.0.weight"] - 0.5) < 1e-6


SCENARIOS: list[Callable[[], None]] = [
    ddp_is_tracked_by_rank_0_alone,
    ddp_needs_no_communication,
    ddp_other_ranks_are_inert,
    fsdp_equals_one_process,
    fsdp_keeps_and_measures_shards_with_one_all_reduce_a_step,
    hsdp_counts_replicas_once,
    fsdp_is_tracked_after_evaluation_in_lower_precision,
    fsdp_after_the_tracker_was_made,
    fsdp_state_goes_round,
    other_layouts_sample_the_same_elements,
    zero_and_non_finite_weights_are_seen_by_every_rank,
]


def work(rank: int, store: str) -> None:
    """One process of the group: run every scenario, and name on standard output those that passed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    for scenario in SCENARIOS:
        scenario()
        print(scenario.__name__, flush=True)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def passed() -> tuple[set[str], str]:
    """Names of the scenarios that passed on both ranks, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.test_distributed", str(rank), f"{folder}/store"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for rank in range(RANKS)
        ]  # fmt: skip
        try:
            outputs = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return set.intersection(*(set(out.split()) for out, _ in outputs)), "\n".join(error for _, error in outputs)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_two_processes(scenario, passed):
    names, errors = passed
    assert scenario.__name__ in names, errors


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
