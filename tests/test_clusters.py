"""Files that start clusters: against the schemas of those who read them, and by what must hold in all of them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
LAUNCHED = ["cluster.yaml", "configs/cluster_onprem.yaml"]
APPLIED = ["configs/raycluster.yaml", "configs/rayjob.yaml"]
PINS = ROOT / "configs" / "constraints.txt"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def pins() -> dict[str, Version]:
    """What every node installs."""
    lines = [line for line in PINS.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def spec_of(name: str) -> Any:
    """The Ray cluster of a resource."""
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> Iterator[Any]:
    spec = spec_of(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def kuberay_problems(resource: Any) -> list[str]:
    schema = json.loads((ROOT / "tests" / "schemas" / "kuberay-1.7.0.json").read_text("utf-8"))
    kind = {**schema["kinds"][resource["kind"]], "$defs": schema["$defs"]}
    return [error.message for error in jsonschema.Draft202012Validator(kind).iter_errors(resource)]


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_launcher_takes_it(name: str) -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    schema = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(read(name), json.loads(schema.read_text("utf-8")))
    validate_config(prepare_config(read(name)))  # as `ray up` does before it starts anything


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_are_started_with_a_token_and_where_jobs_find_the_command(name: str) -> None:
    cluster = read(name)
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert 'PATH="$HOME/env/bin:$PATH" RAY_AUTH_MODE=token ~/env/bin/ray start' in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    mounted = [place for place in cluster["file_mounts"].values() if not place.startswith("~")]
    assert all((ROOT / place).exists() for place in mounted)


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_installs_the_same_versions(name: str) -> None:
    installs = [c for c in read(name)["setup_commands"] if "pip install" in c]
    assert installs
    assert all("--constraint ~/kd-study/configs/constraints.txt" in c for c in installs)


def test_the_pins_are_of_everything_that_kd_study_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    assert {requirement.name for requirement in needed} == set(pins())
    for requirement in needed:
        assert pins()[requirement.name] in requirement.specifier


def test_on_aws_the_head_stays_and_workers_may_be_taken_back() -> None:
    cluster = read("cluster.yaml")
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == worker["max_workers"] == cluster["max_workers"]


@pytest.mark.parametrize("name", APPLIED)
def test_kuberay_takes_it(name: str) -> None:
    assert kuberay_problems(read(name)) == []


def test_the_schema_finds_mistakes() -> None:
    for place, value in (
        (("spec", "headGroupSpec", "template", "spec", "container"), []),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "workerGroupSpecs", 0, "replicas"), "four"),
        (("kind",), "RayJob"),
    ):
        wrong: Any = read("configs/raycluster.yaml")
        node: Any = wrong
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        if place == ("kind",):
            wrong["spec"] |= {"entrypoint": 1}
        assert kuberay_problems(wrong), place


@pytest.mark.parametrize("name", APPLIED)
def test_in_kubernetes_nothing_is_open_to_the_world(name: str) -> None:
    spec = spec_of(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert spec["rayVersion"] == str(pins()["ray"])
    assert not any(pod.get("hostNetwork") for pod in pods(name))


@pytest.mark.parametrize("name", APPLIED)
def test_all_pods_have_one_image_and_the_shared_folder(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    images = {container["image"] for pod in pods(name) for container in pod["containers"]}
    assert {image.partition(":")[2] for image in images} == {project["version"]}
    assert len(images) == 1
    for pod in pods(name):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) == volumes
            assert mounts["storage"] == "/shared"


@pytest.mark.parametrize("name", APPLIED)
def test_a_worker_is_killed_only_after_ray_has_let_its_trials_leave(name: str) -> None:
    (group,) = spec_of(name)["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    drains_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0 < drains_s < pod["terminationGracePeriodSeconds"]


def test_the_job_has_the_clusters_pods_and_time_to_save_itself() -> None:
    job, cluster = read("configs/rayjob.yaml")["spec"], spec_of("configs/raycluster.yaml")
    inner = json.dumps(job["rayClusterSpec"])
    config = [{"name": "config", "mountPath": "/config"}]
    config += [{"name": "config", "configMap": {"name": "kd-study-config"}}]
    for part in config:
        inner = inner.replace(json.dumps(part) + ", ", "")
    assert json.loads(inner) == cluster
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == {
        "RAY_JOB_STOP_SIGNAL": "SIGTERM",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }
    assert re.fullmatch(r"kd-study run /config/\S+\.yaml", job["entrypoint"])
