"""Bytes for the browser: the value of a byte, and the place of each map's bytes."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from chunk_bytes import numbers_of, undone
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from make_study import CIFAR10, Recipe, make_study

from whycam.errors import WhycamError
from whycam.report.columns import list_column
from whycam.report.encoding import FLAGS, MISSING, NON_FINITE, STATS, MapStore, dequantize, differences, quantize
from whycam.report.payload import Payload
from whycam.study.folder import Study

RAW = arrays(np.float32, (3, 16), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))


@given(RAW)
def test_quantized_values_are_off_by_at_most_one_step(raw):
    cells, step, zero = quantize(raw)
    back = dequantize(cells, step, zero).astype(np.float64)
    # One step, and float32 rounding of values as large as the range.
    assert (np.abs(back - raw) <= step[:, None] * (1 + 1e-4)).all()
    assert cells.max() < NON_FINITE


@given(RAW)
def test_zero_is_exactly_zero_and_signs_survive(raw):
    raw[:, 0] = 0
    back = dequantize(*quantize(raw))
    assert (back[:, 0] == 0).all()
    assert (back[raw > 0] >= 0).all()
    assert (back[raw < 0] <= 0).all()


def test_a_step_is_a_254th_of_the_range():
    _, step, _ = quantize(np.array([[-1.0, 0.5, 3.0]], np.float32))
    assert step[0] == pytest.approx(4 / 254)


def test_values_that_are_not_finite_have_their_own_byte():
    raw = np.array([[np.nan, np.inf, -np.inf, 1.0, -1.0]], np.float32)
    cells, step, zero = quantize(raw)
    assert (cells[0, :3] == NON_FINITE).all()
    back = dequantize(cells, step, zero)
    assert np.isnan(back[0, :3]).all()
    np.testing.assert_allclose(back[0, 3:], [1, -1], atol=2 / 254)


def test_a_map_of_zeros_is_zeros():
    cells, step, zero = quantize(np.zeros((1, 4), np.float32))
    assert (cells == 0).all()
    assert zero[0] == 0
    assert step[0] == 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    recipe = Recipe(n=200, errors=30, methods=("gradcam", "hirescam"), unexplained=5, correct_explained=12)
    return Study.load(make_study(tmp_path_factory.mktemp("study"), recipe))


@given(arrays(np.uint8, (2, 3, 5)))
def test_differences_can_be_undone(cells):
    coded = differences(cells)
    for one, back in zip(cells, coded, strict=True):
        assert (undone(back.ravel(), 3, 5) == one.ravel()).all()


def test_chunks_hold_every_map_in_the_documented_layout(study):
    """Decodes chunks by the documented layout, slowly, and compares with the Parquet file."""
    payload = Payload(study)
    stored = {(r["id"], r["method"], r["layer"], r["target"]): r for r in study.maps.to_pylist()}
    covered = 0
    for chunk in payload.chunks():
        n, combinations = chunk.stop - chunk.start, payload.maps.combinations
        values, zero, flags, data = numbers_of(chunk.content["maps"], len(combinations) * n)
        at = 0
        for number, c in enumerate(combinations):
            for i in range(n):
                row = stored.get((payload.ids[chunk.start + i], c.method, c.layer, c.target))
                cells = undone(data[at : at + c.height * c.width], c.height, c.width)
                at += c.height * c.width
                place = number * n + i
                if row is None:
                    assert flags[place] == MISSING
                    continue
                raw = study.raw_map(row).ravel()
                step = values[0, place]
                seen = (cells.astype(np.float32) - float(zero[place])) * step
                assert np.abs(seen - raw).max() <= step * 1.0001
                assert flags[place] == sum(FLAGS[flag] for flag in row["flags"])
                for name, found in zip(STATS, values[1:, place], strict=True):
                    assert found == np.float32(row[name])
                covered += 1
        assert at == len(data)
    assert covered == 25 * 2 * 3 * 2


def test_mean_maps_equal_a_slow_mean(study):
    payload = Payload(study)
    data = base64.b64decode(payload.means_data()["bytes"])
    k, blocks = len(CIFAR10), 3 * 2 * 3
    counts = np.frombuffer(data, "<i4", blocks * k).reshape(3, 2, 3, k)
    step = np.frombuffer(data, "<f4", blocks * k, counts.nbytes).reshape(3, 2, 3, k)
    zero = np.frombuffer(data, np.uint8, blocks * k, 2 * counts.nbytes).reshape(3, 2, 3, k)
    at = 2 * counts.nbytes + zero.nbytes
    truth = {r["id"]: r for r in study.predictions.to_pylist()}
    for g, (target, column, correct) in enumerate(
        (("predicted", "predicted", False), ("true", "label", False), ("predicted", "label", True))
    ):
        for m, method in enumerate(payload.methods):
            for depth, layer in enumerate(payload.layers):
                for c in range(k):
                    chosen = [
                        study.raw_map(row) for row in study.maps.to_pylist()
                        if (row["method"], row["layer"], row["target"]) == (method, layer["name"], target)
                        and truth[row["id"]][column] == c and truth[row["id"]]["correct"] == correct
                    ]  # fmt: skip
                    cells = np.frombuffer(data, np.uint8, layer["height"] * layer["width"], at)
                    at += len(cells)
                    assert counts[g, m, depth, c] == len(chosen)
                    mean = np.mean(chosen, axis=0).ravel() if chosen else np.zeros(len(cells))
                    seen = (cells.astype(float) - zero[g, m, depth, c]) * step[g, m, depth, c]
                    assert np.abs(seen - mean).max() <= step[g, m, depth, c] * 1.001
    assert at == len(data)


def test_ranges_hold_98_percent_of_the_maps(study):
    ranges = Payload(study).maps.ranges()
    for method, layers in ranges.items():
        for layer, found in layers.items():
            rows = [r for r in study.maps.to_pylist() if (r["method"], r["layer"]) == (method, layer)]
            errors = set(study.errors["id"].to_pylist())
            highest = [max(0, r["raw_max"]) for r in rows if r["id"] in errors]
            assert np.mean(np.array(highest) <= found["positive"]) >= 0.97
            assert found["signed"] >= found["positive"]


def test_a_map_of_another_size_is_refused(study):
    layers = [dict(layer) for layer in study.manifest["layers"]]
    layers[0]["height"] = 5
    with pytest.raises(
        WhycamError, match=r"maps\.parquet: the gradcam map of '.*' at layer2\[-2\] is 16×16, but .* 5×16"
    ):
        MapStore(study.maps, study.errors["id"].to_pylist(), ["gradcam"], layers, ["predicted"])


def test_list_columns_survive_slices_and_chunks(study):
    import pyarrow as pa

    table = pa.concat_tables([study.maps.slice(7, 20), study.maps.slice(40, 3), study.maps.slice(0, 1)])
    values, starts = list_column(table, "values")
    for start, expected in zip(starts, table["values"].to_pylist(), strict=True):
        assert values[start : start + len(expected)].tolist() == expected
