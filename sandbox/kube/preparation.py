"""What a prepared cluster holds: its shape, and what is deployed on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.kube import guardrails, stacks
from sandbox.kube.client import Kube
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.guardrail import Guardrail
from sandbox.spec.stack import Stack

_MODELS = "/v1/models"  # of a stack that serves one


@dataclass(frozen=True)
class Preparation:
    """What a prepared cluster holds.

    Attributes:
        spec: its file.
        guardrails: with their values, in the order they are applied.
        stacks: with their values, in the order they are deployed.
        images: names of clusters/images/ that its nodes have beside those of the spec.
    """

    spec: ClusterSpec
    guardrails: Sequence[tuple[Guardrail, Mapping[str, Any]]] = ()
    stacks: Sequence[tuple[Stack, Mapping[str, Any]]] = ()
    images: Sequence[str] = ()

    def objects(self, refs: Mapping[str, str]) -> dict[str, Any]:
        """All that is deployed: name -> objects. Where pods live the cluster itself says.

        Args:
            refs: name of clusters/images/ -> reference.
        """
        found: dict[str, Any] = {
            f"guardrail {each.metadata.name}": guardrails.render(each, values, images=refs, pod_cidrs=[])
            for each, values in self.guardrails
        }
        return found | {each.metadata.name: stacks.render(each, values, images=refs) for each, values in self.stacks}

    def deploy(self, kube: Kube, refs: Mapping[str, str], addresses: Sequence[str]) -> list[str]:
        """Deploy it all, and wait until each answered.

        Returns:
            Where each stack answers with 200: a URL on the first node.

        Raises:
            ClusterError: as `guardrails.apply` and `stacks.deploy`.
        """
        for guardrail, values in self.guardrails:
            guardrails.apply(kube, guardrail, values, images=refs)
        made = [stacks.deploy(kube, stack, values, images=refs, addresses=addresses) for stack, values in self.stacks]
        return [each.url + (stack.ready.path or _MODELS) for each, (stack, _) in zip(made, self.stacks, strict=True)]

    @property
    def words(self) -> str:
        """For people: `solo with tenant, vllm-sim`."""
        names = [each.metadata.name for each, _ in self.guardrails]
        names += [each.metadata.name for each, _ in self.stacks]
        return self.spec.metadata.name + (f" with {', '.join(names)}" if names else "")
