"""The `gpu` key of a cluster file: what it takes, what it refuses and how, and what the emulator is told of it."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sandbox import paths
from sandbox.cluster import record
from sandbox.errors import UsageError
from sandbox.gpu.emulator import config, devices, slices
from sandbox.gpu.emulator.plugin import resources as offered
from sandbox.spec import load, load_text
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.gpu import GpuGroup, node_document, resources, slice_devices
from sandbox.spec.gpu_profile import COMPUTE_SLICES, MEMORY_SLICES, Profile, beside, place, profile, profiles

HEAD = "apiVersion: sandbox/v1\nkind: Cluster\nmetadata: {name: mine, description: For a test.}\n"
TRIO = "kindConfig: {nodes: [{role: control-plane}, {role: worker}, {role: worker}]}\n"
PROFILES = ["a100-40", "a100-80", "b200", "gb200", "h100", "h200", "l4", "l40s", "t4"]
CUTTABLE = ["a100-40", "a100-80", "b200", "gb200", "h100", "h200"]
SHAPES = ["solo-gpu", "trio-gpu", "gpu-lab"]


def spec(gpu: str, nodes: str = TRIO) -> ClusterSpec:
    return load_text(f"{HEAD}{nodes}gpu: {gpu}\n", Path("mine.yaml"), ClusterSpec).model


def group(gpu: str) -> GpuGroup:
    return spec(gpu).gpu[0]


def refused(gpu: str, nodes: str = TRIO) -> list[str]:
    """The mistakes, from the key path on."""
    with pytest.raises(UsageError) as error:
        spec(gpu, nodes)
    return [line.split(": ", 1)[1] for line in error.value.details]


# profiles


def test_the_profiles_are_those_that_are_asked_for() -> None:
    assert list(profiles()) == PROFILES
    assert [name for name in PROFILES if profile(name).mig] == CUTTABLE


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_sound(name: str) -> None:
    model = profile(name)
    assert model.metadata.name == name
    assert model.sources
    assert model.power.idle < model.power.limit / 2
    assert model.clocks.idle < model.clocks.sm
    assert model.temperatures.idle < model.temperatures.load < model.temperatures.slowdown
    assert model.hbm is bool(model.nvlinks), "of these, those with HBM have NVLink"
    assert model.pci_device_id.endswith("10DE"), "NVIDIA's vendor id"


@pytest.mark.parametrize("name", CUTTABLE)
def test_every_mig_table_is_the_drivers(name: str) -> None:
    table = profile(name).mig
    media, plain = [each for each in table if each.endswith("+me")], [each for each in table if "+" not in each]
    assert [each.split("g.")[0] for each in plain] == ["1", "1", "2", "3", "4", "7"]
    assert media == [f"{plain[0]}+me"]
    assert [table[each].most for each in plain] == [7, 4, 3, 2, 1, 1]
    assert [table[each].id for each in (*plain, *media)] == [19, 15, 14, 9, 5, 0, 20]
    for each, shape in table.items():
        assert shape.slices == int(each[0])
        assert all(start + shape.memory_slices <= MEMORY_SLICES for start in shape.placements)
        assert place(table, [each] * shape.most) is not None or each.endswith("+me")
        assert shape.memory <= profile(name).memory
        # the name says the memory in GB, of which the driver keeps some
        assert 0.85 < shape.memory / 1024 / int(each.split(".")[1].split("gb")[0]) <= 1.01


def test_a_profile_that_assumes_what_it_has_not_got_is_refused(tmp_path: Path) -> None:
    text = (paths.shipped("gpu") / "profiles" / "t4.yaml").read_text()
    with pytest.raises(UsageError, match=r"assumed.power.ildle: is no key of this profile"):
        load_text(text.replace("power.idle:", "power.ildle:"), tmp_path / "t4.yaml", Profile)


@pytest.mark.parametrize("name", PROFILES)
def test_the_reference_shows_every_profile_as_it_is(name: str) -> None:
    model = profile(name)
    idle, limit = model.power.idle, model.power.limit
    row = f"| `{name}` | {model.product} | {model.memory} | {model.memory_bandwidth} | {idle:g}, {limit:g} | "
    row += f"{model.nvlinks} | {', '.join(model.mig) or 'no'} |"
    assert row in (Path(__file__).parents[2] / "docs" / "reference" / "gpu.md").read_text()


# MIG placement, https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html


@pytest.mark.parametrize(
    ("wanted", "starts"),
    [
        (["1g.5gb"] * 7, [0, 1, 2, 3, 4, 5, 6]),
        (["3g.20gb", "3g.20gb"], [0, 4]),
        (["4g.20gb", "2g.10gb", "1g.5gb"], [0, 4, 6]),
        (["1g.5gb", "1g.5gb", "2g.10gb", "3g.20gb"], None),  # any order does; see below
        (["2g.10gb", "1g.5gb", "2g.10gb", "2g.10gb"], [0, 6, 2, 4]),
        (["1g.10gb"] * 4, [0, 2, 4, 6]),
        (["7g.40gb"], [0]),
        ([], []),
    ],
)
def test_what_nvidia_shows_as_possible_fits(wanted: list[str], starts: list[int] | None) -> None:
    placed = place(profile("a100-40").mig, wanted)
    assert placed is not None
    assert starts in (None, placed)


@pytest.mark.parametrize(
    "wanted",
    [
        ["1g.5gb"] * 8,
        ["3g.20gb", "3g.20gb", "1g.5gb"],  # 7 compute slices, but 9 memory slices
        ["4g.20gb", "4g.20gb"],
        ["7g.40gb", "1g.5gb"],
        ["2g.10gb"] * 4,
        ["1g.5gb+me", "1g.5gb+me"],
        ["1g.10gb"] * 4 + ["1g.5gb"],
        ["4g.20gb", "3g.20gb", "1g.5gb"],
    ],
)
def test_what_does_not_fit_on_one_gpu_is_seen(wanted: list[str]) -> None:
    assert place(profile("a100-40").mig, wanted) is None


@pytest.mark.parametrize("name", CUTTABLE)
def test_whatever_fits_shares_no_memory_slice_and_no_compute_slice(name: str) -> None:
    table = profile(name).mig
    for count in range(1, 5):
        for wanted in combinations_with_replacement(table, count):
            starts = place(table, wanted)
            if starts is None:
                continue
            pairs = list(zip(starts, wanted, strict=True))
            taken = [start + n for start, each in pairs for n in range(table[each].memory_slices)]
            assert len(taken) == len(set(taken))
            assert max(taken) < MEMORY_SLICES
            assert sum(table[each].slices for each in wanted) <= COMPUTE_SLICES
            assert all(start in table[each].placements for start, each in pairs)


def test_what_fits_beside_is_told_for_choosing() -> None:
    table = profile("h100").mig
    assert beside(table, ["4g.40gb"]) == ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb"]
    assert beside(table, ["3g.40gb", "3g.40gb"]) == []


# what a cluster file takes


@pytest.mark.parametrize("name", SHAPES)
def test_the_shipped_shapes_load_and_fit_the_schema(name: str) -> None:
    path = paths.catalogue("clusters")[0] / f"{name}.yaml"
    loaded = load(path, ClusterSpec).model
    assert loaded.metadata.name == name
    assert loaded.gpu_nodes
    jsonschema.validate(yaml.safe_load(path.read_text()), ClusterSpec.model_json_schema(by_alias=True))


def test_one_group_needs_no_list() -> None:
    one = "{profile: h100, count: 2}"
    assert spec(one).gpu == spec(f"[{one}]").gpu
    assert spec(one).gpu[0].mode == "device-plugin"


@pytest.mark.parametrize(
    ("nodes", "has"),
    [
        ("", [0]),
        ("kindConfig: {nodes: [{role: control-plane}, {role: control-plane}]}\n", [0, 1]),
        (TRIO, [1, 2]),
    ],
)
def test_without_a_choice_the_workers_have_them_or_else_all_nodes(nodes: str, has: list[int]) -> None:
    assert list(spec("{profile: t4}", nodes).gpu_nodes) == has
    assert list(spec("{profile: t4, nodes: [0]}", nodes).gpu_nodes) == [0]


def test_gpus_do_not_change_what_a_cluster_is_made_from() -> None:
    plain = load_text(HEAD + TRIO, Path("mine.yaml"), ClusterSpec).model
    assert record.shape(spec("{profile: h100}")) == record.shape(plain)


# what it refuses


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ("{profile: h101}", [f"gpu.profile: there is no GPU profile 'h101'; there are {', '.join(PROFILES)}"]),
        ("{profile: h100, count: 0}", ["gpu.count: Input should be greater than or equal to 1"]),
        ("{profile: h100, count: 17}", ["gpu.count: Input should be less than or equal to 16"]),
        ("{profile: h100, counts: 1}", ["gpu.counts: unknown key"]),
        ("{count: 1}", ["gpu.profile: is missing"]),
        ("{profile: h100, mode: both}", ["gpu.mode: mode: both needs at least 2 GPUs"]),
        ("{profile: h100, mode: plugin}", ["gpu.mode: Input should be 'device-plugin', 'dra' or 'both'"]),
        ("{profile: h100, nodes: [3]}", ["gpu.nodes[0]: there is no node 3; kindConfig has 3 nodes: 0 to 2"]),
        ("{profile: h100, nodes: [1, 1]}", ["gpu.nodes[1]: node 1 (worker) has its GPUs from this group already"]),
        ("{profile: h100, nodes: [-1]}", ["gpu.nodes[0]: Input should be greater than or equal to 0"]),
        ("{profile: h100, nodes: []}", ["gpu.nodes: List should have at least 1 item"]),
        (
            "[{profile: h100, nodes: [1]}, {profile: t4}]",
            ["gpu[1]: node 1 (worker) has its GPUs from gpu[0] already"],
        ),
        ("{profile: h100, dra: {extendedResource: true}}", ["gpu.dra.extendedResource: needs mode: dra"]),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(gpu: str, says: list[str]) -> None:
    found = refused(gpu)
    assert len(found) == len(says)
    assert all(line.startswith(words) for line, words in zip(found, says, strict=True)), found


@pytest.mark.parametrize(
    ("mig", "says"),
    [
        ("{instances: [1g.10gb, 9g.90gb]}", "gpu.mig.instances[1]: h100: has no MIG profile '9g.90gb'; it has 1g.10gb"),
        (
            "{instances: [3g.40gb, 3g.40gb, 1g.10gb]}",
            (
                "gpu.mig.instances[2]: h100: 1g.10gb does not fit beside 3g.40gb, 3g.40gb (6 of 7 compute and 8 of 8 "
                "memory slices taken); what fits there: nothing more"
            ),
        ),
        (
            "{instances: [4g.40gb, 4g.40gb]}",
            (
                "gpu.mig.instances[1]: h100: 4g.40gb does not fit beside 4g.40gb (4 of 7 compute and 4 of 8 memory "
                "slices taken); what fits there: 1g.10gb, 1g.10gb+me, 1g.20gb, 2g.20gb, 3g.40gb"
            ),
        ),
        ("{perGpu: [[1g.10gb]]}", "gpu.mig.perGpu: has 1 entries; count is 2: write one for each GPU"),
        ("{perGpu: [[], []]}", "gpu.mig.perGpu: cuts no GPU; leave `mig` out"),
        ("{perGpu: [[], [1g.1gb]]}", "gpu.mig.perGpu[1][0]: h100: has no MIG profile '1g.1gb'"),
        ("{}", "gpu.mig: strategy: mixed needs either `instances`"),
        ("{instances: [1g.10gb], perGpu: [[1g.10gb], []]}", "gpu.mig: strategy: mixed needs either `instances`"),
        ("{strategy: none, instances: [1g.10gb]}", "gpu.mig.instances: strategy: none cuts nothing"),
        (
            "{strategy: single, instances: [1g.10gb, 2g.20gb]}",
            "gpu.mig.instances: strategy: single offers one kind of instance, and here are 1g.10gb, 2g.20gb",
        ),
        ("{strategy: single, perGpu: [[1g.10gb], []]}", "gpu.mig.perGpu: strategy: single offers one kind of instance"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused_with_what_fits(mig: str, says: str) -> None:
    found = refused(f"{{profile: h100, count: 2, mig: {mig}}}")
    assert len(found) == 1
    assert found[0].startswith(says), found


def test_a_gpu_without_mig_is_not_cut() -> None:
    assert refused("{profile: l4, mig: {instances: [1g.6gb]}}") == [
        f"gpu.mig: l4 cannot be cut by MIG; these can: {', '.join(CUTTABLE)}"
    ]


def sharing(*rows: str) -> str:
    return f"sharing: {{timeSlicing: {{resources: [{', '.join(rows)}]}}}}"


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (
            sharing("{name: nvidia.com/gpu, replicas: 1}"),
            "resources[0].replicas: Input should be greater than or equal",
        ),
        (
            sharing("{name: nvidia.com/mig-1g.5gb, replicas: 2}"),
            "resources[0].name: these nodes do not offer nvidia.com/mig-1g.5gb; they offer nvidia.com/gpu",
        ),
        (
            sharing("{name: nvidia.com/gpu, replicas: 2}") + ", mig: {instances: [1g.10gb+me, 3g.40gb]}",
            (
                "resources[0].name: these nodes do not offer nvidia.com/gpu; they offer nvidia.com/mig-1g.10gb.me, "
                "nvidia.com/mig-3g.40gb"
            ),
        ),
        (
            sharing("{name: nvidia.com/gpu, replicas: 2}") + ", mode: dra",
            (
                "resources[0].name: these nodes do not offer nvidia.com/gpu; they offer nothing: with mode: dra the "
                "device plugin has no GPU"
            ),
        ),
        (
            sharing("{name: nvidia.com/gpu, replicas: 2}", "{name: nvidia.com/gpu, replicas: 4}"),
            "resources[1].name: nvidia.com/gpu stands here twice",
        ),
    ],
)
def test_only_what_the_nodes_offer_can_be_shared(gpu: str, says: str) -> None:
    found = refused(f"{{profile: h100, {gpu}}}")
    assert [line.removeprefix("gpu.sharing.timeSlicing.") for line in found] == [found[0][24:]]
    assert found[0].startswith(f"gpu.sharing.timeSlicing.{says}"), found


def test_an_existing_cluster_is_given_no_gpus() -> None:
    there = "provider: existing\nexisting: {kubeconfig: a, context: b}\n"
    (found,) = refused("{profile: h100}", there)
    assert found.startswith("gpu: an existing cluster's nodes are not ours: neither image nor device files")


def test_all_mistakes_are_told_at_once_each_at_its_line() -> None:
    text = f"""{HEAD}{TRIO}addons: {{metrics: true}}
gpu:
  - profile: h101
    count: 17
  - profile: h100
    mode: both
    nodes: [1, 7]
    mig: {{instances: [7g.80gb, 1g.10gb]}}
"""
    with pytest.raises(UsageError) as error:
        load_text(text, Path("mine.yaml"), ClusterSpec)
    places = [line.split(": ")[:2] for line in error.value.details]
    assert places == [
        ["mine.yaml:5:10", "addons.metrics"],
        ["mine.yaml:7:5", "gpu[0].profile"],
        ["mine.yaml:8:5", "gpu[0].count"],
        ["mine.yaml:10:5", "gpu[1].mode"],
        ["mine.yaml:12:32", "gpu[1].mig.instances[1]"],
        ["mine.yaml:11:13", "gpu[1].nodes[0]"],
        ["mine.yaml:11:16", "gpu[1].nodes[1]"],
    ]


# what the emulator is told


GROUPS = [
    "{profile: h100, count: 4}",
    "{profile: t4, count: 3, mode: both}",
    "{profile: b200, count: 2, mode: dra, dra: {extendedResource: true}}",
    "{profile: a100-40, count: 3, mode: both, mig: {perGpu: [[3g.20gb, 1g.5gb+me], [], [1g.5gb, 1g.5gb]]}}",
    "{profile: h200, count: 2, mig: {strategy: single, instances: [1g.18gb, 1g.18gb]}}",
    "{profile: h100, mig: {strategy: none}}",
    f"{{profile: l4, count: 2, {sharing('{name: nvidia.com/gpu, replicas: 4}')}}}",
    (
        "{profile: l4, sharing: {timeSlicing: {renameByDefault: true, failRequestsGreaterThanOne: true, "
        "resources: [{name: nvidia.com/gpu, replicas: 10}]}}}"
    ),
    f"{{profile: h100, mig: {{instances: [1g.10gb]}}, {sharing('{name: nvidia.com/mig-1g.10gb, replicas: 2}')}}}",
]


def told(text: str) -> config.Config:
    return config.parse(json.loads(json.dumps(node_document(group(text), "worker-1"))))


@pytest.mark.parametrize("text", GROUPS)
def test_the_document_is_what_the_emulator_reads(text: str) -> None:
    asked, read = group(text), told(text)
    assert (read.node, read.count, read.mode) == ("worker-1", asked.count, asked.mode)
    assert read.profile.product == profile(asked.profile).product
    assert read.profile.memory_mib == profile(asked.profile).memory
    assert devices.board(read).gpus
    whole: dict[str, Any] = node_document(asked, "worker-1")
    assert set(whole) == {field.name for field in config.Config.__dataclass_fields__.values()}
    assert set(whole["profile"]) == set(config.Profile.__dataclass_fields__)


@pytest.mark.parametrize("text", GROUPS)
def test_what_is_waited_for_is_what_the_emulator_offers(text: str) -> None:
    board = devices.board(told(text))
    assert resources(group(text)) == {name: len(each) for name, each in offered(board).items()}
    assert slice_devices(group(text)) == len(slices.offers(board))


def test_sharing_and_cuts_arrive_as_they_were_written() -> None:
    read = told(GROUPS[7])
    assert read.sharing == config.Sharing({"nvidia.com/gpu": 10}, True, True)
    assert told(GROUPS[3]).mig == [["3g.20gb", "1g.5gb+me"], [], ["1g.5gb", "1g.5gb"]]
    assert told(GROUPS[4]).mig == [["1g.18gb", "1g.18gb"]] * 2
    assert told(GROUPS[5]).mig == []
    assert told(GROUPS[2]).extended_resource


@given(st.sampled_from(PROFILES), st.integers(1, 16), st.sampled_from(["device-plugin", "dra", "both"]))
def test_the_halves_are_the_emulators(name: str, count: int, mode: str) -> None:
    if mode == "both" and count == 1:
        return
    asked = GpuGroup.model_validate({"profile": name, "count": count, "mode": mode})
    read = config.parse(node_document(asked, "n"))
    assert sum(resources(asked).values()) == len(read.plugin_indices)
    assert slice_devices(asked) == len(read.dra_indices)
