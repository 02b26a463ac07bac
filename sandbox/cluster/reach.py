"""Do the nodes' own addresses answer from this machine? Load and probes reach stacks there, not through kubectl."""

from __future__ import annotations

import socket

from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube.wait import Seen, wait_for

_PORT = 6443  # of the API server inside its node, whatever port of the host kind publishes it on
_SECONDS = 5.0
_ONE_TRY_SECONDS = 1.0


class OutOfReach(ClusterError):
    """The cluster is well, and its nodes' addresses do not answer here."""


def require_reach(cluster: str, address: str, *, port: int = _PORT, within: float = _SECONDS) -> None:
    """Stop where a control plane does not answer on its own address; one that is up needs no more than five seconds.

    Raises:
        OutOfReach: it did not, `within` that many seconds.
    """

    def look() -> Seen[None]:
        try:
            socket.create_connection((address, port), timeout=_ONE_TRY_SECONDS).close()
        except OSError as error:
            return Seen(False, None, f"{address}:{port}: {error}")
        return Seen(True, None, "")

    try:
        wait_for(look, within=within, what=f"an answer of {address}:{port}")
    except DeadlineExceeded as error:
        raise OutOfReach(
            "the addresses of its nodes are not reachable from this machine; load and probes reach stacks there",
            where=cluster,
            fix="run this on Linux, or in a Linux virtual machine with Docker in it",
            details=[
                *error.details,
                "Docker Desktop is like that: its engine and the nodes live in a machine of their own",
            ],
        ) from error
