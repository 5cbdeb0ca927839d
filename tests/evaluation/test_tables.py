"""The bootstrap and the tables that evaluations share."""

import numpy as np
import pytest

from musiclm_jax.evaluation.bootstrap import estimate, estimate_pairs, interval, means
from musiclm_jax.evaluation.tables import Table, number, page, percent


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).standard_normal(400)
    result = estimate(lambda counts: {"mean": means(values, counts)}, 400, rng=np.random.default_rng(1))
    assert result["mean"] == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert result["mean_95"] == pytest.approx([values.mean() - error, values.mean() + error], abs=0.15 * error)


def test_what_is_not_finite_has_no_figure_and_no_interval():
    result = estimate(lambda counts: {"none": np.full(len(counts), np.nan)}, 3, rng=np.random.default_rng(0))
    assert result == {"none": None, "none_95": None} and interval(np.array([np.nan, 2.0, 2.0])) == [2.0, 2.0]


def test_pairs_and_shuffled_pairs():
    values = np.arange(9.0).reshape(3, 3)
    result = estimate_pairs(values, rng=np.random.default_rng(0))
    assert result["pairs"] == pytest.approx(4) and result["shuffled"] == pytest.approx((1 + 2 + 3 + 5 + 6 + 7) / 6)
    assert result["pairs_95"] == [0.0, 8.0]


def test_a_table_as_text_and_as_markdown():
    table = Table(("", "a", "long name"), (("x", "1", "2"), ("other", "", "3")))
    assert table.text() == "       a  long name\nx      1  2\nother     3"
    assert table.markdown() == "|  | a | long name |\n| --- | --- | --- |\n| x | 1 | 2 |\n| other |  | 3 |"
    assert page("title", table.text(), notes=["one", "two"]).endswith("3\n\nnote: one\nnote: two") and page("a", "b") == "a\n\nb"
    with pytest.raises(ValueError, match="a row of 1 cells, expected 2"):
        Table(("a", "b"), (("x",),))


def test_figures_with_their_intervals():
    assert number(0.5, [0.25, 0.75]) == "0.500 [0.250, 0.750]" and number(2.0, digits=1) == "2.0" and number(None) == "-"
    assert percent(0.93, [0.88, 0.97]) == " 93 % [ 88,  97]" and percent(None, None).strip() == "-"
