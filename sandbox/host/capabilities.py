"""What the kernel lets this machine's processes ever hold."""

from __future__ import annotations

from pathlib import Path

# include/uapi/linux/capability.h, in order of their bit.
NAMES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
_STATUS = Path("/proc/self/status")
_LAST = Path("/proc/sys/kernel/cap_last_cap")


def lacking(status: str | None = None, last: int | None = None) -> list[str]:
    """Name the capabilities (`CAP_...`) that the bounding set of this process lacks.

    Args:
        status: text of `/proc/<pid>/status`; this process's own when not given.
        last: the highest capability the kernel knows; read from `/proc/sys` when not given.
    """
    text = _STATUS.read_text() if status is None else status
    top = int(_LAST.read_text()) if last is None else last
    words = [line.split()[1] for line in text.splitlines() if line.startswith("CapBnd:")]
    if not words:  # a kernel older than 2.6.26; nothing there to bound
        return []
    bounding = int(words[0], 16)
    return [f"CAP_{name}" for bit, name in enumerate(NAMES) if bit <= top and not bounding & (1 << bit)]
