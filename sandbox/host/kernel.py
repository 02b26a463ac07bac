"""What the running kernel can do, read from its configuration and modules; nothing is loaded or made."""

from __future__ import annotations

import gzip
import platform
from dataclasses import dataclass
from pathlib import Path

PROC_CONFIG = Path("/proc/config.gz")
BOOT = Path("/boot")
MODULES = Path("/lib/modules")


@dataclass(frozen=True)
class Feature:
    """One kernel feature: its build option, its module, whether clusters need it, and what it is for."""

    name: str
    option: str
    module: str
    needed: bool
    purpose: str


FEATURES = (
    Feature("bridge", "CONFIG_BRIDGE", "bridge", needed=True, purpose="container networks"),
    Feature("veth", "CONFIG_VETH", "veth", needed=True, purpose="container networks"),
    Feature("iptables", "CONFIG_IP_NF_IPTABLES", "ip_tables", needed=True, purpose="Services, published ports"),
    Feature("overlay", "CONFIG_OVERLAY_FS", "overlay", needed=True, purpose="image layers"),
    Feature("nfqueue", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE", "xt_NFQUEUE", needed=False, purpose="NetworkPolicy"),
    Feature("nft_queue", "CONFIG_NFT_QUEUE", "nft_queue", needed=False, purpose="NetworkPolicy by nftables"),
    Feature("ipset", "CONFIG_IP_SET", "ip_set", needed=False, purpose="partitions between many nodes"),
    Feature("netem", "CONFIG_NET_SCH_NETEM", "sch_netem", needed=False, purpose="delay and loss faults in the kernel"),
)
WITHOUT = {
    "nfqueue": "NetworkPolicy needs nft_queue then",
    "nft_queue": "packets reach the policy daemon through iptables NFQUEUE instead",
    "ipset": "no fault that is shipped needs it",
    "netem": "no delay and no loss in the kernel; no fault that is shipped needs it",
}


def config() -> dict[str, str] | None:
    """Read the kernel's build options (`CONFIG_X` -> `y` or `m`), or None where the kernel does not tell."""
    boot = BOOT / f"config-{platform.release()}"
    if PROC_CONFIG.is_file():
        text = gzip.decompress(PROC_CONFIG.read_bytes()).decode()
    elif boot.is_file():
        text = boot.read_text()
    else:
        return None
    pairs = (line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    return dict(pairs)


def has(feature: Feature, options: dict[str, str] | None) -> bool | None:
    """Tell whether the kernel has `feature`, built in or as a module that can be loaded; None: it cannot be told."""
    if _loaded(feature.module):
        return True
    if options is None:
        return True if _module_file(feature.module) else None
    built = options.get(feature.option)
    return built == "y" or (built == "m" and _module_file(feature.module))


def _loaded(module: str) -> bool:
    return (Path("/sys/module") / module.replace("-", "_")).is_dir()


def _module_file(module: str) -> bool:
    """Tell whether modprobe would find `module`."""
    folder = MODULES / platform.release()
    wanted = {f"{module}.ko", f"{module}.ko.xz", f"{module}.ko.zst", f"{module}.ko.gz"}
    for listing in ("modules.dep", "modules.builtin"):
        path = folder / listing
        lines = path.read_text().splitlines() if path.is_file() else []
        if any(line.split(":")[0].rsplit("/", 1)[-1] in wanted for line in lines):
            return True
    return False
