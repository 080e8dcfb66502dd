"""Friction: days and weeks on which a count departs from what its own history lets expect.

One statistic serves four kinds of finding: a day against the same weekdays, a week against weeks, errors against
requests, and a funnel step against the step before it. It is the quasi-Poisson detector of epidemic surveillance,
shortened to the history that is kept here:

* C. P. Farrington, N. J. Andrews, A. D. Beale, M. A. Catchpole: A statistical algorithm for the early detection of
  outbreaks of infectious disease. Journal of the Royal Statistical Society A 159 (1996) 547-563.
* A. Noufaily, D. G. Enki, P. Farrington, P. Garthwaite, N. Andrews, A. Charlett: An improved algorithm for outbreak
  detection in multiple surveillance systems. Statistics in Medicine 32 (2013) 1206-1222, online since 2012.

From Farrington: variance = phi x mean, with phi from Pearson's chi-square and never below 1; less weight for past
outliers; the comparison on the scale y^(2/3), on which a Poisson count is nearly symmetric. From Noufaily: only a
residual above 2.58 makes an outlier. Left out, because 180 days are not five years: trend, yearly seasons, and scaling
the weights so that they add up to the number of days. `docs/friction.md` states the thresholds, what a simulation says
of them, and where they are blind.

Pure functions of matrices of exact daily counts: one row per day, consecutive, one column per series (an event, an
endpoint). NaN marks a day that was not collected; it belongs to no baseline and is not judged. No database, no Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

BASELINE_DAYS: Final = 56
"""Days before a day that it is compared with: eight of each weekday."""
PSEUDO_DAYS: Final = 2
"""Days at the overall mean that are added to the days of each weekday."""
MIN_BASELINE_DAYS: Final = 42
"""Days of the baseline on which the series existed and was collected; with fewer, a day is not judged. Six weeks, which
hold a whole active week of an event that is active one week in five."""
OUTLIER: Final = 2.58
"""A day of the baseline with a larger residual r has weight 1/r^2."""
MIN_EXPECTED: Final = 1
"""A smaller expectation is taken for one: z is then defined for a baseline of zeros, and tame for a sparse series."""

SPIKE_Z: Final = 4.0
ERROR_SPIKE_Z: Final = 4.2
"""Higher than SPIKE_Z: with 4.0, ten clumped errors a day raise more than one false alarm per 1,000 series-days."""
SPIKE_EXCESS: Final = 10
"""Occurrences, or errors, above the expectation that a spike has at least."""

DROP_WEEKS: Final = 12
"""Weeks before a week whose median it is compared with."""
MIN_DROP_WEEKS: Final = 6
"""Complete weeks among them; with fewer, a week is not judged."""
DROP_Z: Final = 3.5
DROP_SHORTFALL: Final = 15
"""Occurrences below the expectation that a drop, or a drop-off, has at least."""
CLOSED_DAYS: Final = 14
"""A series without any occurrence for so long is closed, not dropped."""

SHARE_DAYS: Final = 28
"""Days over which a share is taken: errors of requests, a funnel step of the step before it. The dispersion of errors
comes from all BASELINE_DAYS."""
MIN_SHARE_DAYS: Final = 14
"""Days with requests, or with the step before, among them; with fewer, a share is not judged."""

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Kind = Literal["spike", "drop", "error spike", "drop-off"]
"""As in `contract.FRICTION_KINDS`."""

_EACH_DAY_ALIKE: Final = np.ones((1, 1, 1))
_LEAST_PHI: Final = np.ones(1)
_JUDGED_TOGETHER: Final = 250_000
"""Counts that are scored in one step, unless a single day has more: 2 MB per matrix."""


@dataclass(frozen=True)
class Finding:
    """One departure of one series."""

    kind: Kind
    event_name: str
    """Of a drop-off, the later step."""
    series: str
    """Event id or endpoint."""
    day: date
    """The day, or the last day of the week or four weeks."""
    score: float
    """|z|, to rank by. It follows from counts, so `text` leaves it out."""
    per: str | None = None
    """Of a drop-off: the event name of the step before."""

    @property
    def direction(self) -> Literal["up", "down"]:
        """Whether more was counted than expected, or less."""
        return "up" if self.kind in {"spike", "error spike"} else "down"

    @property
    def text(self) -> str:
        """One sentence for people, without a number of what anybody did."""
        return f"{self.event_name}, {self.series}: {self.describe(str(self.day), self.per)}"

    def describe(self, day: str, per: str | None) -> str:
        """Say what was found, with its day and the step before as people read them."""
        match self.kind:
            case "spike":
                return f"more than usual on {day}"
            case "drop":
                return f"less than usual in the week to {day}"
            case "error spike":
                return f"more errors per request than usual on {day}"
            case "drop-off":
                return f"less per {per} in the four weeks to {day} than in the four weeks before"


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Largest score first; equal scores in an order that does not depend on that of `findings`."""
    return sorted(findings, key=lambda f: (-f.score, f.kind, f.event_name, f.series, f.day))


def strongest(findings: Iterable[Finding]) -> list[Finding]:
    """The finding with the largest score of each kind and series, ranked. One cause makes findings on several days."""
    found: dict[tuple[str, str, str], Finding] = {}
    for finding in ranked(findings):
        found.setdefault((finding.kind, finding.event_name, finding.series), finding)
    return list(found.values())


def daily_matrix(
    counts: pd.DataFrame, days: Sequence[date], collected: Collection[date], series: Sequence[str]
) -> pd.DataFrame:
    """The matrix of an event name: 0 for a collected day without a row, NaN for a day that was not collected.

    Args:
        counts: columns `event_date`, `series` and `count`; rows of the same day and series are added up.
        days: consecutive days, the rows.
        collected: the days that were collected; rows of other days are ignored.
        series: the columns. Matrices that are compared need the same.
    """
    totals = counts.groupby(["event_date", "series"])["count"].sum().unstack("series")
    # As dates and as text on both sides, because a label of another type would be a silent zero.
    totals = totals.set_axis(pd.DatetimeIndex(totals.index), axis="index")
    totals = totals.set_axis(totals.columns.astype(str), axis="columns")
    matrix = totals.reindex(index=pd.DatetimeIndex(list(days)), columns=[str(name) for name in series])
    matrix = matrix.astype(float).fillna(0.0)
    matrix[[day not in collected for day in days]] = np.nan
    return matrix


def spikes(counts: pd.DataFrame, event_name: str, days: Collection[date]) -> list[Finding]:
    """Findings for those of `days` that have far more than the 56 days before let expect of their weekday.

    Raises:
        ValueError: the rows are not consecutive days, or lack one of `days`.
    """
    return _judge("spike", event_name, days, _score_spike, BASELINE_DAYS + 1, _since_first_count(counts))


def drops(counts: pd.DataFrame, event_name: str, days: Collection[date]) -> list[Finding]:
    """Findings for those of `days` that end a week with far less than the median of the twelve weeks before.

    Raises:
        ValueError: the rows are not consecutive days, or lack one of `days`.
    """
    return _judge("drop", event_name, days, _score_drop, 7 * (DROP_WEEKS + 1), _since_first_count(counts))


def error_spikes(
    errors: pd.DataFrame, requests: pd.DataFrame, event_name: str, days: Collection[date]
) -> list[Finding]:
    """Findings for those of `days` with far more errors than their requests had in the 28 days before.

    Raises:
        ValueError: the matrices differ in rows or columns, or the rows are not consecutive days, or lack one of `days`.
    """
    return _judge("error spike", event_name, days, _score_error_spike, BASELINE_DAYS + 1, errors, requests)


def drop_offs(steps: Mapping[str, pd.DataFrame], days: Collection[date]) -> list[Finding]:
    """Findings for those of `days` that end 28 days with far less of a step, per step before, than the 28 days before.

    Args:
        steps: event name and matrix of each step of the funnel, in order.
        days: the days to judge.

    Raises:
        ValueError: the matrices differ in rows or columns, or the rows are not consecutive days, or lack one of `days`.
    """
    return [
        finding
        for (entry, entered), (event_name, taken) in pairwise(steps.items())
        for finding in _judge("drop-off", event_name, days, _score_drop_off, 2 * SHARE_DAYS, taken, entered, per=entry)
    ]


class Baseline(NamedTuple):
    """What a history lets expect."""

    rate: Array
    """Expected count per unit of exposure; seasons x series."""
    exposure: Array
    """Weighted exposure behind each rate, without pseudo-days; in days, where each day counts alike."""
    phi: Array
    """Variance / mean, at least 1; per series."""


def fit(counts: Array, exposure: Array = _EACH_DAY_ALIKE, pseudo: float = 0) -> Baseline:
    """Rate of each season and dispersion of each series, fitted once more with less weight for outliers.

    Only counts far above their expectation are outliers: a past spike must not hide the next one, whereas a past low is
    part of what happens. The residual is Anscombe's, standardized by phi and leverage (Farrington et al. 1996).

    Args:
        counts: rounds x seasons x series, for instance 8 weeks x 7 weekdays x events. NaN is left out.
        exposure: what a count is proportional to; its shape broadcasts to that of `counts`.
        pseudo: exposure at the series' overall rate that is added to that of each season.
    """
    known = ~np.isnan(counts)
    y = np.where(known, counts, 0.0)
    first = _estimate(y, exposure, known.astype(np.float64), pseudo)
    leverage = _ratio(exposure, first.exposure + pseudo)
    # A day that is all of its season determines its own expectation: leverage 1, and nothing left over.
    residual = deviation(y, first.rate * exposure, first.phi * np.maximum(1 - leverage, np.finfo(np.float64).eps))
    return _estimate(y, exposure, known / np.where(residual > OUTLIER, residual, 1.0) ** 2, pseudo)


def deviation(count: Array, expected: Array, spread: Array) -> Array:
    """How many standard deviations a count is above its expectation, on the scale y^(2/3).

    ((y/mu)^(2/3) - 1) / ((2/3) sqrt(spread/mu)), where mu is at least MIN_EXPECTED and spread x mu is the variance of
    y - mu:

    * spread = phi (1 + 1/n) for a new count beside the mean of n days: Farrington's test of the current count.
    * spread = phi (1 - h) for one of the days behind that mean, h being its leverage: the standardized Anscombe
      residual, 3/2 (y^(2/3) mu^(-1/6) - mu^(1/2)) / sqrt(phi (1 - h)).
    """
    mu = np.maximum(expected, MIN_EXPECTED)
    return np.asarray(1.5 * np.sqrt(mu / spread) * (np.cbrt(count / mu) ** 2 - 1))


def _estimate(y: Array, exposure: Array, weights: Array, pseudo: float) -> Baseline:
    behind = (weights * exposure).sum(axis=0)
    counted = (weights * y).sum(axis=0)
    overall = _ratio(counted.sum(axis=0), behind.sum(axis=0))
    rate = _ratio(counted + pseudo * overall, behind + pseudo)
    expected = rate * exposure
    chi2 = (weights * _ratio((y - expected) ** 2, expected)).sum(axis=(0, 1))
    freedom = weights.sum(axis=(0, 1)) - len(rate)
    return Baseline(rate, behind, np.maximum(1.0, _ratio(chi2, freedom)))


def _score_spike(window: Array) -> tuple[Array, Mask]:
    count = window[-1]
    # The expectation is a weighted mean of the history, hence not below its least day, and phi is at least 1. With the
    # least of both, z and the excess are largest: what is no spike then is none. Most series are left out here.
    least = np.fmin.reduce(window[:-1], axis=0)
    z = deviation(count, least, _LEAST_PHI)
    found = (z > SPIKE_Z) & (count - least >= SPIKE_EXCESS)
    some = np.flatnonzero(found)
    history, count = window[:-1, some], count[some]
    baseline = fit(history.reshape(BASELINE_DAYS // 7, 7, some.size), pseudo=PSEUDO_DAYS)
    # Each round of seven days begins with the weekday that is judged.
    expected, n = baseline.rate[0], baseline.exposure[0]
    z[some] = deviation(count, expected, baseline.phi * (1 + _ratio(1.0, n)))
    enough = (n > 0) & (_number_of(~np.isnan(history)) >= MIN_BASELINE_DAYS)
    found[some] = enough & (z[some] > SPIKE_Z) & (count - expected >= SPIKE_EXCESS)
    return z, found


def _score_drop(window: Array) -> tuple[Array, Mask]:
    """Of two estimates of phi, the larger is used.

    That of days around the mean of their weekday has 77 degrees of freedom, but does not know that whole weeks differ,
    and raises false alarms where usage drifts. That of the twelve sums knows it, but has 11 degrees of freedom, and
    raises false alarms where it comes out small by chance.
    """
    weeks = window.reshape(DROP_WEEKS + 1, 7, -1)
    sums = weeks.sum(axis=1)  # NaN where a day is missing
    history, count = sums[:-1], sums[-1]
    known = _number_of(~np.isnan(history))
    expected, n = _median(history, known), known.astype(np.float64)
    spread = 1 + _ratio(1.0, n)
    z = deviation(count, expected, spread)
    found = (n >= MIN_DROP_WEEKS) & (z < -DROP_Z) & (expected - count >= DROP_SHORTFALL) & _is_open(window)
    # phi is at least 1, so what is no drop with 1 is none at all.
    some = np.flatnonzero(found)
    weeks, sums = weeks[..., some], sums[:, some]
    phi = np.maximum(fit(weeks[:-1], pseudo=PSEUDO_DAYS).phi, fit(sums[:-1, np.newaxis]).phi)
    z[some] = deviation(count[some], expected[some], phi * spread[some])
    return z, found & (z < -DROP_Z)


def _score_error_spike(errors: Array, requests: Array) -> tuple[Array, Mask]:
    # The excess is not larger than the errors.
    z, excess = _compare_shares(errors, requests, days=1, possible=errors[-1] >= SPIKE_EXCESS)
    return z, (z > ERROR_SPIKE_Z) & (excess >= SPIKE_EXCESS)


def _score_drop_off(taken: Array, entered: Array) -> tuple[Array, Mask]:
    usable = ~np.isnan(taken) & (entered > 0)
    y, exposure = (np.where(usable, values, 0.0).reshape(2, SHARE_DAYS, -1).sum(axis=1) for values in (taken, entered))
    # Less weight for outliers, which are high, only lowers the expectation. So this one is not too small.
    expected = _ratio(y[0], exposure[0]) * exposure[1]
    z, excess = _compare_shares(taken, entered, days=SHARE_DAYS, possible=y[1] - expected <= -DROP_SHORTFALL)
    return z, (z < -DROP_Z) & (excess <= -DROP_SHORTFALL) & _is_open(taken)


def _compare_shares(counts: Array, exposures: Array, days: int, possible: Mask) -> tuple[Array, Array]:
    """Judge the last `days` by the share of the exposure in the 28 days before them, and phi of all days before them.

    Returns:
        z and count - expectation, which are 0 where a finding is not `possible` or there is too little to judge.
    """
    some = np.flatnonzero(possible)
    counts, exposures = counts[:, some], exposures[:, some]
    usable = ~np.isnan(counts) & (exposures > 0)
    y, exposure = np.where(usable, counts, np.nan), np.where(usable, exposures, 0.0)
    before, now = slice(-days - SHARE_DAYS, -days), slice(-days, None)
    share = fit(y[before, np.newaxis], exposure[before, np.newaxis])
    phi = fit(y[:-days, np.newaxis], exposure[:-days, np.newaxis]).phi
    count, exposed = np.nansum(y[now], axis=0), exposure[now].sum(axis=0)
    expected = share.rate[0] * exposed
    n = _ratio(share.exposure[0], exposed)  # in days like this one, or four weeks like these
    enough = (_number_of(usable[before]) >= MIN_SHARE_DAYS) & (_number_of(usable[now]) >= min(MIN_SHARE_DAYS, days))
    z, excess = np.zeros((2, possible.size))
    z[some] = np.where(enough, deviation(count, expected, phi * (1 + _ratio(1.0, n))), 0.0)
    excess[some] = np.where(enough, count - expected, 0.0)
    return z, excess


def _ratio(numerator: npt.ArrayLike, denominator: Array) -> Array:
    """The quotient, and 0 where the denominator is not positive."""
    above, below = np.broadcast_arrays(numerator, denominator)
    return np.asarray(np.divide(above, below, out=np.zeros(above.shape), where=below > 0))


def _median(values: Array, known: npt.NDArray[np.int_]) -> Array:
    """The median of the known values of each series; NaN for a series without any, of which `nanmedian` would warn."""
    ordered = np.sort(values, axis=0)  # NaN comes last
    middle = np.stack([(known - 1) // 2, known // 2])
    return np.asarray(np.take_along_axis(ordered, middle, axis=0).mean(axis=0))


def _number_of(mask: Mask) -> npt.NDArray[np.int_]:
    return np.asarray(mask.sum(axis=0))


def _since_first_count(counts: pd.DataFrame) -> pd.DataFrame:
    """Without the zeros before the first count of a series, when the event was not there yet, or not announced."""
    return counts.where(np.logical_or.accumulate(counts.to_numpy() > 0, axis=0))


def _is_open(window: Array) -> Mask:
    return np.asarray((window[-CLOSED_DAYS:] > 0).any(axis=0))


def _judge(
    kind: Kind,
    event_name: str,
    days: Collection[date],
    score: Callable[..., tuple[Array, Mask]],
    length: int,
    *matrices: pd.DataFrame,
    per: str | None = None,
) -> list[Finding]:
    """Score each of `days` by the `length` rows of each matrix that end on it; rows before the first are NaN."""
    index, series = pd.DatetimeIndex(matrices[0].index), [str(name) for name in matrices[0].columns]
    if not all(m.index.equals(index) and m.columns.equals(matrices[0].columns) for m in matrices):
        raise ValueError("the matrices differ in their days or their series")
    if (np.diff(index.to_numpy()) != np.timedelta64(1, "D")).any():
        raise ValueError("the rows of the matrix are not consecutive days")
    if not series:
        return []
    position = {timestamp.date(): row for row, timestamp in enumerate(index)}
    if not position.keys() >= set(days):
        raise ValueError("the matrix lacks a day that is to be judged")
    padded = [np.pad(m.to_numpy(np.float64), ((length - 1, 0), (0, 0)), constant_values=np.nan) for m in matrices]
    # Of each day and series, the rows that end on the day: days x series x length.
    windows = [np.lib.stride_tricks.sliding_window_view(values, length, axis=0) for values in padded]
    ordered, step = sorted(days), max(1, _JUDGED_TOGETHER // (length * len(series)))
    findings = []
    for start in range(0, len(ordered), step):
        some = ordered[start : start + step]
        rows = [position[day] for day in some]
        z, found = score(*(values[rows].reshape(-1, length).T for values in windows))
        for n in np.flatnonzero(found):
            day, column = divmod(int(n), len(series))
            # Rounded, because the last bits of a sum depend on how many series are added up together.
            findings.append(Finding(kind, event_name, series[column], some[day], round(abs(float(z[n])), 9), per))
    return findings
