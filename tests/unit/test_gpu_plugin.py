"""The device plugin against a kubelet, over real unix sockets."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubelet import Kubelet, board, kubelet

from sandbox.gpu.emulator import config, devices, faults, plugin
from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.devices import Board, Fault
from sandbox.spec.gpu import GpuGroup, node_document
from sandbox.spec.gpu import resources as promised_resources

GPU = "nvidia.com/gpu"
SOON = 0.5  # seconds in which a fault has to be seen
SHARED = {"replicas": {GPU: 3}}
MIXED = {"mig_strategy": "mixed", "mig": [["1g.10gb", "1g.10gb", "3g.40gb"], ["1g.10gb+me"], []]}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin, "_POLL_SECONDS", 0.1)
        patch.setattr(plugin, "_SHORTEST", 0.1)
        yield


@contextmanager
def plugged(node: Board, numa_nodes: int = 2) -> Iterator[Kubelet]:
    """The board's plugin beside a running kubelet."""
    stop = threading.Event()
    with kubelet() as found:
        numa = found.folder / "numa"
        for number in range(numa_nodes):
            (numa / f"node{number}").mkdir(parents=True)
        cdi = Cdi(found.folder, found.folder)
        options = {"folder": found.plugin_folder, "numa": numa}
        thread = threading.Thread(target=plugin.run, args=(node, cdi, stop), kwargs=options)
        thread.start()
        try:
            yield found
        finally:
            end(node, stop)
            thread.join(5)
            assert not thread.is_alive()
            assert not list(found.plugin_folder.glob("nvidia*"))


def end(node: Board, stop: threading.Event) -> None:
    stop.set()
    with node.changed:
        node.changed.notify_all()


def fault(gpu: int | None = 1, *, lasts: float = 60.0, **more: object) -> Fault:
    what: dict[str, object] = {"unhealthy": gpu is not None, "plugin_down": gpu is None, **more}
    return Fault("f", time.time() + lasts, gpu, **what)  # type: ignore[arg-type]


def ill(found: Kubelet, resource: str = GPU) -> list[str]:
    plugin_ = found.plugins.get(resource)
    return [each for each, health in plugin_.health.items() if health != "Healthy"] if plugin_ else []


def test_every_resource_is_registered_with_its_devices_and_their_numa_nodes() -> None:
    node = board(4)
    with plugged(node) as found:
        there = found.registered(GPU, 4)
        assert there.request.version == "v1beta1"
        assert there.request.endpoint == "nvidia-gpu.sock"
        assert there.request.options.get_preferred_allocation_available
        assert there.options.get_preferred_allocation_available
        assert not there.options.pre_start_required
        assert list(there.health) == [gpu.uuid for gpu in node.gpus]
        assert [[one.ID for one in each.topology.nodes] for each in there.devices] == [[0], [0], [1], [1]]


def test_no_socket_of_the_machine_is_named_that_it_does_not_have() -> None:
    with plugged(board(2), numa_nodes=1) as found:
        assert [[one.ID for one in each.topology.nodes] for each in found.registered(GPU).devices] == [[0], [0]]
    with plugged(board(2), numa_nodes=0) as found:
        assert not any(each.HasField("topology") for each in found.registered(GPU).devices)


def test_a_gpu_cut_into_instances_offers_only_these() -> None:
    node = board(3, **MIXED)
    offered = plugin.resources(node)
    assert {name: len(each) for name, each in offered.items()} == {
        GPU: 1,
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/mig-3g.40gb": 1,
        "nvidia.com/mig-1g.10gb.me": 1,
    }
    assert offered[GPU][0].id == node.gpus[2].uuid
    with plugged(node) as found:
        for name, each in offered.items():
            assert found.registered(name).health == dict.fromkeys([one.id for one in each], "Healthy")
        node.set_faults([fault(0)])
        found.wait(lambda: len(ill(found, "nvidia.com/mig-1g.10gb")) == 2)
        assert not ill(found)


def test_the_strategy_single_offers_instances_as_gpus() -> None:
    node = board(2, mig_strategy="single", mig=[["3g.40gb", "3g.40gb"]] * 2)
    offered = plugin.resources(node)
    assert {name: len(each) for name, each in offered.items()} == {GPU: 4}
    assert [each.id for each in offered[GPU]] == [uuid for gpu in node.gpus for uuid in gpu.uuids]


def test_shares_of_a_gpu_keep_the_resources_name_or_get_their_own() -> None:
    node = board(2, sharing=SHARED)
    uuids = [gpu.uuid for gpu in node.gpus]
    assert [each.id for each in plugin.resources(node)[GPU]] == [f"{uuid}::{n}" for uuid in uuids for n in range(3)]
    renamed = board(2, sharing=SHARED | {"rename_by_default": True})
    assert {name: len(each) for name, each in plugin.resources(renamed).items()} == {f"{GPU}.shared": 6}
    cut = board(3, **MIXED, sharing={"replicas": {"nvidia.com/mig-1g.10gb": 2}})
    assert len(plugin.resources(cut)["nvidia.com/mig-1g.10gb"]) == 4
    assert len(plugin.resources(cut)[GPU]) == 1


def test_only_the_plugins_own_gpus_are_offered() -> None:
    node = board(5, mode="both")
    assert [each.gpu for each in plugin.resources(node)[GPU]] == [0, 1, 2]
    plugin.run(board(2, mode="dra"), Cdi(Path(), Path()), threading.Event())  # returns


MIG = {"mig": {"instances": ["1g.10gb+me", "3g.40gb"]}}
SLICED = {"name": GPU, "replicas": 4}


@pytest.mark.parametrize(
    "group",
    [
        {},
        {"mode": "both"},
        {"mode": "dra"},
        MIG,
        {"mig": {"perGpu": [["7g.80gb"], [], ["1g.10gb"] * 7]}},
        {"mig": {"strategy": "single", "instances": ["1g.20gb"] * 3}},
        {"sharing": {"timeSlicing": {"resources": [SLICED]}}},
        {"sharing": {"timeSlicing": {"renameByDefault": True, "resources": [SLICED]}}},
        {**MIG, "sharing": {"timeSlicing": {"resources": [{"name": "nvidia.com/mig-3g.40gb", "replicas": 2}]}}},
    ],
    ids=str,
)
def test_what_a_cluster_file_promises_is_offered(group: dict[str, Any]) -> None:
    promised = GpuGroup(profile="h100", count=3, **group)
    node = devices.board(config.parse(json.loads(json.dumps(node_document(promised, "node-1")))))
    assert {name: len(each) for name, each in plugin.resources(node).items()} == promised_resources(promised)


@pytest.mark.realtime
def test_health_goes_both_ways_as_faults_come_are_taken_back_and_end() -> None:
    node = board(3)
    with plugged(node) as found:
        there = found.registered(GPU, 3)
        for end in (lambda: node.set_faults([]), lambda: None):
            began = time.monotonic()
            node.set_faults([fault(1, lasts=1.0, xid=79)])
            found.wait(lambda: ill(found) == [node.gpus[1].uuid])
            assert time.monotonic() - began < SOON
            end()
            found.wait(lambda: not ill(found))
            assert time.monotonic() - began < 1.0 + SOON
        assert there.updates == 5
        assert there.connected


def test_each_fault_of_two_ends_when_its_time_is_over() -> None:
    node = board(3)
    with plugged(node) as found:
        found.registered(GPU, 3)
        node.set_faults([fault(0, lasts=0.6), fault(2, lasts=0.2)])
        found.wait(lambda: len(ill(found)) == 2)
        found.wait(lambda: ill(found) == [node.gpus[0].uuid])
        found.wait(lambda: not ill(found))


def test_allocation_names_the_devices_for_container_and_runtime() -> None:
    node = board(3)
    uuids = [gpu.uuid for gpu in node.gpus]
    with plugged(node) as found:
        found.registered(GPU, 3)
        answer = found.allocate(GPU, uuids[2], uuids[0])
        assert dict(answer.envs) == {"NVIDIA_VISIBLE_DEVICES": f"{uuids[0]},{uuids[2]}"}
        assert [each.name for each in answer.cdi_devices] == [
            f"nvidia.com/gpu={uuids[0]}",
            f"nvidia.com/gpu={uuids[2]}",
        ]
        assert not answer.devices
        assert not answer.mounts


def test_two_shares_of_one_gpu_are_one_device_in_the_container() -> None:
    node = board(1, sharing=SHARED)
    uuid = node.gpus[0].uuid
    with plugged(node) as found:
        found.registered(GPU, 3)
        answer = found.allocate(GPU, f"{uuid}::2", f"{uuid}::0")
        assert answer.envs["NVIDIA_VISIBLE_DEVICES"] == uuid
        assert len(answer.cdi_devices) == 1


def refused(found: Kubelet, *ids: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        found.allocate(GPU, *ids)
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]


def test_what_is_ill_or_unknown_or_too_much_is_not_allocated() -> None:
    node = board(2, sharing=SHARED | {"fail_requests_greater_than_one": True})
    first, second = (gpu.uuid for gpu in node.gpus)
    with plugged(node) as found:
        found.registered(GPU, 6)
        assert refused(found, "GPU-0")[1] == "invalid request: unknown device: GPU-0"
        code, message = refused(found, f"{first}::0", f"{second}::0")
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message == "invalid request: maximum request size for shared resources is 1; found 2"
        assert found.allocate(GPU, f"{first}::0")
        node.set_faults([fault(0, xid=48)])
        assert refused(found, f"{first}::0")[1] == f"{first}::0 is unhealthy: XID 48"
        assert found.allocate(GPU, f"{second}::0")


def test_several_shares_are_given_where_nobody_forbids_it() -> None:
    node = board(2, sharing=SHARED)
    with plugged(node) as found:
        found.registered(GPU, 6)
        assert found.allocate(GPU, *(f"{gpu.uuid}::1" for gpu in node.gpus))


@pytest.mark.parametrize(
    ("nvlinks", "available", "must", "size", "expected"),
    [
        pytest.param(18, range(8), [], 1, [0], id="any one"),
        pytest.param(18, range(8), [], 2, [0, 1], id="a pair"),
        pytest.param(18, [1, 2, 3, 5], [], 2, [2, 3], id="the one whole pair"),
        pytest.param(18, [1, 2, 3], [], 1, [1], id="one that leaves a pair"),
        pytest.param(18, [0, 1, 2, 4, 5, 6, 7], [], 4, [4, 5, 6, 7], id="a quad"),
        pytest.param(18, [0, 1, 3, 4, 6], [], 2, [0, 1], id="the pair before a quad's corners"),
        pytest.param(18, [1, 2, 4, 6], [], 2, [1, 2], id="in one quad"),
        pytest.param(18, range(8), [5], 2, [5, 4], id="the neighbour of what it must include"),
        pytest.param(18, range(8), [1, 6], 3, [1, 6, 0], id="a neighbour of one of both"),
        pytest.param(0, range(8), [6], 3, [6, 4, 5], id="no NVLink: the same half"),
        pytest.param(0, [0, 1, 5, 6, 7], [], 3, [5, 6, 7], id="no NVLink: the half with enough"),
    ],
)
def test_neighbours_are_preferred(
    nvlinks: int, available: list[int], must: list[int], size: int, expected: list[int]
) -> None:
    node = board(8, profile={"nvlinks": nvlinks})
    there = plugin.resources(node)[GPU]
    chosen = plugin.linked(node, [there[each] for each in available], [there[each] for each in must], size)
    assert [each.gpu for each in chosen] == expected


def test_shares_are_spread_over_the_gpus_that_fewest_share() -> None:
    node = board(3, sharing=SHARED)
    there = plugin.resources(node)[GPU]
    ids = [each.id for each in there]
    left = [each for each in there if each.id not in {ids[0], ids[1], ids[3]}]  # two of GPU 0 are taken, one of GPU 1
    assert [each.gpu for each in plugin.spread(there, left, [], 4)] == [2, 1, 2, 0]
    assert [each.gpu for each in plugin.spread(there, left, [left[0]], 2)] == [0, 2]


def test_the_kubelet_hears_the_preference() -> None:
    node = board(4)
    uuids = [gpu.uuid for gpu in node.gpus]
    with plugged(node) as found:
        found.registered(GPU, 4)
        assert found.prefer(GPU, uuids, 2, [uuids[3]]) == [uuids[3], uuids[2]]
        with pytest.raises(grpc.RpcError, match="3 of 2 devices cannot be had"):
            found.prefer(GPU, uuids[:2], 3)
    with plugged(board(2, sharing=SHARED)) as found:
        ids = list(found.registered(GPU, 6).health)
        assert found.prefer(GPU, ids, 2) == [ids[0], ids[3]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_preference_is_what_the_kubelet_can_use(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10))
    shared = data.draw(st.booleans())
    nvlinks = data.draw(st.sampled_from([0, 18]))
    node = board(count, profile={"nvlinks": nvlinks}, sharing=SHARED if shared else None)
    there = plugin.resources(node)[GPU]
    available = data.draw(st.lists(st.sampled_from(there), unique=True, min_size=1))
    must = data.draw(st.lists(st.sampled_from(available), unique=True))
    size = data.draw(st.integers(max(1, len(must)), len(available)))
    if shared:
        chosen = plugin.spread(there, available, must, size)
        taken, free = Counter(each.uuid for each in chosen), Counter(each.uuid for each in available)
        before = {uuid: 3 - free[uuid] + sum(each.uuid == uuid for each in must) for uuid in free}
        after = {uuid: 3 - free[uuid] + taken[uuid] for uuid in free}
        # nobody who got more has more sharers than somebody who still had a share to give
        grown = [after[uuid] for uuid in free if after[uuid] > before[uuid]]
        assert max(grown, default=0) <= 1 + min([after[uuid] for uuid in free if taken[uuid] < free[uuid]], default=3)
    else:
        chosen = plugin.linked(node, available, must, size)
    assert len(chosen) == len({each.id for each in chosen}) == size
    assert set(chosen) <= set(available)
    assert set(must) <= set(chosen)


def test_sixteen_gpus_are_chosen_from_quickly() -> None:
    node = board(16)
    there = plugin.resources(node)[GPU]
    began = time.monotonic()
    assert [each.gpu for each in plugin.linked(node, there, [], 8)] == list(range(8))
    assert time.monotonic() - began < 2
    assert math.comb(16, 8) == 12870  # the worst there is


def test_a_restarted_kubelet_is_registered_with_again() -> None:
    node = board(2, **MIXED)
    names = set(plugin.resources(node))
    with plugged(node) as found:
        for name in names:
            found.registered(name)
        for _ in range(2):
            found.restart()
            for name in names:
                assert found.registered(name).connected
        assert Counter(found.registrations) == dict.fromkeys(names, 3)


def test_a_kubelet_that_comes_later_is_waited_for() -> None:
    node = board(1)
    stop = threading.Event()
    with kubelet() as found:
        found.stop()
        (found.plugin_folder / "kubelet.sock").touch()  # what a killed one leaves
        (found.plugin_folder / "nvidia-gpu-7.sock").touch()  # what a killed plugin leaves
        run = threading.Thread(
            target=plugin.run,
            args=(node, Cdi(found.folder, found.folder), stop),
            kwargs={"folder": found.plugin_folder},
        )
        run.start()
        time.sleep(0.3)
        assert run.is_alive()
        assert not (found.plugin_folder / "nvidia-gpu-7.sock").exists()
        found.start()
        found.registered(GPU, 1)
        end(node, stop)
        run.join(5)


def test_a_deleted_socket_is_made_anew() -> None:
    with plugged(board(1)) as found:
        found.registered(GPU)
        (found.plugin_folder / "nvidia-gpu.sock").unlink()
        found.wait(lambda: len(found.registrations) == 2)
        assert found.registered(GPU).request.endpoint == "nvidia-gpu-2.sock"


def test_a_refused_registration_is_tried_again() -> None:
    with kubelet() as found:
        found.refusals = 1
        stop = threading.Event()
        node = board(1)
        args = (node, Cdi(found.folder, found.folder), stop)
        run = threading.Thread(target=plugin.run, args=args, kwargs={"folder": found.plugin_folder})
        run.start()
        found.registered(GPU, 1)
        assert len(found.registrations) == 2
        end(node, stop)
        run.join(5)


def test_a_plugin_that_is_down_is_gone_from_the_node_and_comes_back() -> None:
    node = board(2)
    with plugged(node) as found:
        first = found.registered(GPU, 2)
        node.set_faults([fault(None)])
        found.wait(lambda: not first.connected)
        found.wait(lambda: not list(found.plugin_folder.glob("nvidia*")))
        assert len(found.registrations) == 1
        node.set_faults([])
        assert found.registered(GPU, 2).request.endpoint == "nvidia-gpu-2.sock"
        node.set_faults([fault(None, lasts=0.4)])
        found.wait(lambda: not found.plugins[GPU].connected)
        found.registered(GPU, 2)
        assert len(found.registrations) == 3


def test_an_end_of_a_fault_counts_as_a_change_of_the_faults() -> None:
    node = board(1)
    stop = threading.Event()
    run = threading.Thread(target=faults.expire, args=(node, stop))
    run.start()
    node.set_faults([fault(0, lasts=0.2)])
    with node.changed:
        assert node.changed.wait_for(lambda: node.version == 2, timeout=2)
    assert not node.active(0)
    end(node, stop)
    run.join(5)
