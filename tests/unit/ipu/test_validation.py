# SPDX-License-Identifier: Apache-2.0
"""The table of measurements: which rows pass, and that the docs show what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from poptransformer.ipu.validation import BEGIN, PAGE, Row, error_range, markdown, rows, write

# Known to miss its band, and not tuned: convolutions are costed as products, whose inputs are copied for each pixel.
MISSED = {"fp8 over fp16, ResNet-50"}


def test_every_row_of_the_table_is_there() -> None:
    names = [row.name for row in rows()]
    assert len(names) == 14
    assert sum(row.is_calibrated for row in rows()) == 4


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_rows_pass(row: Row) -> None:
    assert row.passes == (row.name not in MISSED), f"{row.predicted} {row.error:+.1%}"


def test_calibrated_rows_are_exact() -> None:
    for row in rows():
        if row.is_calibrated:
            assert abs(row.error) < 0.005, row.name


def test_attention_is_in_the_right_order() -> None:
    cycles = [row.predicted for row in rows() if row.name.startswith("flash attention")]
    assert cycles == sorted(cycles)


def test_decoding_on_several_ipus_is_bound_by_the_exchange() -> None:
    row = next(row for row in rows() if row.name.startswith("decoding"))
    assert row.bound == ("exchange", "exchange")


def test_footers_state_the_range() -> None:
    errors = [row.error for row in rows() if not row.is_calibrated and row.bound is None]
    assert error_range().startswith(f"{min(errors):+.0%} to {max(errors):+.0%}")


def test_the_docs_hold_the_table() -> None:
    assert markdown(rows()) in PAGE.read_text(encoding="utf-8")


def test_the_table_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n<!-- validation: end -->\nafter\n")
    assert write(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n<!-- validation: end -->\nafter\n"
    assert not write(page, "new")
