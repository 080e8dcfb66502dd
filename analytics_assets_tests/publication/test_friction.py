"""The statistic against hand and paper, its properties, what it finds, and where it is blind."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.publication import friction
from analytics_assets.publication.friction import (
    BASELINE_DAYS,
    CLOSED_DAYS,
    MIN_BASELINE_DAYS,
    Finding,
    daily_matrix,
    deviation,
    drop_offs,
    drops,
    error_spikes,
    fit,
    ranked,
    spikes,
)

FIRST = date(2026, 3, 2)  # a Monday
DAYS = 180
WEEK = (20, 22, 21, 19, 20, 8, 8)

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def frame(*columns: Sequence[float] | Array, first: date = FIRST) -> pd.DataFrame:
    """A matrix with the given columns, named 0, 1, ..."""
    index = pd.date_range(first.isoformat(), periods=len(columns[0]))
    return pd.DataFrame(np.array(columns, dtype=float).T, index=index)


def all_days(matrix: pd.DataFrame) -> list[date]:
    return [timestamp.date() for timestamp in matrix.index]


def on(row: int) -> date:
    return FIRST + timedelta(days=row)


def usual(days: int = DAYS, *, factor: float = 1, phi: float = 1, seed: int = 1) -> Array:
    """Counts around WEEK x factor with variance phi x mean."""
    rng, level = np.random.default_rng(seed), factor * np.resize(np.array(WEEK, dtype=float), days)
    counts = rng.poisson(level) if phi == 1 else rng.negative_binomial(level / (phi - 1), 1 / phi)
    return counts.astype(float)


def rows(findings: list[Finding]) -> set[int]:
    """Numbers of the rows that were found."""
    return {(finding.day - FIRST).days for finding in findings}


def spike_rows(counts: Sequence[float] | Array) -> set[int]:
    matrix = frame(counts)
    return rows(spikes(matrix, "signups", all_days(matrix)))


def drop_rows(counts: Sequence[float] | Array) -> set[int]:
    matrix = frame(counts)
    return rows(drops(matrix, "signups", all_days(matrix)))


def error_rows(errors: Sequence[float] | Array, requests: Sequence[float] | Array) -> set[int]:
    matrix = frame(errors)
    return rows(error_spikes(matrix, frame(requests), "responses", all_days(matrix)))


def drop_off_rows(taken: Sequence[float] | Array, entered: Sequence[float] | Array) -> set[int]:
    matrix = frame(taken)
    return rows(drop_offs({"views": frame(entered), "searches": matrix}, all_days(matrix)))


# The formula, in the words of the papers: one series, one day, plain arithmetic.


def exceedance(history: Sequence[float], count: float) -> float:
    """Farrington et al. 1996 with the threshold of Noufaily et al. 2012; weekday means shrunk by two pseudo-days."""
    weekday = [row % 7 for row in range(len(history))]
    known = [row for row, value in enumerate(history) if not math.isnan(value)]
    omega = dict.fromkeys(known, 1.0)
    for reweighted in (False, True):
        overall = sum(omega[i] * history[i] for i in known) / sum(omega.values())
        own = {k: [i for i in known if weekday[i] == k] for k in range(7)}
        mean = {
            k: (sum(omega[i] * history[i] for i in own[k]) + 2 * overall) / (sum(omega[i] for i in own[k]) + 2)
            for k in range(7)
        }
        mu = {i: mean[weekday[i]] for i in known}
        freedom = sum(omega.values()) - 7
        phi = max(1.0, sum(omega[i] * (history[i] - mu[i]) ** 2 / mu[i] for i in known) / freedom)
        if not reweighted:
            leverage = {i: 1 / (len(own[weekday[i]]) + 2) for i in known}
            anscombe = {
                i: 1.5 * (history[i] ** (2 / 3) * mu[i] ** (-1 / 6) - mu[i] ** 0.5) / math.sqrt(phi * (1 - leverage[i]))
                for i in known
            }
            omega = {i: anscombe[i] ** -2 if anscombe[i] > 2.58 else 1.0 for i in known}
    n = sum(omega[i] for i in own[0])
    # Farrington: y^(2/3) - mu^(2/3) over its standard deviation (2/3) mu^(1/6) sqrt(tau), tau = phi + Var(mu) / mu.
    tau = phi + (phi * mean[0] / n) / mean[0]
    return float((count ** (2 / 3) - mean[0] ** (2 / 3)) / (2 / 3 * mean[0] ** (1 / 6) * math.sqrt(tau)))


histories = st.lists(st.integers(min_value=8, max_value=400).map(float), min_size=56, max_size=56)
holes = st.sets(st.integers(min_value=1, max_value=55), max_size=BASELINE_DAYS - MIN_BASELINE_DAYS)


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(min_value=600, max_value=5000), holes)
def test_a_spike_is_scored_as_the_papers_say(history: list[float], count: int, missing: set[int]) -> None:
    values = [math.nan if row in missing else value for row, value in enumerate(history)]
    if all(math.isnan(values[row]) for row in range(0, 56, 7)):
        return  # a weekday never seen is not judged
    expected = exceedance(values, count)
    found = spikes(frame([*values, count]), "signups", [on(56)])
    assert [finding.score for finding in found] == ([pytest.approx(expected, rel=1e-9)] if expected > 4 else [])


def test_deviation_by_hand() -> None:
    y, mu, spread = np.array([27.0, 8.0, 0.0, 20.0]), np.full(4, 8.0), np.array([1.0, 1.0, 1.0, 4.0])
    # (27/8)^(2/3) = 9/4; (0/8)^(2/3) = 0; (20/8)^(2/3) = 1.8420
    by_hand = [1.5 * math.sqrt(8) * 1.25, 0, -1.5 * math.sqrt(8), 1.5 * math.sqrt(2) * 0.84202]
    assert deviation(y, mu, spread) == pytest.approx(by_hand, rel=1e-5)


def test_an_expectation_below_one_is_taken_for_one() -> None:
    assert deviation(np.array([8.0, 8.0, 8.0]), np.array([0.0, 0.01, 1.0]), np.ones(3)) == pytest.approx([4.5] * 3)


def test_nothing_is_found_where_nothing_was_ever_counted() -> None:
    nothing = daily_matrix(pd.DataFrame({"event_date": [], "series": [], "count": []}), [FIRST], [FIRST], [])
    for find in (spikes, drops):
        assert find(nothing, "signups", [FIRST]) == []
    assert error_spikes(nothing, nothing, "responses", [FIRST]) == []
    assert drop_offs({"views": nothing, "searches": nothing}, [FIRST]) == []


def test_a_steady_history_by_hand() -> None:
    # mu = 20, phi = 1, n = 8: ((45/20)^(2/3) - 1) / ((2/3) sqrt(1/20 x 9/8)) = 0.71707 / 0.15811
    (finding,) = spikes(frame([20] * 56 + [45]), "signups", [on(56)])
    assert finding == Finding("spike", "signups", "0", on(56), finding.score)
    assert finding.score == pytest.approx(4.535, abs=0.001)


def test_weekday_means_are_shrunk_by_two_days_by_hand() -> None:
    # Mondays 24, other days 10: overall 12; (8 x 24 + 2 x 12) / 10 = 21.6 and (8 x 10 + 2 x 12) / 10 = 10.4
    baseline = fit(np.tile([[24.0], [10], [10], [10], [10], [10], [10]], (8, 1, 1)), pseudo=2)
    assert baseline.rate[:, 0] == pytest.approx([21.6] + [10.4] * 6)
    assert baseline.exposure[:, 0] == pytest.approx([8] * 7)
    assert baseline.phi == [1]


def test_dispersion_and_the_weight_of_an_outlier_by_hand() -> None:
    # Seven at 10 and one at 90: mean 20, chi2 = (7 x 10^2 + 70^2) / 20 = 280, phi = 280 / 7 = 40, leverage 1/8. The
    # residual of 90 is 1.5 sqrt(20 / (40 x 7/8)) (4.5^(2/3) - 1) = 1.957: with such a phi, no outlier.
    assert fit(np.array([10.0] * 7 + [90]).reshape(8, 1, 1)).phi == pytest.approx([40])
    # 31 at 10 and one at 90: mean 12.5, chi2 = (31 x 2.5^2 + 77.5^2) / 12.5 = 496, phi = 496 / 31 = 16, leverage 1/32.
    # The residual of 90 is 1.5 sqrt(12.5 / (16 x 31/32)) (7.2^(2/3) - 1) = 3.67564: weight 1 / r^2 = 0.0740175.
    baseline = fit(np.array([10.0] * 31 + [90]).reshape(32, 1, 1))
    weight = 0.0740175
    mean = (310 + 90 * weight) / (31 + weight)
    assert baseline.exposure == pytest.approx(np.array([[31 + weight]]), rel=1e-6)
    assert baseline.rate == pytest.approx(np.array([[mean]]), rel=1e-6)
    chi2 = (31 * (10 - mean) ** 2 + weight * (90 - mean) ** 2) / mean
    assert baseline.phi == pytest.approx([chi2 / (30 + weight)], rel=1e-6)


def test_only_high_days_are_outliers() -> None:
    baseline = fit(np.array([100.0] * 31 + [0]).reshape(32, 1, 1))
    assert baseline.exposure == 32


def test_an_error_share_by_hand() -> None:
    # 28 days of 2 errors in 100 requests, then 50 errors in 700: mu = 14, n = 2800 / 700 = 4, phi = 1:
    # ((50/14)^(2/3) - 1) / ((2/3) sqrt(1/14 x 5/4)) = 1.33637 / 0.19920
    (finding,) = error_spikes(frame([2] * 28 + [50]), frame([100] * 28 + [700]), "responses", [on(28)])
    assert finding == Finding("error spike", "responses", "0", on(28), finding.score)
    assert finding.score == pytest.approx(6.709, abs=0.001)


def test_the_error_share_is_of_28_days_and_its_dispersion_of_56() -> None:
    # The older half has the share 0.3 and pulls neither mu nor n, but phi is no longer 1.
    recent = [2.0] * 28
    (alone,) = error_spikes(frame([*recent, 50]), frame([100] * 29), "responses", [on(28)])
    older = [30.0] * 28
    (both,) = error_spikes(frame([*older, *recent, 50]), frame([100] * 57), "responses", [on(56)])
    # All 56: mean 16, chi2 = 56 x 14^2 / 16 = 686 and phi = 686 / 55.
    assert both.score == pytest.approx(alone.score / math.sqrt(686 / 55))


def test_a_drop_by_hand() -> None:
    # Twelve weeks of 70, then 35: phi = 1, n = 12: ((1/2)^(2/3) - 1) / ((2/3) sqrt(1/70 x 13/12)) = -4.462
    (finding,) = drops(frame([10] * 84 + [5] * 7), "signups", [on(90)])
    assert finding == Finding("drop", "signups", "0", on(90), finding.score)
    assert finding.score == pytest.approx(4.462, abs=0.001)


def test_a_drop_off_by_hand() -> None:
    # 28 days of 10 in 100, then 5 in 100: mu = 280, y = 140, n = 1:
    # ((1/2)^(2/3) - 1) / ((2/3) sqrt(1/280 x 2)) = -6.568
    steps = {"views": frame([100] * 56), "searches": frame([10] * 28 + [5] * 28)}
    (finding,) = drop_offs(steps, [on(55)])
    assert finding == Finding("drop-off", "searches", "0", on(55), finding.score, per="views")
    assert finding.score == pytest.approx(6.568, abs=0.001)


# Each threshold, from both sides.


@pytest.mark.parametrize(("count", "found"), [(41, set()), (42, {56})])
def test_a_spike_needs_z_above_four(count: int, found: set[int]) -> None:
    assert spike_rows([20] * 56 + [count]) == found  # z = 3.88, then 4.05


@pytest.mark.parametrize(("count", "found"), [(10, set()), (11, {56})])
def test_a_spike_needs_ten_more_than_expected(count: int, found: set[int]) -> None:
    assert spike_rows([1] * 56 + [count]) == found  # z = 5.15, then 5.58


@pytest.mark.parametrize(("count", "found"), [(9, set()), (10, {56})])
def test_errors_on_an_endpoint_that_never_had_any_are_found_from_ten_on(count: int, found: set[int]) -> None:
    assert error_rows([0] * 56 + [count], [300] * 57) == found


@pytest.mark.parametrize(("week", "found"), [([10, 10, 5, 5, 5, 3, 4], set()), ([10, 10, 5, 5, 5, 3, 3], {90})])
def test_a_drop_needs_z_below_minus_three_and_a_half(week: list[float], found: set[int]) -> None:
    assert drop_rows([10] * 84 + week) == found  # 42 of 70 and z = -3.48, then 41 and -3.62


@pytest.mark.parametrize(("before", "found"), [(2, False), (3, True)])
def test_a_drop_needs_fifteen_fewer_than_expected(before: int, *, found: bool) -> None:
    assert (90 in drop_rows([before] * 84 + [0] * 7)) is found  # 14 a week, then 21


@pytest.mark.parametrize(("now", "found"), [(2, False), (1, True)])
def test_a_drop_off_needs_its_threshold(now: int, *, found: bool) -> None:
    # 84 of 2,800, then 56 and z = -2.8, or 28 and z = -5.0
    assert (55 in drop_off_rows([3] * 28 + [now] * 28, [100] * 56)) is found


# Properties.


def test_series_are_judged_one_by_one_whatever_their_order() -> None:
    columns = [usual(seed=number, phi=3) for number in range(6)]
    for number, column in enumerate(columns):
        column[100 + number] = 200
    together = frame(*columns)
    shuffled = together.sample(frac=1, axis="columns", random_state=1)
    for find in (spikes, drops):
        found = find(together, "signups", all_days(together))
        assert set(found) == set(find(shuffled, "signups", all_days(together)))
        alone = [finding for name in together for finding in find(together[[name]], "signups", all_days(together))]
        # A sum over one series may be added up in another order, hence rounded differently.
        assert {(f.series, f.day): pytest.approx(f.score) for f in alone} == {(f.series, f.day): f.score for f in found}
    assert len({finding.series for finding in spikes(together, "signups", all_days(together))}) == len(columns)


@given(st.integers(min_value=-200, max_value=200))
@settings(max_examples=5, deadline=None)
def test_a_shift_by_whole_weeks_shifts_the_findings(weeks: int) -> None:
    counts = usual(120, phi=2)
    counts[[70, 100]] *= 4
    counts[110:] = 0
    here, there = frame(counts), frame(counts, first=FIRST + timedelta(weeks=weeks))
    for find in (spikes, drops):
        moved = [replace(f, day=f.day + timedelta(weeks=weeks)) for f in find(here, "signups", all_days(here))]
        assert moved == find(there, "signups", all_days(there))
        assert moved


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_a_scattered_series_is_judged_alike_at_every_scale(factor: int) -> None:
    counts = usual(phi=6)
    counts[150] = 90
    counts[160:] = 1
    small, large = frame(counts), frame(factor * counts)
    for find, day in ((spikes, on(150)), (drops, on(170))):
        (one,), (other,) = find(small, "signups", [day]), find(large, "signups", [day])
        assert other.score == pytest.approx(one.score)


def test_which_days_are_judged_together_changes_nothing() -> None:
    counts = usual(phi=3)
    counts[[90, 130]] = 120
    matrix = frame(counts)
    one_by_one = [finding for day in all_days(matrix) for finding in spikes(matrix, "signups", [day])]
    assert one_by_one == spikes(matrix, "signups", all_days(matrix)[::-1])
    assert {90, 130} <= rows(one_by_one)


def test_the_future_changes_nothing() -> None:
    counts = usual(phi=3)
    counts[130] = 120
    later = counts.copy()
    later[131:] *= 50
    for find in (spikes, drops):
        past = all_days(frame(counts))[:131]
        assert find(frame(counts), "signups", past) == find(frame(later), "signups", past)
    assert spike_rows(counts) == {130}


# Series that cannot have a finding are left out early. The same statistic, with nothing left out, finds the same.


def unpruned_spikes(window: Array) -> tuple[Array, Mask]:
    history, count = window[:-1], window[-1]
    baseline = fit(history.reshape(8, 7, -1), pseudo=2)
    expected, n = baseline.rate[0], baseline.exposure[0]
    enough = (n > 0) & ((~np.isnan(history)).sum(axis=0) >= MIN_BASELINE_DAYS)
    z = deviation(count, expected, baseline.phi * (1 + 1 / np.where(n > 0, n, 1)))
    return z, enough & (z > 4) & (count - expected >= 10)


def unpruned_drops(window: Array) -> tuple[Array, Mask]:
    weeks = window.reshape(13, 7, -1)
    sums = weeks.sum(axis=1)
    n = (~np.isnan(sums[:-1])).sum(axis=0)
    expected = np.array([np.median(known) if len(known := own[~np.isnan(own)]) else 0 for own in sums[:-1].T])
    phi = np.maximum(fit(weeks[:-1], pseudo=2).phi, fit(sums[:-1, np.newaxis]).phi)
    z = deviation(sums[-1], expected, phi * (1 + 1 / np.maximum(n, 1)))
    is_open = (window[-14:] > 0).any(axis=0)
    return z, (n >= 6) & is_open & (z < -3.5) & (expected - sums[-1] >= 15)


def unpruned_shares(counts: Array, exposures: Array, days: int) -> tuple[Array, Array, Mask]:
    """z, count - expectation, and whether there is enough to judge."""
    usable = ~np.isnan(counts) & (exposures > 0)
    y, exposure = np.where(usable, counts, math.nan), np.where(usable, exposures, 0)
    before, now = slice(-days - 28, -days), slice(-days, None)
    enough = (usable[before].sum(axis=0) >= 14) & (usable[now].sum(axis=0) >= min(14, days))
    share = fit(y[before, np.newaxis], exposure[before, np.newaxis])
    phi = fit(y[:-days, np.newaxis], exposure[:-days, np.newaxis]).phi
    count, exposed = np.nansum(y[now], axis=0), exposure[now].sum(axis=0)
    expected, n = share.rate[0] * exposed, share.exposure[0] / np.where(enough, exposed, 1)
    return deviation(count, expected, phi * (1 + 1 / np.where(enough, n, 1))), count - expected, enough


def unpruned_error_spikes(errors: Array, requests: Array) -> tuple[Array, Mask]:
    z, excess, enough = unpruned_shares(errors, requests, days=1)
    return z, enough & (z > 4.2) & (excess >= 10)


def unpruned_drop_offs(taken: Array, entered: Array) -> tuple[Array, Mask]:
    z, excess, enough = unpruned_shares(taken, entered, days=28)
    return z, enough & (z < -3.5) & (excess <= -15) & (taken[-14:] > 0).any(axis=0)


def unpruned_scores(
    length: int,
    statistic: Callable[..., tuple[Array, Mask]],
    *matrices: Array,
) -> dict[tuple[int, str], float]:
    """What `statistic` finds, day by day."""
    padded = [np.pad(matrix, ((length - 1, 0), (0, 0)), constant_values=math.nan) for matrix in matrices]
    found: dict[tuple[int, str], float] = {}
    for row in range(DAYS):
        z, mask = statistic(*(matrix[row : row + length] for matrix in padded))
        found |= {(row, str(column)): abs(float(z[column])) for column in np.flatnonzero(mask)}
    return found


def eventful(rng: np.random.Generator, series: int) -> Array:
    """Counts of many levels, steady or scattered, with high days, low weeks, beginnings, ends, and days missing."""
    level = rng.choice([0.2, 1, 3, 10, 40, 300], series) * np.resize(np.array(WEEK) / 16, DAYS)[:, np.newaxis]
    level[rng.integers(100, DAYS) :, ::4] /= 8
    counts = np.where(np.arange(series) % 2, rng.negative_binomial(level / 2, 1 / 3), np.round(level))
    for column in counts.T:
        high = rng.integers(DAYS, size=8)
        column[high] = np.round(column[high] * rng.choice([1, 1, 2, 3], 8) + rng.integers(6, 20, 8))
        for start in rng.integers(DAYS, size=2):
            column[start : start + 7] = np.floor(column[start : start + 7] * rng.uniform(0, 0.8))
        column[: rng.choice([0, 0, 60, 100])] = 0
        column[DAYS - rng.choice([0, 0, 30]) :] = 0
    counts[rng.integers(DAYS, size=6)] = math.nan
    return counts


def test_leaving_out_series_early_loses_no_finding() -> None:
    rng, series = np.random.default_rng(1), 200
    counts, whole = eventful(rng, series), eventful(rng, series)
    share = np.tile(rng.choice([0.01, 0.02, 0.1, 0.3], series), (DAYS, 1))
    for column in share.T:
        column[rng.integers(DAYS, size=8)] *= rng.uniform(1, 3, 8)
        column[rng.integers(60, DAYS) :] *= rng.uniform(0, 1)  # for good
    scattered, steady = rng.binomial(np.nan_to_num(whole).astype(int), share), np.round(np.nan_to_num(whole) * share)
    part = np.where(np.arange(series) % 2, scattered, steady)
    part += rng.integers(8, 30, part.shape) * (rng.random(part.shape) < 0.01)  # also more than the whole
    part[rng.integers(DAYS, size=4)] = math.nan

    counts_frame, whole_frame, part_frame = (frame(*matrix.T) for matrix in (counts, whole, part))
    counts[np.cumsum(np.nan_to_num(counts), axis=0) == 0] = math.nan  # before its first count, a series does not exist
    days = all_days(counts_frame)
    for findings, unpruned in (
        (spikes(counts_frame, "signups", days), unpruned_scores(57, unpruned_spikes, counts)),
        (drops(counts_frame, "signups", days), unpruned_scores(91, unpruned_drops, counts)),
        (
            error_spikes(part_frame, whole_frame, "responses", days),
            unpruned_scores(57, unpruned_error_spikes, part, whole),
        ),
        (
            drop_offs({"views": whole_frame, "searches": part_frame}, days),
            unpruned_scores(56, unpruned_drop_offs, part, whole),
        ),
    ):
        found = {((finding.day - FIRST).days, finding.series): finding.score for finding in findings}
        assert found == pytest.approx(unpruned)
        assert len(found) > 50


# What is planted is found, and nothing else.


def test_a_tripled_day_is_found_and_no_other() -> None:
    counts = usual()
    counts[100] *= 3
    assert spike_rows(counts) == {100}


def test_a_spike_does_not_hide_the_next_one() -> None:
    counts = usual()
    counts[[100, 102, 107]] *= 4  # 107 is the same weekday as 100
    assert spike_rows(counts) == {100, 102, 107}


def test_a_burst_that_was_in_the_baseline_eight_weeks_ago_is_found_again() -> None:
    """As signup of an event opens again and again: six, three and two times the usual number."""
    counts = usual(factor=0.6)
    for opening in (48, 104, 160):
        counts[opening : opening + 3] *= (6, 3, 2)
    found = spike_rows(counts)
    assert {48, 104, 160} <= found <= {opening + day for opening in (48, 104, 160) for day in range(3)}


def test_an_outage_is_found_among_errors() -> None:
    rng, requests = np.random.default_rng(1), usual(factor=5)
    errors = rng.binomial(requests.astype(int), 0.01).astype(float)
    errors[120] += 70
    requests[120] += 70
    assert error_rows(errors, requests) == {120}


def test_more_requests_with_more_errors_are_no_error_spike() -> None:
    rng, requests = np.random.default_rng(1), usual(factor=20)
    requests[120] *= 5
    errors = rng.binomial(requests.astype(int), 0.1).astype(float)
    assert spike_rows(errors) == {120}
    assert error_rows(errors, requests) == set()


def test_a_silent_week_is_found_on_its_last_days() -> None:
    counts = usual()
    counts[140:147] = 0
    found = drop_rows(counts)
    assert 146 in found
    assert found <= set(range(140, 153))


def test_a_step_that_fewer_take_is_found_and_fewer_entries_are_not() -> None:
    rng, views = np.random.default_rng(1), usual(factor=3)
    views[120:] = np.floor(views[120:] / 2)
    searches = rng.binomial(views.astype(int), 0.3).astype(float)
    assert drop_off_rows(searches, views) == set()
    searches[140:] = np.floor(searches[140:] / 2)
    found = drop_off_rows(searches, views)
    assert {167} <= found <= set(range(141, 195))


def test_each_step_is_compared_with_the_one_before() -> None:
    views, searches, signups = frame([100] * 56), frame([50] * 28 + [20] * 28), frame([20] * 28 + [8] * 28)
    found = drop_offs({"views": views, "searches": searches, "signups": signups}, [on(55)])
    assert [(finding.event_name, finding.per) for finding in found] == [("searches", "views")]


@pytest.mark.parametrize("phi", [1, 2, 4])
def test_nothing_is_found_where_nothing_happens(phi: float) -> None:
    matrix = frame(*(usual(phi=phi, seed=seed) for seed in range(100)))
    for find in (spikes, drops):
        assert len(find(matrix, "signups", all_days(matrix))) <= 100 * DAYS / 1000


@pytest.mark.parametrize("factor", [0.3, 0.8, 3])
def test_an_event_that_is_active_one_week_in_five_is_neither_spike_nor_drop(factor: float) -> None:
    """Wherever in its five weeks the history begins."""
    columns = [usual(factor=factor, seed=seed) for seed in range(35)]
    for offset, column in enumerate(columns):
        column[(np.arange(DAYS) + offset) // 7 % 5 > 0] = 0
    matrix = frame(*columns)
    assert spikes(matrix, "signups", all_days(matrix)) == []
    assert drops(matrix, "signups", all_days(matrix)) == []


def test_weekends_are_neither() -> None:
    assert spike_rows([*WEEK] * 20) == drop_rows([*WEEK] * 20) == set()


# Days that are missing, and series that begin or end.


def test_a_day_that_was_not_collected_is_not_judged_and_is_no_zero() -> None:
    counts = usual()
    expected = spike_rows(np.where(np.arange(DAYS) == 170, 3 * counts, counts))
    assert expected == {170}
    counts[[10, 118, 125, 150, 151, 152]] = math.nan
    assert spike_rows(counts) == drop_rows(counts) == set()
    counts[170] *= 3
    assert spike_rows(counts) == {170}
    counts[170] = math.nan
    assert spike_rows(counts) == set()


def test_a_week_with_a_missing_day_is_not_judged_and_is_in_no_median() -> None:
    counts = usual()
    counts[140:147] = 0
    counts[143] = math.nan
    assert not drop_rows(counts) & set(range(143, 150))
    counts = usual()
    counts[[70, 80, 100]] = math.nan
    counts[140:147] = 0
    assert 146 in drop_rows(counts)


def test_a_share_leaves_out_days_of_which_either_side_is_missing() -> None:
    errors, requests = np.full(57, 2.0), np.full(57, 100.0)
    errors[40], errors[56] = math.nan, 30
    requests[45], requests[50] = math.nan, 0
    matrix = frame(errors)
    (finding,) = error_spikes(matrix, frame(requests), "responses", [on(56)])
    by_hand = 1.5 * math.sqrt(2 / (1 + 1 / 25)) * (15 ** (2 / 3) - 1)  # 25 of 28 days are left
    assert finding.score == pytest.approx(by_hand)
    requests[56] = math.nan
    assert error_rows(errors, requests) == set()


def test_a_weekday_that_was_never_collected_is_not_judged() -> None:
    counts = np.full(57, 20.0)
    counts[0:56:7] = math.nan
    counts[56] = 500
    assert spike_rows(counts) == set()


@pytest.mark.parametrize(("history", "found"), [(MIN_BASELINE_DAYS - 1, set()), (MIN_BASELINE_DAYS, {150})])
def test_blind_before_a_series_has_six_weeks(history: int, found: set[int]) -> None:
    counts = np.zeros(DAYS)  # zeros before the first count are no history
    counts[150 - history : 150] = 20
    counts[150:] = 200
    assert spike_rows(counts) & {150} == found


def test_blind_for_drops_before_a_series_has_six_complete_weeks() -> None:
    for weeks, found in ((5, False), (6, True)):
        counts = np.zeros(DAYS)
        counts[140 - 7 * weeks : 140] = 20
        counts[140:147] = 1
        assert (146 in drop_rows(counts)) is found


def test_an_event_that_ends_is_a_drop_for_two_weeks_at_most() -> None:
    counts = usual()
    counts[130:] = 0
    found = drop_rows(counts)
    assert found
    assert found <= set(range(130, 130 + CLOSED_DAYS - 1))


def test_a_step_that_has_closed_is_no_drop_off_after_two_weeks() -> None:
    views, searches = usual(factor=3), usual()
    searches[130:] = 0
    assert drop_off_rows(searches, views)
    assert max(drop_off_rows(searches, views)) < 130 + CLOSED_DAYS


# Where it is blind, as docs/friction.md says.


def test_blind_for_slow_growth() -> None:
    assert spike_rows(np.round(usual() * 1.01 ** np.arange(float(DAYS)))) == set()


def test_blind_for_slow_decline() -> None:
    assert drop_rows(np.round(usual() * 0.99 ** np.arange(float(DAYS)))) == set()


def test_blind_for_a_spike_of_the_same_weekday_every_week() -> None:
    counts = usual()
    counts[2::7] *= 3
    assert not spike_rows(counts) & set(range(BASELINE_DAYS, DAYS))


def test_blind_for_a_level_that_stays_up() -> None:
    counts = usual()
    counts[100:] *= 2
    assert max(spike_rows(counts), default=0) < 100 + BASELINE_DAYS


def test_blind_for_a_low_day() -> None:
    counts = usual()
    counts[140] = 0
    assert drop_rows(counts) == set()


def test_blind_for_small_numbers() -> None:
    assert spike_rows([1] * 56 + [10]) == set()
    assert drop_rows([1] * 84 + [0] * 13) == set()
    assert drop_off_rows([1] * 28 + [0.5] * 28, [100] * 56) == set()


def test_blind_for_a_change_spread_thin_over_many_events_unless_they_are_added_up() -> None:
    columns = [np.random.default_rng(number).poisson(2, 57).astype(float) for number in range(100)]
    for column in columns:
        column[56] = 5
    thin = frame(*columns)
    assert spikes(thin, "signups", [on(56)]) == []
    assert spikes(thin.sum(axis="columns").to_frame("all"), "signups", [on(56)])[0].series == "all"


def test_blind_for_small_changes_of_a_large_series_with_weekends() -> None:
    """The pseudo-days hold each weekday off its own mean, and phi takes that for scatter."""
    for factor, found in ((1.25, set()), (1.5, {100})):
        counts = usual(factor=500)
        counts[100] *= factor
        assert spike_rows(counts) == found
    for factor, last_day_found in ((0.93, False), (0.8, True)):
        counts = usual(factor=500)
        counts[140:147] *= factor
        assert (146 in drop_rows(counts)) is last_day_found


def test_a_few_percent_of_a_large_funnel_are_found() -> None:
    rng, views = np.random.default_rng(1), usual(factor=500)
    searches = rng.binomial(views.astype(int), 0.3).astype(float)
    searches[140:168] = np.floor(searches[140:168] * 0.96)
    assert 167 in drop_off_rows(searches, views)


# Matrix, order, words, refusals.


def test_a_matrix_tells_zero_from_not_collected() -> None:
    days = [on(row) for row in range(4)]
    counts = pd.DataFrame(
        [(days[0], "7", 3), (days[0], "7", 2), (days[2], "12", 4), (days[3], "7", 9), (days[0], "99", 1)],
        columns=["event_date", "series", "count"],
    )
    matrix = daily_matrix(counts, days, collected=set(days[:3]), series=["7", "12"])
    expected = frame([5, 0, 0, math.nan], [0, 0, 4, math.nan]).set_axis(["7", "12"], axis="columns")
    pd.testing.assert_frame_equal(matrix, expected, check_names=False, check_freq=False, check_index_type=False)


def test_a_matrix_reads_timestamps_and_numbers_as_dates_and_text() -> None:
    counts = pd.DataFrame({"event_date": [pd.Timestamp(on(0)), pd.Timestamp(on(1))], "series": [7, 7], "count": [3, 4]})
    days = [on(0), on(1)]
    matrix = daily_matrix(counts, days, collected=set(days), series=["7"])
    assert matrix.to_numpy().tolist() == [[3], [4]]


def test_a_matrix_without_any_row_is_all_zero() -> None:
    days = [on(0), on(1)]
    empty = pd.DataFrame({"event_date": [], "series": [], "count": []})
    assert daily_matrix(empty, days, collected=set(days), series=["7"]).to_numpy().tolist() == [[0], [0]]


def test_findings_are_ranked_by_score_whatever_order_they_come_in() -> None:
    findings = [
        Finding("spike", "signups", "2", on(1), 5.0),
        Finding("drop", "signups", "1", on(1), 9.0),
        Finding("spike", "signups", "1", on(1), 5.0),
    ]
    expected = [findings[1], findings[2], findings[0]]
    assert ranked(findings) == ranked(reversed(findings)) == expected


def test_the_text_says_series_day_and_direction_and_no_number_of_what_was_counted() -> None:
    day = date(2026, 11, 22)
    texts = {
        (finding.direction, finding.text)
        for finding in (
            Finding("spike", "event_signups", "3", day, 12.345),
            Finding("drop", "event_signups", "3", day, 12.345),
            Finding("error spike", "endpoint_error_rates", "GET /events", day, 12.345),
            Finding("drop-off", "directory_searches", "3", day, 12.345, per="directory_page_views"),
        )
    }
    assert texts == {
        ("up", "event_signups, 3: more than usual on 2026-11-22"),
        ("down", "event_signups, 3: less than usual in the week to 2026-11-22"),
        ("up", "endpoint_error_rates, GET /events: more errors per request than usual on 2026-11-22"),
        (
            "down",
            "directory_searches, 3: less per directory_page_views in the four weeks to 2026-11-22"
            " than in the four weeks before",
        ),
    }


def test_a_gap_in_the_days_is_refused() -> None:
    with pytest.raises(ValueError, match="not consecutive"):
        spikes(frame([1] * 60).drop(index="2026-03-20"), "signups", [on(59)])


def test_a_day_outside_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks a day"):
        spikes(frame([1] * 60), "signups", [on(60)])


def test_matrices_of_different_series_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        error_spikes(frame([1] * 60), frame([1] * 60, [1] * 60), "responses", [on(59)])
    with pytest.raises(ValueError, match="differ"):
        drop_offs({"views": frame([1] * 60), "searches": frame([1] * 61)}, [on(59)])


# The page and the simulation.

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/friction.md").read_text(encoding="utf-8")

Table = dict[tuple[str, str], dict[str, float]]


def tables(text: str) -> dict[str, Table]:
    """Each table of the simulation by its title: the other columns of each mean and phi."""
    found: dict[str, Table] = {}
    for title, lines in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        head, _, *cells = ([cell.strip(" %") for cell in line.strip("|").split("|")] for line in lines.splitlines())
        found[title] = {(row[0], row[1]): dict(zip(head[2:], map(float, row[2:]), strict=True)) for row in cells}
    return found


def simulate(*options: str, **environment: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks/friction.py"), *options]
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_small_simulation_meets_the_aim_and_fills_the_page(tmp_path: Path) -> None:
    page = tmp_path / "friction.md"
    page.write_text(PAGE, encoding="utf-8")
    printed = simulate("--series", "56", "--days", "120", "--write", str(page))
    measured, published = tables(printed), tables(PAGE)
    assert {title: list(table) for title, table in measured.items()} == {
        title: list(table) for title, table in published.items()
    }
    assert tables(page.read_text(encoding="utf-8")) == measured
    assert page.read_text(encoding="utf-8").partition("<!-- simulation -->")[0] in PAGE
    by_title = {title.split(":")[0]: table for title, table in measured.items()}
    for title in ("Spikes", "Drops", "Drop-offs"):
        rates = [row["false alarms"] for row in by_title[title].values()]
        assert sum(rates) / len(rates) <= 1, title
    for (mean, _), row in by_title["Spikes"].items():
        assert row["false alarms"] < row["false alarms by MAD"]
        assert row["tripled day found"] >= (80 if int(mean) >= 100 else 0)
    for row in by_title["Drops"].values():
        assert row["silent week found"] == 100


def test_the_simulation_tells_a_detector_that_misses_the_aim(tmp_path: Path) -> None:
    # Python imports this module at start.
    loose = (
        "from analytics_assets.publication import friction\n"
        "friction.SPIKE_Z = friction.ERROR_SPIKE_Z = friction.DROP_Z = 1.5\n"
    )
    (tmp_path / "sitecustomize.py").write_text(loose)
    printed = simulate("--series", "14", "--days", "105", PYTHONPATH=str(tmp_path))
    assert len(re.findall(r"^Aim .* missed in the rows 10 with phi 1,", printed, re.MULTILINE)) == 4
    assert "met in every row" not in printed


def test_the_page_states_every_threshold() -> None:
    stated = dict(re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|", PAGE, re.MULTILINE))
    constants = {
        name: value
        for name, value in vars(friction).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int | float)
    }
    assert {name: float(value) for name, value in stated.items()} == constants
