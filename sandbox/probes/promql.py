"""Asking Prometheus: one query, its samples, and an error that says whose fault it is."""

from __future__ import annotations

import httpx

from sandbox.errors import Unproven, UsageError

Samples = list[tuple[dict[str, str], float]]
_SECONDS = 10.0
_SHOWN = 200


class NoMetrics(Unproven):
    """Prometheus did not answer, or not with samples: nothing is known of what it was asked."""


def query(url: str, promql: str, *, within: float = _SECONDS) -> Samples:
    """What a query gives now: (labels, value) of each sample; empty where nothing matches it.

    Args:
        url: of Prometheus, without `/api/v1`.
        promql: an expression that gives an instant vector or a scalar.
        within: seconds to wait for the answer.

    Raises:
        UsageError: Prometheus does not accept the expression, or it gives something else.
        NoMetrics: no answer, or none that Prometheus gives.
    """
    try:
        # trust_env: what the cluster answers is asked, not what a proxy of the environment does
        answer = httpx.get(f"{url}/api/v1/query", params={"query": promql}, timeout=within, trust_env=False)
    except httpx.TransportError as error:
        raise NoMetrics(f"no answer from Prometheus: {type(error).__name__} {error}".rstrip(), where=url) from error
    try:
        said = answer.json()
        if said["status"] == "success":
            return _samples(promql, said["data"]["resultType"], said["data"]["result"])
        kind, words = str(said["errorType"]), str(said["error"])
    except (ValueError, LookupError, TypeError) as error:
        words = f"HTTP {answer.status_code} and nothing that Prometheus says: {answer.text[:_SHOWN]!r}"
        raise NoMetrics(words, where=url) from error
    if kind == "bad_data":
        raise UsageError(f"Prometheus does not accept {promql!r}: {words}", where=url, fix="mend the query")
    raise NoMetrics(f"Prometheus could not answer {promql!r}: {kind}: {words}", where=url)


def _samples(promql: str, kind: str, result: list[object]) -> Samples:
    if kind == "scalar":
        return [({}, float(str(result[1])))]
    if kind != "vector":
        words = f"{promql!r} gives a {kind}, and a sample of now is wanted"
        raise UsageError(words, fix="leave out the range, or put a function such as avg_over_time around it")
    samples: Samples = []
    for each in result:
        if not isinstance(each, dict):
            raise TypeError(each)
        samples.append((each["metric"], float(each["value"][1])))
    return samples
