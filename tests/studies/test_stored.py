"""Tables that take long to compute: read where they are stored, and computed again by the long tests."""

import numpy as np
import pandas as pd
import pytest

from rwclib.studies import stored, weightscale
from rwclib.studies.layerwise import two_definitions
from rwclib.studies.weightscale import audit, release
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """A function whose tables are stored in an empty archive, and the list of what it was called with."""
    monkeypatch.setenv("RWC_RESULTS", str(tmp_path))
    monkeypatch.setenv("RWC_STORE_TABLES", "1")
    calls = []

    def compute(values, power=2):
        calls.append(power)
        return pd.DataFrame({"value": values, "name": "x", "powers": values**power, "large": values > 1})

    compute.__module__ = "rwclib.studies.layerwise.figures"
    return stored.stored(compute), calls


def test_a_table_is_computed_once_and_read_to_every_digit_for_the_same_inputs(squares, tmp_path):
    function, calls = squares
    values = np.array([1 / 3, np.nan, np.inf, 2.0])
    first = function(values)
    pd.testing.assert_frame_equal(function(values.copy(), power=2), first, check_exact=True)
    assert calls == [2]
    assert [path.name for path in (tmp_path / "layerwise" / "tables").iterdir()] == ["compute.json"]
    function(values, 3)
    function(values[:2])
    function(values + 1e-6)
    assert calls == [2, 3, 2, 2]


def test_nothing_is_stored_unless_asked_for(squares, tmp_path, monkeypatch):
    monkeypatch.delenv("RWC_STORE_TABLES")
    squares[0](np.ones(2))
    assert list(tmp_path.iterdir()) == []


def released():
    arrays, missing = release.available(["cifar10", "cifar100"])
    if missing:
        pytest.skip("the released arrays are not in $RWC_DATA_DIR/published_rwc")
    return arrays


def of_runs(measure):
    """What notebooks 05 and 06 show of the committed runs."""
    return measure(weightscale.STUDY.tables(RESULTS), list(weightscale.NETWORKS), weightscale.DATASETS)


@pytest.mark.long
@pytest.mark.parametrize(
    "table",
    [
        two_definitions.simulate,
        two_definitions.exact_zeros,
        lambda: two_definitions.exact_zeros(networks=["resnet34"]),
        lambda: pd.concat(map(audit.gradient_fractions, (32, 64, 128, 224))),
        lambda: audit.recluster(released()),
        lambda: audit.scree(released()),
        lambda: of_runs(weightscale.figures.scree_table),
        lambda: of_runs(weightscale.figures.stabilities),
    ],
)
def test_stored_tables_are_what_is_computed_today(table, monkeypatch):
    written = []
    monkeypatch.setenv("RWC_STORE_TABLES", "1")
    monkeypatch.setattr(stored, "_write", lambda file, tables: written.append(file))
    from_store = table()
    assert not written
    monkeypatch.setattr(stored, "_read", lambda file: {})
    pd.testing.assert_frame_equal(from_store, table(), rtol=1e-6, check_dtype=False)
    assert written
