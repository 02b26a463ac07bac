"""Who said no, read from the API server's own words."""

from __future__ import annotations

from http import HTTPStatus

from sandbox.kube import Response
from sandbox.spec.attack import Denier

# The first that matches counts. Source: Kubernetes 1.37, plugin/pkg/admission and the RBAC authorizer.
_WORDS: tuple[tuple[Denier, tuple[str, ...]], ...] = (
    ("P", ("violates PodSecurity",)),
    ("V", ("ValidatingAdmissionPolicy", "admission webhook")),
    (
        "Q",
        (
            "exceeded quota",
            "failed quota",
            "must specify",
            "usage per Container",
            "usage per Pod",
            "usage per Persistent",
        ),
    ),
    ("R", ("attempting to grant RBAC permissions", " cannot ")),
)


def denied_by(answer: Response) -> Denier | None:
    """Who denied it: R, P, V, Q, D, A; None when the answer is no denial that can be told (an error, not an answer)."""
    body = answer.body if isinstance(answer.body, dict) else {}
    message = str(body.get("message", ""))
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return "A"
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS and "disruption budget" in message:
        return "D"
    if answer.status in {HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}:
        for denier, words in _WORDS:
            if any(word in message for word in words):
                return denier
    return None


def said(answer: Response) -> str:
    """The server's message, or what there is of an answer."""
    body = answer.body if isinstance(answer.body, dict) else {}
    return str(body.get("message") or f"HTTP {answer.status} {body.get('kind', '')}".strip())
