"""Configuration of attribution (section `attribution`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec


class AttributionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who uses which GPU, as the collector's exporter shows it."""

    #: info: gputel_gpu_attribution_info to join on; labels: also on every series of a GPU.
    mode: Literal["off", "info", "labels"] = "info"
    #: How often the kubelet and the job files are read.
    poll_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5
    #: How long the last answer holds when no other comes.
    keep_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60
    #: Kubernetes: the kubelet's pod-resources socket; nothing is read where there is none.
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    #: Kubernetes: extended resources that are GPUs; nvidia.com/mig-* always are.
    gpu_resources: tuple[str, ...] = ("nvidia.com/gpu", "nvidia.com/gpu.shared")
    #: Kubernetes: regular expressions; a pod's labels whose name one of them finds are shown.
    #: Not empty: the API server is asked for this node's pods.
    pod_labels: tuple[str, ...] = ()
    #: Kubernetes: show pod_uid, for which the API server is asked too.
    pod_uid: bool = False
    #: Kubernetes: this node's name there; the source's node when empty.
    kubernetes_node: str = ""
    #: Kubernetes: the API server, and where token and ca.crt of the service account are.
    kubernetes_api: Annotated[str, msgspec.Meta(pattern=r"^https?://.+$")] = (
        "https://kubernetes.default.svc"
    )
    service_account_dir: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    #: Slurm and others: directory of files named N, or N.M for a MIG instance, that hold the
    #: ids of the jobs on GPU N, one a line; null: none.
    hpc_job_mapping_dir: str | None = None


def compile_patterns(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    """`pod_labels`, ready to search with. ValueError: one of them is no regular expression."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return tuple(compiled)
