"""The only place that speaks to a Kubernetes API server."""

from sandbox.kube.client import Kube
from sandbox.kube.exec import ExecResult
from sandbox.kube.failures import ApiError, Unreachable
from sandbox.kube.resources import Object, label
from sandbox.kube.transport import Response
from sandbox.kube.wait import Seen, wait_for

__all__ = ["ApiError", "ExecResult", "Kube", "Object", "Response", "Seen", "Unreachable", "label", "wait_for"]
