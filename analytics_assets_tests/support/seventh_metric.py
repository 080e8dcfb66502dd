"""What test_adding_a_metric runs on its copy of the project: a day of everything, and what is then there, as JSON."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import dagster as dg

import analytics_assets
from analytics_assets.contract import metric
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.settings import Settings
from analytics_assets.telemetry import Telemetry, TelemetryError
from analytics_assets_tests.support.pipeline import Pipeline, checks


def outcome(asset: str, day: date) -> dict[str, object]:
    """Run the daily job for one day and tell what has become of one asset."""
    settings = Settings.from_env()
    definitions = build_definitions(settings)
    with Pipeline.open(settings) as pipeline:
        result = definitions.resolve_job_def(daily_metrics_job.name).execute_in_process(
            instance=pipeline.instance, tags=range_tags(day, day), raise_on_error=False
        )
        stored = [[*key, count] for key, count in pipeline.stored(asset, day).items()]
        passed = {name: evaluation.passed for name, evaluation in checks(pipeline, result, asset).items()}
        materialized = sorted(map(str, pipeline.materialized(asset)))
    try:
        with Telemetry(settings.dump_dir, strict=True) as telemetry:
            telemetry.count(metric(asset).event_names[0], event_id=7)
        refused = False
    except TelemetryError:
        refused = True
    node = definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    (reference,) = node.metadata["dagster/code_references"].code_references
    lines = Path(reference.file_path).read_text(encoding="utf-8").splitlines()[reference.line_number - 1 :]
    return {
        "package": analytics_assets.__file__,
        "success": result.success,
        "stored": stored,
        "passed": passed,
        "materialized": materialized,
        "refused by telemetry": refused,
        "counted from": [key.to_user_string() for key in node.parent_keys],
        "described": node.description,
        "code": [reference.file_path, *(line.strip() for line in lines[:2])],
    }


if __name__ == "__main__":
    json.dump(outcome(sys.argv[1], date.fromisoformat(sys.argv[2])), sys.stdout)
