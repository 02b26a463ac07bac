"""The one seam to pytest-kubernetes: its cluster manager, on a sandbox. Loaded only where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_kubernetes.options import ClusterOptions
from pytest_kubernetes.providers.base import AClusterManager

from sandbox.errors import EnvironmentMissing

if TYPE_CHECKING:
    from sandbox.pytest_plugin import Clusters

_SHAPE = "solo"
_OTHERS = ("k8s_provider", "k8s_kubeconfig", "k8s_kubeconfig_override")


@pytest.fixture(scope="session")
def k8s_manager(
    request: pytest.FixtureRequest, k8s_manager: Callable[..., Any], sandbox_clusters: Clusters
) -> Callable[..., Any]:
    """Tests written for pytest-kubernetes's `k8s` run on a sandbox, unless another provider was asked for."""
    asked = any(request.config.getoption(option, default=None) for option in _OTHERS)

    def choose(provider: str | None = None) -> Any:
        if provider not in {None, "sandbox"} or (provider is None and asked):
            return k8s_manager(provider)
        return manager_class(sandbox_clusters)

    return choose


def manager_class(clusters: Clusters) -> type[AClusterManager]:
    """A manager on the session's sandbox: `create` takes it, `delete` leaves its removal to the session."""

    class SandboxManager(AClusterManager):  # type: ignore[misc]  # untyped base
        """Its kubectl calls go to the sandbox's own kubeconfig."""

        @classmethod
        def get_binary_name(cls) -> str:
            """Its base class asks for a binary; ours is the kubectl of the node image."""
            return "kubectl"

        def _ensure_executable(self) -> None:
            from sandbox import images

            folder = str(images.tool("kubectl").parent)
            if folder not in os.environ["PATH"].split(os.pathsep):
                os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

        def create(self, cluster_options: ClusterOptions | None = None, timeout: int = 20, **kwargs: Any) -> None:
            """Take the session's sandbox; pytest-kubernetes's options of other providers do not apply."""
            del cluster_options, timeout, kwargs
            self._sandbox = clusters.up(_SHAPE)
            self._cluster_options.kubeconfig_path = Path(self._sandbox.kubeconfig)

        def delete(self) -> None:
            """The session removes it in the end, if it made it."""
            self._cluster_options.kubeconfig_path = None

        def load_image(self, image: str) -> None:
            """Have an image of the local engine in every node."""
            if self.kubeconfig is None:
                raise EnvironmentMissing("the cluster was not created", fix="call k8s.create() first")
            from sandbox.cluster import nodes

            nodes.load_images(self._sandbox, [image])

        def _on_create(self, cluster_options: ClusterOptions, **kwargs: Any) -> None:
            """Unused: `create` is ours."""

        def _on_delete(self) -> None:
            """Unused: `delete` is ours."""

    return SandboxManager
