"""The GraphQL requests that the demonstration sends to the Dagster webserver, as the webserver's own UI does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import requests

from analytics_assets.days import span
from analytics_assets.local.server import NO_PROXY

_LAUNCH: Final = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
_BACKFILL: Final = """
query Backfill($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }
"""
_UNFINISHED: Final = """
query Unfinished($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { unfinishedRuns { runId } } }
}
"""
_EXECUTE: Final = """
mutation Execute($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""
_RUN: Final = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_MATERIALIZED: Final = """
query Materialized($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetPartitionStatuses {
      ... on TimePartitionStatuses { ranges { status startKey endKey } }
    }
  }
}
"""
_CHECKS: Final = """
query Checks($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetChecksOrError {
      ... on AssetChecks {
        checks { name executionForLatestMaterialization { status evaluation { severity } } }
      }
    }
  }
}
"""


class WebserverError(RuntimeError):
    """The webserver refused a request."""


@dataclass(frozen=True)
class Webserver:
    """A running Dagster webserver. Assets are named like `event_signups` and `analytics_source/signups`."""

    url: str

    def query(self, text: str, **variables: object) -> Any:
        """Send one GraphQL request. Returns the `data` of the answer."""
        request = {"query": text, "variables": variables}
        response = requests.post(f"{self.url}/graphql", json=request, timeout=60, proxies=NO_PROXY)
        answer = response.json()
        if not response.ok or "errors" in answer:
            raise WebserverError("the webserver refused a request; does its version match this package?")
        return answer["data"]

    def launch_backfill(self, assets: Sequence[str], days: Iterable[date]) -> str:
        """Launch one backfill of these assets and days. Returns its id."""
        params = {"assetSelection": _asset_keys(assets), "partitionNames": [str(day) for day in days]}
        result = self.query(_LAUNCH, params=params)["launchPartitionBackfill"]
        if "backfillId" not in result:
            raise WebserverError(f"the backfill was not launched: {result['__typename']}")
        return str(result["backfillId"])

    def backfill_status(self, backfill_id: str) -> str:
        """REQUESTED, COMPLETED_SUCCESS, COMPLETED_FAILED, FAILED, CANCELED or an intermediate status."""
        return str(self.query(_BACKFILL, id=backfill_id)["partitionBackfillOrError"]["status"])

    def unfinished_runs(self, backfill_id: str) -> list[str]:
        """The ids of a backfill's runs that are queued or in progress."""
        found = self.query(_UNFINISHED, id=backfill_id)["partitionBackfillOrError"]["unfinishedRuns"]
        return [str(run["runId"]) for run in found]

    def launch_run(self, assets: Sequence[str], checks: Iterable[tuple[str, str]]) -> str:
        """Materialize these assets, none of them partitioned, and execute only these checks. Returns the run's id.

        A check is an asset and a name.
        """
        selector = {
            "repositoryLocationName": "analytics_assets",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": _asset_keys(assets),
            "assetCheckSelection": [{"assetKey": _asset_key(asset), "name": name} for asset, name in checks],
        }
        result = self.query(_EXECUTE, params={"selector": selector, "runConfigData": "{}"})["launchRun"]
        if "run" not in result:
            raise WebserverError(f"the run was not launched: {result['__typename']}")
        return str(result["run"]["runId"])

    def run_status(self, run_id: str) -> str:
        """SUCCESS, FAILURE, CANCELED or an intermediate status."""
        return str(self.query(_RUN, id=run_id)["runOrError"]["status"])

    def materialized_days(self, assets: Sequence[str]) -> dict[str, set[date]]:
        """Asset -> days that Dagster shows as materialized."""
        nodes = self.query(_MATERIALIZED, keys=_asset_keys(assets))["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"]): {
                day
                for days_range in node["assetPartitionStatuses"]["ranges"]
                if days_range["status"] == "MATERIALIZED"
                for day in span(date.fromisoformat(days_range["startKey"]), date.fromisoformat(days_range["endKey"]))
            }
            for node in nodes
        }

    def check_statuses(self, assets: Sequence[str]) -> dict[str, dict[str, str]]:
        """Asset -> check -> SUCCEEDED, WARNED, FAILED, EXECUTION_FAILED, IN_PROGRESS, SKIPPED or NOT EXECUTED."""
        nodes = self.query(_CHECKS, keys=_asset_keys(assets))["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"]): {
                check["name"]: _status(check["executionForLatestMaterialization"])
                for check in node["assetChecksOrError"]["checks"]
            }
            for node in nodes
        }


def _status(execution: Any) -> str:
    if not execution:
        return "NOT EXECUTED"
    warned = execution["status"] == "FAILED" and execution["evaluation"]["severity"] == "WARN"
    return "WARNED" if warned else str(execution["status"])


def _asset_keys(assets: Sequence[str]) -> list[dict[str, list[str]]]:
    return [_asset_key(asset) for asset in assets]


def _asset_key(asset: str) -> dict[str, list[str]]:
    return {"path": asset.split("/")}
