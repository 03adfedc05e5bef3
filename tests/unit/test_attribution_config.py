"""Attribution's settings: lists, patterns, and what dcgm-exporter's variables mean here."""

from __future__ import annotations

import pytest

from gputel import config
from gputel.collector.attribution import AttributionSettings
from gputel.errors import ConfigError


def test_dcgm_exporters_variables() -> None:
    loaded = config.load(
        environment={
            "DCGM_EXPORTER_KUBERNETES": "true",
            "DCGM_EXPORTER_KUBERNETES_ENABLE_POD_UID": "true",
            "DCGM_EXPORTER_KUBERNETES_POD_LABEL_ALLOWLIST_REGEX": "^app$, ^team$",
            "DCGM_POD_RESOURCES_KUBELET_SOCKET": "/run/kubelet.sock",
            "DCGM_HPC_JOB_MAPPING_DIR": "/run/jobs",
        }
    )
    assert loaded.attribution == AttributionSettings(
        mode="labels",
        pod_uid=True,
        pod_labels=("^app$", "^team$"),
        pod_resources_socket="/run/kubelet.sock",
        hpc_job_mapping_dir="/run/jobs",
    )
    off = config.load(environment={"DCGM_EXPORTER_KUBERNETES": "false"})
    assert off.attribution == AttributionSettings()


def test_our_own_variable_wins() -> None:
    environment = {"DCGM_EXPORTER_KUBERNETES": "true", "GPUTEL_ATTRIBUTION__MODE": "off"}
    assert config.load(environment=environment).attribution.mode == "off"


def test_a_list_from_a_variable() -> None:
    environment = {"GPUTEL_ATTRIBUTION__GPU_RESOURCES": "nvidia.com/gpu, nvidia.com/gpu-small"}
    loaded = config.load(environment=environment)
    assert loaded.attribution.gpu_resources == ("nvidia.com/gpu", "nvidia.com/gpu-small")


def test_a_pattern_that_is_none_is_found_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as found:
        config.load(environment={"GPUTEL_ATTRIBUTION__POD_LABELS": "ok,("})
    assert "GPUTEL_ATTRIBUTION__POD_LABELS: attribution.pod_labels: '('" in str(found.value)
    (problem,) = config.problems("attribution: {pod_labels: ['[']}", "file.yaml", {})
    assert "file.yaml: attribution.pod_labels" in str(problem)


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "both"), ("poll_seconds", 0), ("keep_seconds", -1), ("kubernetes_api", "ftp://x")],
)
def test_values_out_of_range(key: str, value: object) -> None:
    (problem,) = config.problems(f"attribution: {{{key}: {value}}}", "f", {})
    assert problem.path == f"attribution.{key}"
