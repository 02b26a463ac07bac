"""Every way this tool can stop, as a tree.

    SandboxError                 exit code   meaning
    ├── UsageError                   2       bad command line, spec or name; nothing was touched
    ├── Unproven                     3       the harness could not prove it (verdict `invalid`)
    ├── EnvironmentMissing           4       the machine lacks something; the fix is named
    │   ├── ImageUnavailable         4       an image can be neither pulled nor built
    │   └── ClusterError             4       the cluster could not be made, reached or removed
    │       └── NotOurs              1       what others made is in the way; it is left alone
    └── DeadlineExceeded             3       a wait ran out; says what it last saw

Exit codes of a run: 0 pass, 1 fail, 2 usage or bad spec, 3 invalid, 4 environment missing, 130 interrupted.
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_USAGE = 2
EXIT_INVALID = 3
EXIT_ENVIRONMENT = 4
EXIT_INTERRUPTED = 130
_DETAILS = 3


class SandboxError(Exception):
    """Something a person has to know: what happened, where, and what to do next.

    Args:
        what: one sentence, what happened.
        where: file with line and key path, or the thing it happened to.
        fix: the next command or change, as it would be typed.
        details: further lines, shown indented: all problems at once, log tails.
    """

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, what: str, *, where: str = "", fix: str = "", details: list[str] | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        self.details = details or []
        super().__init__(what)

    def __str__(self) -> str:
        """The whole message as shown on a terminal, without colour."""
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {detail}" for detail in self.details]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(SandboxError):
    """The command line, a spec or a name is wrong. Raised before anything is touched."""

    exit_code = EXIT_USAGE


class Unproven(SandboxError):
    """The harness could not prove what it was asked to prove; the verdict is `invalid`."""

    exit_code = EXIT_INVALID


class DeadlineExceeded(Unproven):
    """A wait ran out of time. `details` holds what was last seen."""


class EnvironmentMissing(SandboxError):
    """The machine lacks something. `fix` is the exact next command."""

    exit_code = EXIT_ENVIRONMENT


class ImageUnavailable(EnvironmentMissing):
    """An image can be neither pulled nor built here."""


class ClusterError(EnvironmentMissing):
    """The cluster could not be made, reached, or removed."""


class NotOurs(ClusterError):
    """What others made has the cluster's name, or is on its network. Nothing of it was touched."""

    exit_code = EXIT_FAIL


def told(error: Exception) -> list[str]:
    """What happened, where, what was seen last, what to do: on one line of a report."""
    if not isinstance(error, SandboxError):
        return [f"{type(error).__name__}: {error}"]
    head = f"{error.where}: {error.what}" if error.where else error.what
    return [head, *error.details[:_DETAILS], *([f"fix: {error.fix}"] if error.fix else [])]
