"""The values for Dagster's Helm chart, as far as they can be held to something without Helm and a cluster."""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.instance.config import dagster_instance_config
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext

from analytics_assets.local.server import ROOT
from analytics_assets.settings import VARIABLES, Settings
from analytics_assets_tests.support.cluster import dagster_yaml

TEXT = (ROOT / "docs/kubernetes-values.yaml").read_text(encoding="utf-8")
VALUES = yaml.safe_load(TEXT)
(DEPLOYMENT,) = VALUES["dagster-user-deployments"]["deployments"]

CHART: dict[str, type | tuple[str, ...]] = {
    "computeLogManager.type": tuple(
        f"{kind}ComputeLogManager" for kind in ("NoOp", "AzureBlob", "GCS", "S3", "Local", "Custom")
    ),
    "concurrency.enabled": bool,
    "concurrency.pools.defaultLimit": int,
    "concurrency.pools.granularity": ("run", "op"),
    "concurrency.runs.maxConcurrentRuns": int,
    "concurrency.runs.tagConcurrencyLimits[].key": str,
    "concurrency.runs.tagConcurrencyLimits[].limit": int,
    "concurrency.runs.tagConcurrencyLimits[].value": str,
    "dagster-user-deployments.deployments[].dagsterApiGrpcArgs[]": str,
    "dagster-user-deployments.deployments[].env[].name": str,
    "dagster-user-deployments.deployments[].env[].value": str,
    "dagster-user-deployments.deployments[].envSecrets[].name": str,
    "dagster-user-deployments.deployments[].image.pullPolicy": ("Always", "IfNotPresent", "Never"),
    "dagster-user-deployments.deployments[].image.repository": str,
    "dagster-user-deployments.deployments[].image.tag": str,
    "dagster-user-deployments.deployments[].includeConfigInLaunchedRuns.enabled": bool,
    "dagster-user-deployments.deployments[].name": str,
    "dagster-user-deployments.deployments[].port": int,
    "dagster-user-deployments.deployments[].volumeMounts[].mountPath": str,
    "dagster-user-deployments.deployments[].volumeMounts[].name": str,
    "dagster-user-deployments.deployments[].volumes[].name": str,
    "dagster-user-deployments.deployments[].volumes[].persistentVolumeClaim.claimName": str,
    "dagsterDaemon.runMonitoring.cancelTimeoutSeconds": int,
    "dagsterDaemon.runMonitoring.enabled": bool,
    "dagsterDaemon.runMonitoring.freeSlotsAfterRunEndSeconds": int,
    "dagsterDaemon.runMonitoring.maxRuntimeSeconds": int,
    "dagsterDaemon.runMonitoring.pollIntervalSeconds": int,
    "dagsterDaemon.runMonitoring.startTimeoutSeconds": int,
    "dagsterDaemon.runRetries.enabled": bool,
    "dagsterDaemon.runRetries.maxRetries": int,
    "dagsterDaemon.runRetries.retryOnAssetOrOpFailure": bool,
    "generatePostgresqlPasswordSecret": bool,
    "global.postgresqlSecretName": str,
    "postgresql.enabled": bool,
    "postgresql.postgresqlDatabase": str,
    "postgresql.postgresqlHost": str,
    "postgresql.postgresqlUsername": str,
    "runLauncher.config.k8sRunLauncher.imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "runLauncher.config.k8sRunLauncher.loadInclusterConfig": bool,
    "runLauncher.type": ("CeleryK8sRunLauncher", "K8sRunLauncher", "CustomRunLauncher"),
    "telemetry.enabled": bool,
}
"""Every path of our values, with the type or the choices that the chart states.

Read by hand on 2026-11-26 in the classes from which the chart's `values.schema.json` is generated:
`helm/dagster/schema` of dagster-io/dagster, the newest text of each that was to be had. The chart declares
`runMonitoring` as a mapping of anything; there the type is that of Dagster's own configuration. Volumes and variables
have the types of Kubernetes.
"""


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Each value that holds no others, by its path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def find_problems(values: object) -> list[str]:
    """What the chart would refuse, or silently ignore."""
    problems = []
    for path, value in leaves(values):
        expected = CHART.get(path, ())
        fits = type(value) is expected if isinstance(expected, type) else value in expected
        if not fits:
            problems.append(path)
    return problems


def test_the_chart_knows_every_value() -> None:
    assert find_problems(VALUES) == []
    assert {path for path, _ in leaves(VALUES)} == CHART.keys()


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("telemetry", "enable", False),
        ("telemetry", "enabled", "no"),
        ("runLauncher", "type", "KubernetesRunLauncher"),
        ("postgresql", "postgresqlHost", 5432),
    ],
)
def test_a_value_that_the_chart_does_not_know_is_found(section: str, name: str, value: object) -> None:
    changed = copy.deepcopy(VALUES)
    changed[section][name] = value
    assert find_problems(changed) == [f"{section}.{name}"]


# --- what the chart makes of them


def snake_case(value: Any) -> Any:
    """Return the values by the names that Dagster's own configuration has, as the chart's templates do."""
    if isinstance(value, Mapping):
        return {re.sub("(?<!^)(?=[A-Z])", "_", name).lower(): snake_case(inner) for name, inner in value.items()}
    return [snake_case(inner) for inner in value] if isinstance(value, list) else value


def instance_yaml() -> dict[str, Any]:
    """The sections of `dagster.yaml` that the values are about."""
    daemon = snake_case(VALUES["dagsterDaemon"])
    concurrency = snake_case(VALUES["concurrency"])
    assert concurrency.pop("enabled")
    return {**daemon, "concurrency": concurrency, "telemetry": VALUES["telemetry"]}


def read_instance(folder: Path, sections: Mapping[str, Any]) -> Mapping[str, Any]:
    (folder / "dagster.yaml").write_text(yaml.safe_dump(dict(sections)))
    return dagster_instance_config(str(folder))[0]


def test_dagster_takes_the_instance_and_it_limits_what_ours_does(tmp_path: Path) -> None:
    sections = instance_yaml()
    read_instance(tmp_path, sections)
    ours = yaml.safe_load(dagster_yaml())
    for name in ("run_monitoring", "concurrency", "telemetry"):
        assert sections[name] == ours[name]


def test_dagster_refuses_an_instance_with_another_name(tmp_path: Path) -> None:
    sections = instance_yaml()
    sections["run_monitoring"]["max_run_time_seconds"] = sections["run_monitoring"].pop("max_runtime_seconds")
    with pytest.raises(DagsterInvalidConfigError, match="max_run_time_seconds"):
        read_instance(tmp_path, sections)


FROM_THE_CHART = {
    "dagster_home": "/opt/dagster/dagster_home",
    "instance_config_map": "analytics-dagster-instance",
    "job_namespace": "default",
    "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
    "service_account_name": "analytics-dagster",
}


@pytest.mark.parametrize(("extra", "accepted"), [({}, True), ({"image_pull": "Never"}, False)])
def test_the_run_launcher_takes_its_section(extra: dict[str, str], accepted: bool) -> None:
    given = snake_case(VALUES["runLauncher"]["config"]["k8sRunLauncher"]) | FROM_THE_CHART | extra
    result = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), given)
    assert bool(result.success) is accepted, result.errors


def test_a_run_gets_the_settings_and_volumes_of_the_deployment() -> None:
    assert DEPLOYMENT["includeConfigInLaunchedRuns"]["enabled"]
    given = {
        "env": DEPLOYMENT["env"],
        "env_secrets": [secret["name"] for secret in DEPLOYMENT["envSecrets"]],
        "image_pull_policy": DEPLOYMENT["image"]["pullPolicy"],
        "volumes": DEPLOYMENT["volumes"],
        "volume_mounts": DEPLOYMENT["volumeMounts"],
    }
    container = K8sContainerContext.create_from_config({"k8s": given}).run_k8s_config.container_config
    assert [variable["name"] for variable in container["env"]] == [each["name"] for each in DEPLOYMENT["env"]]
    with pytest.raises(DagsterInvalidConfigError, match="volume_mount"):
        K8sContainerContext.create_from_config({"k8s": {"volume_mount": given["volume_mounts"]}})


# --- settings


def test_the_variables_are_those_of_the_settings() -> None:
    given = {each["name"]: each["value"] for each in DEPLOYMENT["env"]}
    (secret,) = re.findall(r"# (ANALYTICS_\w+(?:, \w+)+)\n +envSecrets:", TEXT)
    assert {*given, *secret.split(", ")} <= {*VARIABLES, "DAGSTER_EVENT_BATCH_SIZE"}
    settings = Settings.from_env(given)
    assert settings.broker_url is None
    assert settings.executor == "runs"
    mounts = [Path(mount["mountPath"]) for mount in DEPLOYMENT["volumeMounts"]]
    assert settings.dump_url is not None
    for folder in (Path(settings.dump_url.removeprefix("file://")), settings.publish_dir):
        assert any(folder.is_relative_to(mount) for mount in mounts)


@pytest.mark.parametrize(
    ("reason", "again"), [(RunFailureReason.STEP_FAILURE, False), (RunFailureReason.RUN_EXCEPTION, True)]
)
def test_a_refused_run_is_not_run_again_and_one_that_lost_its_pod_is(reason: RunFailureReason, again: bool) -> None:
    @dg.op
    def refuse() -> None:
        raise dg.Failure("refused", allow_retries=False)

    @dg.job
    def refused() -> None:
        refuse()

    with dg.DagsterInstance.ephemeral(settings={"run_retries": instance_yaml()["run_retries"]}) as instance:
        run_id = refused.execute_in_process(instance=instance, raise_on_error=False).run_id
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert auto_reexecution_should_retry_run(instance, run, reason) is again
