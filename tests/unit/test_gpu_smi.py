from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from sandbox.images import golang

SOURCE = Path(__file__).parents[2] / "clusters/images/gpu-emulator/go/nvidia-smi"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n\n"
)
LOST = "Unable to determine the device handle for GPU{}: GPU is lost.  Reboot the system to recover this GPU\n"
OLD_LOST, NEW_LOST = LOST.format("0000:18:00.0"), LOST.format("1: 0000:18:00.0")
OLD, NEW = "570.172.08", "580.105.08"
EARLY = "Terminating early due to previous errors.\n"
FIRST, SECOND = "GPU-00000000-0000-5000-8000-000000000000", "GPU-00000001-0000-5000-8000-000000000001"
SMALL, LARGE = "MIG-0000000a-0000-5000-8000-00000000000a", "MIG-0000000b-0000-5000-8000-00000000000b"


def gpu(index: int, **other: Any) -> dict[str, Any]:
    """A GPU at work, as the emulator writes it down."""
    return {
        "index": index,
        "minor": index,
        "uuid": f"GPU-{index:08d}-0000-5000-8000-{index:012d}",
        "name": "NVIDIA H100 80GB HBM3",
        "brand": "NVIDIA",
        "architecture": "Hopper",
        "serial": f"{1650000000000 + index}",
        "pciBusId": f"00000000:{0x10 + index * 8:02X}:00.0",
        "pciDeviceId": "0x233010DE",
        "computeCap": "9.0",
        "temperatureGpu": 41.4,
        "temperatureMemory": 50.2,
        "powerDraw": 362.139,
        "powerLimit": 700.0,
        "powerDefaultLimit": 700.0,
        "energyMj": 123456789,
        "utilizationGpu": 87.4,
        "utilizationMemory": 40,
        "memoryTotal": 81559,
        "memoryUsed": 26980.4,
        "memoryFree": 54029,
        "clocksSm": 1980,
        "clocksMem": 2619,
        "clocksMaxSm": 1980,
        "clocksMaxMem": 2619,
        "pstate": "P0",
        "eccCorrected": 0,
        "eccUncorrected": 0,
        "xid": 0,
        "throttle": "",
        "migMode": "Disabled",
        "lost": False,
        "migDevices": [],
        **other,
    }


def instance(index: int, gi: int, profile: str, uuid: str, *, memory: int, multiprocessors: int) -> dict[str, Any]:
    return {
        "index": index,
        "gi": gi,
        "ci": 0,
        "profile": profile,
        "uuid": uuid,
        "memoryTotal": memory,
        "memoryUsed": 26,
        "multiprocessors": multiprocessors,
    }


CUT = gpu(
    1,
    migMode="Enabled",
    migDevices=[
        instance(0, 9, "1g.10gb", SMALL, memory=9984, multiprocessors=16),
        instance(1, 2, "3g.40gb", LARGE, memory=40448, multiprocessors=60),
    ],
)
LAST = gpu(1, lost=True)


@dataclass
class Smi:
    program: Path
    state: Path

    def write(self, *devices: dict[str, Any], driver: str = OLD) -> None:
        document = {"emulated": True, "node": "n", "driverVersion": driver, "cudaVersion": "12.8", "devices": devices}
        draft = self.state.with_suffix(".draft")
        draft.write_text(json.dumps(document))
        draft.replace(self.state)

    def environment(self, claimed: str | None) -> dict[str, str]:
        other = {} if claimed is None else {"NVIDIA_VISIBLE_DEVICES": claimed}
        return {"NVIDIA_EMULATED_STATE": str(self.state), "TZ": "UTC"} | other

    def __call__(self, *arguments: str, claimed: str | None = None, code: int = 0) -> str:
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment(claimed),
            text=True,
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert not done.stderr
        assert done.returncode == code, done.stdout
        return done.stdout

    def query(self, fields: str, *arguments: str, claimed: str | None = None, form: str = "csv,noheader") -> str:
        return self(f"--query-gpu={fields}", f"--format={form}", *arguments, claimed=claimed)

    def xml(self, claimed: str | None = None) -> ET.Element:
        return ET.fromstring(self("-q", "-x", claimed=claimed))  # noqa: S314


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled with the Go that images are compiled with; without one, these tests fail and say how to get it."""
    made = tmp_path_factory.mktemp("smi") / "nvidia-smi"
    flags = "-trimpath -buildvcs=false -mod=readonly"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": flags, "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = ["nice", golang.toolchain(), "build", "-o", made, "."]
    done = subprocess.run(command, cwd=SOURCE, env=environment, text=True, capture_output=True, check=False)
    assert not done.returncode, done.stderr
    return made


@pytest.fixture
def smi(program: Path, tmp_path: Path) -> Smi:
    made = Smi(program, tmp_path / "devices.json")
    made.write(gpu(0), CUT, gpu(2))
    return made


def test_the_list_has_gpus_and_their_mig_devices(smi: Smi) -> None:
    assert smi("-L") == (
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {FIRST})\n"
        f"GPU 1: NVIDIA H100 80GB HBM3 (UUID: {SECOND})\n"
        f"  MIG 1g.10gb     Device  0: (UUID: {SMALL})\n"
        f"  MIG 3g.40gb     Device  1: (UUID: {LARGE})\n"
        "GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-00000002-0000-5000-8000-000000000002)\n"
    )


@pytest.mark.parametrize(
    "claimed",
    ["GPU-00000002-0000-5000-8000-000000000002", "2", "gpu-00000002-0000-5000-8000-000000000002::7, none, MIG-other"],
)
def test_a_container_sees_what_it_claimed_counted_from_zero(smi: Smi, claimed: str) -> None:
    line = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000002-0000-5000-8000-000000000002)\n"
    assert smi("-L", claimed=claimed) == line
    assert smi.query("index,count,pci.bus_id", claimed=claimed) == "0, 1, 00000000:20:00.0\n"
    assert smi.xml(claimed).findtext("gpu/minor_number") == "2"


def test_the_order_is_the_nodes_not_the_claims(smi: Smi) -> None:
    assert smi.query("index,gpu_bus_id", claimed="2,0") == "0, 00000000:10:00.0\n1, 00000000:20:00.0\n"


def test_several_claims_of_a_container_add_up(smi: Smi) -> None:
    both = {"NVIDIA_VISIBLE_DEVICES": FIRST, "NVIDIA_VISIBLE_DEVICES_b": f"{SMALL},void"}
    asked = [smi.program, "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(asked, env=smi.environment(None) | both, text=True, capture_output=True, check=True)
    assert done.stdout.split() == [FIRST, SECOND]


@pytest.mark.parametrize("claimed", [LARGE, "1:1"])
def test_a_claimed_mig_device_is_all_that_is_seen_of_its_gpu(smi: Smi, claimed: str) -> None:
    listed = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {SECOND})\n  MIG 3g.40gb     Device  0: (UUID: {LARGE})\n"
    assert smi("-L", claimed=claimed) == listed
    fields = "memory.total,memory.used,utilization.gpu,mig.mode.current"
    assert (
        smi.query(fields, claimed=claimed) == "[Insufficient Permissions], [Insufficient Permissions], [N/A], Enabled\n"
    )
    table = smi(claimed=claimed).splitlines()
    assert "| N/A   41C    P0            362W /  700W |                  N/A   |     N/A      Default |" in table
    assert "|  0    2   0   0  |              26MiB / 40448MiB    | 60      0 |  3   0    3    0    3 |" in table
    (part,) = smi.xml(claimed).findall("gpu/mig_devices/mig_device")
    assert part.findtext("fb_memory_usage/total") == "40448 MiB"
    assert part.findtext("device_attributes/shared/multiprocessor_count") == "60"
    assert smi.xml(claimed).findtext("gpu/fb_memory_usage/total") == "Insufficient Permissions"


@pytest.mark.parametrize("claimed", ["", "none", "void", "GPU-00000000-dead-beef-0000-000000000000"])
@pytest.mark.parametrize("arguments", [[], ["-L"], ["-q", "-x"], ["--query-gpu=name", "--format=csv"]])
def test_without_a_claim_there_are_no_devices(smi: Smi, claimed: str, arguments: list[str]) -> None:
    assert smi(*arguments, claimed=claimed, code=6) == "No devices were found\n"


@pytest.mark.parametrize("arguments", [[], ["-L"], ["-q"], ["--query-gpu=name", "--format=csv"], ["topo", "-m"]])
def test_without_the_emulator_there_is_no_driver(smi: Smi, arguments: list[str]) -> None:
    smi.state.unlink()
    assert smi(*arguments, code=9) == NO_DRIVER
    smi.state.write_text("{")
    assert smi(*arguments, code=9) == NO_DRIVER


def test_the_summary_is_the_real_ones_to_the_letter(smi: Smi) -> None:
    smi.write(gpu(0), gpu(1, name="NVIDIA RTX PRO 6000 Blackwell Server Edition", powerDraw=1.0, utilizationGpu=100))
    stamp, _, page = smi().partition("\n")
    assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4} {7}", stamp)
    assert (
        page
        == f"""\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.172.08             Driver Version: 570.172.08     CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:10:00.0 Off |                    0 |
| N/A   41C    P0            362W /  700W |   26980MiB /  81559MiB |     87%      Default |
|                                         |                        |             Disabled |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA RTX PRO 6000 Blac...    On  |   00000000:18:00.0 Off |                    0 |
| N/A   41C    P0              1W /  700W |   26980MiB /  81559MiB |    100%      Default |
|                                         |                        |             Disabled |
+-----------------------------------------+------------------------+----------------------+
{" " * 89}
+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |
+-----------------------------------------------------------------------------------------+
"""
    )


def test_the_summary_has_a_table_of_mig_devices(smi: Smi) -> None:
    page = smi("-i", "1")
    assert (
        f"""
+-----------------------------------------------------------------------------------------+
| MIG devices:                                                                            |
+------------------+----------------------------------+-----------+-----------------------+
| GPU  GI  CI  MIG |                     Memory-Usage |        Vol|        Shared         |
|      ID  ID  Dev |                       BAR1-Usage | SM     Unc| CE ENC  DEC  OFA  JPG |
|                  |                                  |        ECC|                       |
|==================+==================================+===========+=======================|
|  1    9   0   0  |              26MiB /  9984MiB    | 16      0 |  1   0    1    0    1 |
|                  |                 0MiB / 16383MiB  |           |                       |
+------------------+----------------------------------+-----------+-----------------------+
|  1    2   0   1  |              26MiB / 40448MiB    | 60      0 |  3   0    3    0    3 |
|                  |                 0MiB / 65535MiB  |           |                       |
+------------------+----------------------------------+-----------+-----------------------+
{" " * 89}
"""
        in page
    )
    assert "|   1  NVIDIA H100 80GB HBM3          On  |   00000000:18:00.0 Off |                   On |" in page


@pytest.mark.parametrize(
    ("fields", "form", "expected"),
    [
        ("gpu_name,driver_version", "csv,noheader", "NVIDIA H100 80GB HBM3, 570.172.08\n"),
        (
            "index, utilization.gpu,memory.total,clocks.sm,power.draw",
            "csv",
            (
                "index, utilization.gpu [%], memory.total [MiB], clocks.current.sm [MHz], power.draw [W]\n"
                "0, 87 %, 81559 MiB, 1980 MHz, 362.14 W\n"
            ),
        ),
        ("memory.used,fan.speed", "csv,nounits", "memory.used [MiB], fan.speed [%]\n26980, [N/A]\n"),
        ("clocks_throttle_reasons.active", "noheader,csv", "0x0000000000000000\n"),
        ("compute_cap,pci.device_id,pci.bus,pstate", "csv,noheader", "9.0, 0x233010DE, 0x10, P0\n"),
        ("memory.reserved,memory.free,serial", "csv,noheader", "550 MiB, 54029 MiB, 1650000000000\n"),
        ("ecc.errors.corrected.volatile.total,ecc.mode.current", "csv,noheader", "0, Enabled\n"),
        ("mig.mode.current,display_active,persistence_mode", "csv,noheader", "Disabled, Disabled, Enabled\n"),
        ("temperature.gpu.tlimit,temperature.memory,power.min_limit", "csv,noheader", "46, 50, 200.00 W\n"),
    ],
)
def test_fields_are_written_as_the_real_program_does(smi: Smi, fields: str, form: str, expected: str) -> None:
    assert smi.query(fields, "-i", "0", form=form) == expected
    separate = smi("--query-gpu", fields, "--format", form, f"--id={FIRST}")
    assert separate == expected


def test_what_gputil_and_nvsmi_ask_for_has_a_number_in_each_place(smi: Smi) -> None:
    fields = (
        "index,uuid,utilization.gpu,memory.total,memory.used,memory.free,driver_version,name,gpu_serial,"
        "display_active,display_mode,temperature.gpu"
    )
    rows = [line.split(", ") for line in smi.query(fields, form="csv,noheader,nounits").splitlines()]
    assert rows[0] == [
        *("0", FIRST, "87", "81559", "26980", "54029", "570.172.08", "NVIDIA H100 80GB HBM3", "1650000000000"),
        *("Disabled", "Enabled", "41"),
    ]
    assert [row[2] for row in rows] == ["87", "[N/A]", "87"]  # the driver has no utilization of a cut GPU


def test_time_is_when_the_query_was_made(smi: Smi) -> None:
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}\n", smi.query("timestamp", "-i", "0"))


def test_every_field_of_the_help_can_be_asked_for(smi: Smi) -> None:
    text = smi("--help-query-gpu")
    assert text.startswith('List of valid properties to query for the switch "--query-gpu":\n\n"timestamp"\n')
    lines = re.findall(r'(?m)^\s*\n("[^"]+"(?: or "[^"]+")*)$', text)
    names = [re.findall(r'"([^"]+)"', line) for line in lines]
    firsts = [first for first, *_ in names]
    assert len(firsts) == len(set(firsts)) > 180
    header, row = smi.query(",".join(firsts), "-i", "0", form="csv").splitlines()
    assert [cell.partition(" [")[0] for cell in header.split(", ")] == firsts
    assert len(row.split(", ")) == len(firsts)
    aliases = {alias: first for first, *others in names for alias in others}
    assert {"gpu_uuid": "uuid", "clocks.sm": "clocks.current.sm"}.items() <= aliases.items()
    header = smi.query(",".join(aliases), "-i", "0", form="csv").splitlines()[0]
    assert [cell.partition(" [")[0] for cell in header.split(", ")] == [*aliases.values()]


@pytest.mark.parametrize(
    ("switch", "header"),
    [
        ("--query-compute-apps=pid,name,used_memory,gpu_uuid", "pid, process_name, used_gpu_memory [MiB], gpu_uuid\n"),
        ("--query-accounted-apps=pid,gpu_util,time", "pid, gpu_utilization [%], time [ms]\n"),
        ("--query-retired-pages=gpu_uuid,retired_pages.cause", "gpu_uuid, retired_pages.cause\n"),
    ],
)
def test_nothing_runs_on_an_emulated_gpu(smi: Smi, switch: str, header: str) -> None:
    assert smi(switch, "--format=csv") == header
    assert not smi(switch, "--format=csv,noheader")


def test_remapped_rows_have_a_line_for_each_gpu(smi: Smi) -> None:
    asked = "--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure"
    assert smi(asked, "--format=csv,noheader", claimed="0") == "00000000:10:00.0, No, No\n"


HELP = " Please run 'nvidia-smi -h' for help.\n\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--query-gpu=name,foo", "--format=csv"], 2, 'Field "foo" is not a valid field to query.\n\n'),
        (["--query-gpu=cuda_version", "--format=csv"], 2, 'Field "cuda_version" is not a valid field to query.\n\n'),
        (["--query-compute-apps=name,foo", "--format=csv"], 2, 'Field "foo" is not a valid field to query.\n\n'),
        (["--query-gpu=name"], 2, '"--format=" switch is missing.' + HELP),
        (["--foo"], 2, "ERROR: Option --foo is not recognized." + HELP),
        (["foo"], 2, "ERROR: Option foo is not recognized." + HELP),
        (["-format=csv"], 2, "ERROR: Option -format=csv is not recognized." + HELP),
        (["-q", "-d"], 2, "ERROR: Option -d is missing its value." + HELP),
        (["-q", "-d", "FOO"], 2, '"FOO" is not a valid display type.' + HELP),
        (["-L", "-q"], 2, "Invalid combination of input arguments." + HELP),
        (["-x"], 2, "Invalid combination of input arguments." + HELP),
        (["-L", "--query-gpu=name", "--format=csv"], 2, "Invalid combination of input arguments." + HELP),
        (
            ["--query-gpu=name", "--query-compute-apps=pid", "--format=csv"],
            2,
            "Only one --query-* switch can be used at a time.\n",
        ),
        (["-i", "7"], 6, "No devices were found\n"),
        (["-L", "-i", "GPU-none"], 6, "No devices were found\n"),
        (
            ["-pm", "1"],
            4,
            f"Unable to set persistence mode for GPU 00000000:10:00.0: Insufficient Permissions\n{EARLY}",
        ),
        (
            ["-i", "2", "-pl", "400"],
            4,
            f"Failed to set power management limit for GPU 00000000:20:00.0: Insufficient Permissions\n{EARLY}",
        ),
        (["-mig", "0"], 4, f"Unable to disable MIG Mode for GPU 00000000:10:00.0: Insufficient Permissions\n{EARLY}"),
        (["--gpu-reset", "-i", "0"], 4, f"Unable to reset GPU 00000000:10:00.0: Insufficient Permissions\n{EARLY}"),
        (
            ["--lock-gpu-clocks=300,400"],
            4,
            f"The current user does not have permission to change clocks for GPU 00000000:10:00.0.\n{EARLY}",
        ),
        (["mig", "-lgi"], 4, "Failed to display GPU instances: Insufficient Permissions\n"),
        (["mig", "-cgi", "19", "-C"], 4, "Insufficient Permissions\n"),
        (["mig", "-lgi", "-i", "0"], 6, "No MIG-enabled devices found.\n"),
        (["dmon", "-c", "1"], 3, '"nvidia-smi dmon -c 1" is not emulated.\n'),
    ],
)
def test_what_is_refused_says_why_with_the_real_programs_exit_code(
    smi: Smi, arguments: list[str], code: int, text: str
) -> None:
    assert smi(*arguments, code=code) == text


@pytest.mark.parametrize("name", ["1", SECOND, "00000000:18:00.0", "0000:18:00.0", "18:00.0", "1650000000001"])
def test_a_gpu_is_chosen_by_any_of_its_names(smi: Smi, name: str) -> None:
    assert smi.query("index", "-i", name) == "1\n"
    assert smi.query("index", f"--id=0,{name}") == "0\n1\n"


PAGES = [[], ["-q"], ["-q", "-x"], ["topo", "-m"], ["nvlink", "-s"]]


@pytest.mark.parametrize("arguments", PAGES)
def test_to_an_older_driver_one_lost_gpu_is_the_end_of_everything_but_lists(smi: Smi, arguments: list[str]) -> None:
    smi.write(gpu(0), LAST, gpu(2))
    assert smi(*arguments, code=15) == OLD_LOST
    assert FIRST[:8] in smi("-L", code=15)
    assert OLD_LOST not in smi(*arguments, "-i", "0,2")


@pytest.mark.parametrize("arguments", PAGES)
def test_a_newer_driver_says_which_gpu_is_lost_and_shows_the_others(smi: Smi, arguments: list[str]) -> None:
    smi.write(gpu(0), LAST, gpu(2), driver=NEW)
    page = smi(*arguments)
    assert page.startswith(NEW_LOST)
    assert re.search(r"GPU ?2|00000000:20:00\.0", page)
    assert smi(*arguments, "-i", "1", code=15) == f"{NEW_LOST}No devices were found\n"


@pytest.mark.parametrize(("driver", "lost", "code"), [(OLD, OLD_LOST, 15), (NEW, NEW_LOST, 0)])
def test_lists_go_on_behind_a_lost_gpu(smi: Smi, driver: str, lost: str, code: int) -> None:
    smi.write(gpu(0), LAST, gpu(2), driver=driver)
    third = "GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-00000002-0000-5000-8000-000000000002)\n"
    assert smi("-L", code=code) == f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {FIRST})\n{lost}{third}"
    assert smi("--query-gpu=index", "--format=csv", code=code) == f"index\n0\n{lost}2\n"
    assert smi.query("index,utilization.gpu", "-i", "0,2") == "0, 87 %\n2, 87 %\n"


@pytest.mark.parametrize(("driver", "page"), [(OLD, OLD_LOST), (NEW, f"{NEW_LOST}No devices were found\n")])
def test_a_container_that_has_lost_its_only_gpu_has_nothing(smi: Smi, driver: str, page: str) -> None:
    smi.write(gpu(0), LAST, driver=driver)
    mine = page.replace("GPU1: ", "GPU0: ")  # in the container it is the first
    for arguments in ([], ["-L"], ["-q", "-x"], ["--query-gpu=name", "--format=csv,noheader"], ["-r"]):
        refused = mine if arguments != ["-r"] else mine.removesuffix("No devices were found\n")
        assert smi(*arguments, claimed=SECOND, code=15) == refused


def test_the_full_report_is_valid_xml_with_the_usual_names(smi: Smi) -> None:
    smi.write(gpu(0, name='NVIDIA <H100> & "friends"', eccUncorrected=2, xid=48), CUT)
    root = smi.xml()
    assert root.tag == "nvidia_smi_log"
    assert [root.findtext(name) for name in ("driver_version", "cuda_version", "attached_gpus")] == [
        *("570.172.08", "12.8", "2"),
    ]
    first, second = root.findall("gpu")
    assert first.get("id") == "00000000:10:00.0"
    expected = {
        "product_name": 'NVIDIA <H100> & "friends"',
        "product_architecture": "Hopper",
        "uuid": FIRST,
        "mig_mode/current_mig": "Disabled",
        "pci/pci_bus": "10",
        "pci/pci_device_id": "233010DE",
        "pci/pci_gpu_link_info/pcie_gen/current_link_gen": "5",
        "fan_speed": "N/A",
        "performance_state": "P0",
        "clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown": "Not Active",
        "fb_memory_usage/used": "26980 MiB",
        "utilization/gpu_util": "87 %",
        "ecc_errors/volatile/dram_uncorrectable": "2",
        "gpu_recovery_action": "Reset",
        "temperature/gpu_temp": "41 C",
        "temperature/memory_temp": "50 C",
        "gpu_power_readings/average_power_draw": "362.14 W",
        "gpu_power_readings/current_power_limit": "700.00 W",
        "clocks/sm_clock": "1980 MHz",
        "max_clocks/mem_clock": "2619 MHz",
    }
    assert {name: first.findtext(name) for name in expected} == expected
    assert (first.findtext("mig_devices") or "").strip() == "None"
    assert first.find("processes") is not None
    assert not list(first.find("processes") or [])
    assert [part.findtext("gpu_instance_id") for part in second.findall("mig_devices/mig_device")] == ["9", "2"]
    assert second.findtext("utilization/gpu_util") == "N/A"


# of an H100 with driver 580.105.08, as NVIDIA's own test infrastructure publishes it
ELEMENTS = """
product_name product_brand product_architecture display_mode display_attached display_active persistence_mode
addressing_mode mig_mode mig_devices accounting_mode accounting_mode_buffer_size driver_model serial uuid pdi
minor_number vbios_version multigpu_board board_id board_part_number gpu_part_number gpu_fru_part_number
platformInfo inforom_version inforom_bbx_flush gpu_operation_mode c2c_mode gpu_virtualization_mode
gpu_recovery_action gsp_firmware_version ibmnpu pci fan_speed performance_state clocks_event_reasons
clocks_event_reasons_counters sparse_operation_mode fb_memory_usage bar1_memory_usage
cc_protected_memory_usage compute_mode utilization encoder_stats fbc_stats dram_encryption_mode ecc_mode
ecc_errors retired_pages remapped_rows temperature supported_gpu_target_temp gpu_power_readings
gpu_memory_power_readings module_power_readings power_smoothing power_profiles clocks applications_clocks
default_applications_clocks deferred_clocks max_clocks max_customer_boost_clocks clock_policy fabric
supported_clocks processes accounted_processes capabilities
"""


def test_the_xml_has_the_real_ones_elements_in_their_order(smi: Smi) -> None:
    smi.write(gpu(0), driver=NEW)
    (only,) = smi.xml().findall("gpu")
    assert [each.tag for each in only] == ELEMENTS.split()


def sections(text: str) -> list[str]:
    """The headings and single lines that stand directly below a GPU."""
    return [line.strip().partition("  ")[0] for line in text.splitlines() if re.match(r" {4}\S", line)]


def test_the_full_report_has_every_section_and_d_picks_some(smi: Smi) -> None:
    whole = smi("-q", "-i", "1")
    assert whole.startswith("\n==============NVSMI LOG==============\n\nTimestamp                                 : ")
    assert "\nAttached GPUs                             : 3\nGPU 00000000:18:00.0\n" in whole
    assert "        GPU Current Temp                  : 41 C\n" in whole
    assert "    MIG Device\n        Index                             : 1\n" in whole
    names = sections(whole)
    assert names.count("MIG Device") == 2
    for name in ("FB Memory Usage", "Utilization", "ECC Errors", "Temperature", "GPU Power Readings", "Clocks", "PCI"):
        assert name in names
    assert "Power Samples" not in names
    some = sections(smi("-q", "-d", "memory,UTILIZATION", "-i", "0"))
    assert some[:4] == ["FB Memory Usage", "BAR1 Memory Usage", "Conf Compute Protected Memory Usage", "Utilization"]
    assert some[4:] == [f"{kind} Utilization Samples" for kind in ("GPU", "Memory", "ENC", "DEC")]
    for name in smi("-h").partition("selected information: ")[2].partition("Several")[0].replace(".", "").split(","):
        assert sections(smi("-q", "-d", name.strip(), "-i", "0")), name


@pytest.mark.parametrize(
    ("throttle", "clock", "mask", "active"),
    [
        ("thermal", 1500, 0x20, {"sw_thermal_slowdown"}),
        ("thermal", 900, 0x68, {"sw_thermal_slowdown", "hw_slowdown", "hw_thermal_slowdown"}),
        ("power", 1500, 0x4, {"sw_power_cap"}),
        ("power", 900, 0x8C, {"sw_power_cap", "hw_slowdown", "hw_power_brake_slowdown"}),
    ],
)
def test_a_throttled_gpu_says_what_holds_it_down(
    smi: Smi, throttle: str, clock: int, mask: int, active: set[str]
) -> None:
    smi.write(gpu(0, throttle=throttle, clocksSm=clock, utilizationGpu=0))
    assert smi.query("clocks_event_reasons.active") == f"0x{mask:016X}\n"
    reasons = smi.xml().find("gpu/clocks_event_reasons")
    assert reasons is not None
    assert {each.tag.removeprefix("clocks_event_reason_") for each in reasons if each.text == "Active"} == active


def test_an_idle_gpu_is_idle(smi: Smi) -> None:
    smi.write(gpu(0, utilizationGpu=0))
    assert smi.query("clocks_event_reasons.gpu_idle,clocks_throttle_reasons.active") == "Active, 0x0000000000000001\n"


def test_a_gpu_without_mig_and_hbm_has_no_values_for_them(smi: Smi) -> None:
    card = {"name": "Tesla T4", "computeCap": "7.5", "temperatureMemory": None, "powerDefaultLimit": 70}
    smi.write(gpu(0, **card), driver=NEW)
    fields = "mig.mode.current,temperature.memory,temperature.gpu.tlimit,power.min_limit,fabric.state,pcie.link.gen.max"
    assert smi.query(fields) == "[N/A], [N/A], [N/A], 60.00 W, [N/A], 3\n"
    assert smi.query("remapped_rows.pending,retired_pages.dbe,c2c.mode") == "[N/A], 0, [N/A]\n"
    assert "|                                         |                        |                  N/A |" in smi()
    report = smi("-q")
    assert "        GPU Shutdown Temp                 : 96 C\n" in report
    assert "    Remapped Rows                         : N/A\n" in report
    assert "            SRAM Uncorrectable            : 0\n" in report


@pytest.mark.parametrize(
    ("driver", "mode", "there", "gone"),
    [
        (OLD, "Enabled", ["v12.dtd", "gpu_reset_status", "voltage"], ["display_attached", "reasons_counters", "pdi"]),
        (
            "575.57.08",
            "[Requested functionality has been deprecated]",
            ["v12.dtd", "gpu_reset_status", "display_attached", "reasons_counters"],
            ["pdi", "summary"],
        ),
        (
            NEW,
            "[Requested functionality has been deprecated]",
            ["v13.dtd", "display_attached", "reasons_counters", "pdi", "tpc_repair_pending", "incorrect_configuration"],
            ["gpu_reset_status", "voltage"],
        ),
    ],
)
def test_what_changed_with_the_driver_follows_its_version(
    smi: Smi, driver: str, mode: str, there: list[str], gone: list[str]
) -> None:
    smi.write(gpu(0), CUT, driver=driver)
    assert smi.query("display_mode,driver_version", "-i", "0") == f"{mode}, {driver}\n"
    text = smi("-q", "-x")
    assert [name for name in there if name not in text] == []
    assert [name for name in gone if name in text] == []
    assert ("Shared Memory-Usage" in smi()) is (driver == NEW)


def test_the_newest_drivers_summary_differs_by_its_lines(smi: Smi) -> None:
    smi.write(gpu(0), CUT, driver=NEW)
    lines = smi("-i", "1").splitlines()
    assert lines[3] == "+-----------------------------------------+------------------------+----------------------+"
    assert "| GPU  GI  CI  MIG |              Shared Memory-Usage |        Vol|        Shared         |" in lines
    assert "|                  |               0MiB / 16383MiB    |           |                       |" in lines
    assert {len(line) for line in lines[1:]} == {0, 91}


def test_links_and_topology(smi: Smi) -> None:
    lines = smi("topo", "-m").splitlines()
    assert lines[0] == "\tGPU0\tGPU1\tGPU2\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    assert lines[1].startswith("GPU0\t X \tPHB\tNV18\t0-")
    links = smi("nvlink", "-s", "-i", "0").splitlines()
    assert links[0] == f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {FIRST})"
    assert links[1:] == [f"\t Link {number}: 26.562 GB/s" for number in range(18)]
    assert "not supported for Devices in MIG mode" in smi("nvlink", "--status", "-i", "1")


def test_a_loop_follows_the_state_with_one_header_until_it_is_killed(smi: Smi) -> None:
    smi.write(gpu(0))
    command = [smi.program, "--query-gpu=utilization.gpu", "--format=csv", "-lms", "20"]
    with subprocess.Popen(command, env=smi.environment(None), text=True, stdout=subprocess.PIPE) as looping:
        assert looping.stdout is not None
        assert [looping.stdout.readline() for _ in range(3)] == ["utilization.gpu [%]\n", "87 %\n", "87 %\n"]
        smi.write(gpu(0, utilizationGpu=3))
        until = time.monotonic() + 20
        while (line := looping.stdout.readline()) != "3 %\n":
            assert line == "87 %\n"
            assert time.monotonic() < until
        looping.terminate()
    assert looping.returncode != 0


def test_a_loop_ends_with_its_driver(smi: Smi) -> None:
    command = [smi.program, "-L", "--loop-ms=20"]
    with subprocess.Popen(command, env=smi.environment("0"), text=True, stdout=subprocess.PIPE) as looping:
        assert looping.stdout is not None
        assert FIRST in looping.stdout.readline()
        smi.state.unlink()
        assert looping.stdout.read().endswith(NO_DRIVER)
    assert looping.returncode == 9


def test_output_goes_to_a_file_when_one_is_named(smi: Smi, tmp_path: Path) -> None:
    page = smi("-L")
    assert not smi("-L", "-f", str(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == page
    assert smi("-L", "-f", str(tmp_path / "none" / "log"), code=2).startswith("Failed to open output file")


def test_it_says_that_it_is_emulated_where_no_parser_stumbles(smi: Smi) -> None:
    version = smi("--version").splitlines()
    assert version[:4] == [
        "NVIDIA-SMI version  : 570.172.08",
        "NVML version        : 570.172",
        "DRIVER version      : 570.172.08",
        "CUDA Version        : 12.8",
    ]
    assert version[4].startswith("EMULATED            : there is no GPU")
    assert smi("-h").startswith("NVIDIA System Management Interface -- v570.172.08\n\nEMULATED: there is no GPU")
    assert "\nEmulated                                  : Yes\n" in smi("-q")
    assert "<!-- EMULATED: " in smi("-q", "-x")
    assert "mulated" not in "".join(each.text or "" for each in smi.xml().iter())
    smi.state.unlink()
    assert smi("--version").splitlines()[0] == "NVIDIA-SMI version  : N/A"
    assert "EMULATED" in smi("--help")


def test_it_runs_in_an_image_without_a_c_library(program: Path) -> None:
    assert b"ld-linux" not in program.read_bytes()
