"""What is in a prepared cluster, as one hash: two of the same hash are interchangeable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox.cluster import config, node_files
from sandbox.cluster.snapshots.store import FORMAT
from sandbox.spec.cluster import ClusterSpec


@dataclass(frozen=True)
class Content:
    """What a prepared cluster is asked to hold.

    Attributes:
        spec: the cluster's file.
        image: reference of the node image; it changes with every file that the image is made of.
        images: references of the images in the nodes.
        manifests: of the addons.
        deployed: name -> all that decides what is deployed: its objects, rendered.
    """

    spec: ClusterSpec
    image: str
    images: Sequence[str]
    manifests: Sequence[Mapping[str, Any]] = ()
    deployed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The hash. How we configure a cluster is part of it, so that a newer version of us finds no old snapshot."""
        parts = {
            "format": FORMAT,
            "spec": self.spec.model_dump(mode="json", by_alias=True, exclude={"metadata": {"description"}}),
            "kind": config.render(self.spec, image=self.image, cgroup="", volumes=["/var"] * len(self.spec.nodes)),
            "files": [node_files.of_node(self.spec, position) for position in range(len(self.spec.nodes))],
            "images": sorted(self.images),
            "manifests": [*self.manifests],
            "deployed": {**self.deployed},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def words(self) -> str:
        """For people: `solo with vllm-sim, tenant`."""
        deployed = ", ".join(self.deployed)
        return self.spec.metadata.name + (f" with {deployed}" if deployed else "")
