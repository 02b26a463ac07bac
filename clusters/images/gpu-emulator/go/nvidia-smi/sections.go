package main

import (
	"fmt"
	"strconv"
)

// unit puts a unit behind a value, unless it is none.
func unit(value, of string) string {
	if value == none || value == forbidden {
		return value
	}
	return value + " " + of
}

// since is a part that came with a driver, before one that went with it. What is not there has neither label nor tag.
func (d *device) since(major int, part node) node {
	if d.node.since(major) {
		return part
	}
	return node{}
}

func (d *device) before(major int, part node) node {
	if d.node.since(major) {
		return node{}
	}
	return part
}

// report is all of `nvidia-smi -q` for one GPU, in the real program's order.
func (d *device) report() []node {
	all := d.identity()
	all = append(all, d.bus(), leaf("Fan Speed", "fan_speed", none))
	all = append(all, d.performance()...)
	all = append(all, d.memories()...)
	all = append(all, d.use()...)
	all = append(all, d.errors()...)
	all = append(all, d.temperatures()...)
	all = append(all, d.powers()...)
	all = append(all, d.clocks()...)
	return append(all, d.end()...)
}

func (d *device) identity() []node {
	mode := d.migMode()
	all := []node{
		leaf("Product Name", "product_name", d.Name),
		leaf("Product Brand", "product_brand", d.Brand),
		leaf("Product Architecture", "product_architecture", d.Architecture),
		leaf("Display Mode", "display_mode", d.displayMode()),
		d.since(575, leaf("Display Attached", "display_attached", "No")),
		leaf("Display Active", "display_active", "Disabled"),
		leaf("Persistence Mode", "persistence_mode", "Enabled"),
		leaf("Addressing Mode", "addressing_mode", "None"),
		group("MIG Mode", "mig_mode", leaf("Current", "current_mig", mode), leaf("Pending", "pending_mig", mode)),
	}
	all = append(all, d.instances()...)
	return append(all,
		leaf("Accounting Mode", "accounting_mode", "Disabled").in("ACCOUNTING"),
		leaf("Accounting Mode Buffer Size", "accounting_mode_buffer_size", "4000").in("ACCOUNTING"),
		group("Driver Model", "driver_model", leaf("Current", "current_dm", none), leaf("Pending", "pending_dm", none)),
		leaf("Serial Number", "serial", d.Serial),
		leaf("GPU UUID", "uuid", d.UUID),
		d.since(580, leaf("GPU PDI", "pdi", none)),
		leaf("Minor Number", "minor_number", strconv.Itoa(d.Minor)),
		leaf("VBIOS Version", "vbios_version", none),
		leaf("MultiGPU Board", "multigpu_board", "No"),
		leaf("Board ID", "board_id", fmt.Sprintf("0x%x", d.address().bus<<8|d.address().slot)),
		leaf("Board Part Number", "board_part_number", none),
		leaf("GPU Part Number", "gpu_part_number", none),
		leaf("FRU Part Number", "gpu_fru_part_number", none),
		group("Platform Info", "platformInfo",
			leaf("Chassis Serial Number", "chassis_serial_number", none), leaf("Slot Number", "slot_number", none),
			leaf("Tray Index", "tray_index", none), leaf("Host ID", "host_id", none), leaf("Peer Type", "peer_type", none),
			leaf("Module Id", "module_id", none), leaf("GPU Fabric GUID", "gpu_fabric_guid", none)),
		group("Inforom Version", "inforom_version",
			leaf("Image Version", "img_version", none), leaf("OEM Object", "oem_object", none),
			leaf("ECC Object", "ecc_object", none), leaf("Power Management Object", "pwr_object", none)),
		group("Inforom BBX Object Flush", "inforom_bbx_flush",
			leaf("Latest Timestamp", "latest_timestamp", none), leaf("Latest Duration", "latest_duration", none)),
		group("GPU Operation Mode", "gpu_operation_mode",
			leaf("Current", "current_gom", none), leaf("Pending", "pending_gom", none)),
		leaf("GPU C2C Mode", "c2c_mode", d.c2c()),
		group("GPU Virtualization Mode", "gpu_virtualization_mode",
			leaf("Virtualization Mode", "virtualization_mode", "None"), leaf("Host VGPU Mode", "host_vgpu_mode", none),
			leaf("vGPU Heterogeneous Mode", "vgpu_heterogeneous_mode", none)),
		d.before(580, group("GPU Reset Status", "gpu_reset_status", leaf("Reset Required", "reset_required", deprecated),
			leaf("Drain and Reset Recommended", "drain_and_reset_recommended", deprecated))),
		leaf("GPU Recovery Action", "gpu_recovery_action", d.recovery()),
		leaf("GSP Firmware Version", "gsp_firmware_version", d.node.DriverVersion).in("GSP_FIRMWARE_VERSION"),
		group("IBMNPU", "ibmnpu", leaf("Relaxed Ordering Mode", "relaxed_ordering_mode", none)),
	)
}

// instances are the MIG devices: side by side in text, within one element in XML.
func (d *device) instances() []node {
	texts, elements := []node{}, node{tag: "mig_devices", kids: []node{}}
	if len(d.Instances) == 0 {
		elements.value = "None"
		return []node{elements}
	}
	for _, part := range d.Instances {
		has := d.engines(part)
		kids := []node{
			leaf("Index", "index", strconv.Itoa(part.Index)),
			leaf("GPU Instance ID", "gpu_instance_id", strconv.Itoa(part.GI)),
			leaf("Compute Instance ID", "compute_instance_id", strconv.Itoa(part.CI)),
			group("Device Attributes", "device_attributes", group("Shared", "shared",
				leaf("Multiprocessor count", "multiprocessor_count", strconv.Itoa(part.Multiprocessors)),
				leaf("Copy Engine count", "copy_engine_count", strconv.Itoa(has.copy)),
				leaf("Encoder count", "encoder_count", "0"),
				leaf("Decoder count", "decoder_count", strconv.Itoa(has.decoder)),
				leaf("OFA count", "ofa_count", strconv.Itoa(has.ofa)),
				leaf("JPG count", "jpg_count", strconv.Itoa(has.jpeg)))),
			group("ECC Errors", "ecc_error_count",
				group("Volatile", "volatile_count", leaf("SRAM Uncorrectable", "sram_uncorrectable", "0"))),
			group("FB Memory Usage", "fb_memory_usage", leaf("Total", "total", unit(number(part.MemoryTotal), "MiB")),
				leaf("Reserved", "reserved", "0 MiB"), leaf("Used", "used", unit(number(part.MemoryUsed), "MiB")),
				leaf("Free", "free", unit(number(part.MemoryTotal-part.MemoryUsed), "MiB"))),
			group("BAR1 Memory Usage", "bar1_memory_usage", leaf("Total", "total", unit(number(d.bar1Share(part)), "MiB")),
				leaf("Used", "used", "0 MiB"), leaf("Free", "free", unit(number(d.bar1Share(part)), "MiB"))),
		}
		texts = append(texts, group("MIG Device", "", kids...))
		elements.kids = append(elements.kids, group("", "mig_device", kids...))
	}
	return append(texts, elements)
}

func (d *device) bus() node {
	at, generation := d.address(), d.pcieGeneration()
	hex := func(label, tag, form string, value uint64) []node { // text has 0x in front, XML has not
		digits := fmt.Sprintf(form, value)
		return []node{leaf(label, "", "0x"+digits), leaf("", tag, digits)}
	}
	kids := hex("Bus", "pci_bus", "%02X", at.bus)
	kids = append(kids, hex("Device", "pci_device", "%02X", at.slot)...)
	kids = append(kids, hex("Domain", "pci_domain", "%04X", at.domain)...)
	kids = append(kids, leaf("Base Classcode", "", "0x3"), leaf("", "pci_base_class", "3"),
		leaf("Sub Classcode", "", "0x2"), leaf("", "pci_sub_class", "2"),
		leaf("Device Id", "", d.deviceID()), leaf("", "pci_device_id", d.deviceID()[2:]),
		leaf("Bus Id", "pci_bus_id", d.PCIBusID), leaf("Sub System Id", "pci_sub_system_id", none),
		group("GPU Link Info", "pci_gpu_link_info",
			group("PCIe Generation", "pcie_gen",
				leaf("Max", "max_link_gen", generation), leaf("Current", "current_link_gen", generation),
				leaf("Device Current", "device_current_link_gen", generation), leaf("Device Max", "max_device_link_gen", generation),
				leaf("Host Max", "max_host_link_gen", none)),
			group("Link Width", "link_widths", leaf("Max", "max_link_width", "16x"), leaf("Current", "current_link_width", "16x"))),
		group("Bridge Chip", "pci_bridge_chip", leaf("Type", "bridge_chip_type", none), leaf("Firmware", "bridge_chip_fw", none)),
		leaf("Replays Since Reset", "replay_counter", "0"),
		leaf("Replay Number Rollovers", "replay_rollover_counter", "0"),
		leaf("Tx Throughput", "tx_util", none), leaf("Rx Throughput", "rx_util", none),
		leaf("Atomic Caps Outbound", "atomic_caps_outbound", none), leaf("Atomic Caps Inbound", "atomic_caps_inbound", none))
	return group("PCI", "pci", kids...)
}

func (d *device) performance() []node {
	const prefix = "clocks_event_reason_"
	reason := func(label, name string, bit int) node { return leaf(label, prefix+name, d.reason(bit)) }
	kids := []node{
		reason("Idle", "gpu_idle", gpuIdle),
		reason("Applications Clocks Setting", "applications_clocks_setting", appClocks),
		reason("SW Power Cap", "sw_power_cap", swPowerCap),
		reason("HW Slowdown", "hw_slowdown", hwSlowdown),
		// its two causes: one step further in, in text; side by side with it, in XML
		{kids: []node{
			leaf("HW Thermal Slowdown", "", d.reason(hwThermal)),
			leaf("HW Power Brake Slowdown", "", d.reason(hwPowerBrake)),
		}},
		reason("", "hw_thermal_slowdown", hwThermal),
		reason("", "hw_power_brake_slowdown", hwPowerBrake),
		reason("Sync Boost", "sync_boost", syncBoost),
		reason("SW Thermal Slowdown", "sw_thermal_slowdown", swThermal),
		reason("Display Clock Setting", "display_clocks_setting", displayClocks),
	}
	sparse := none
	if cap := d.capability(); cap >= 9.0 && cap < 10.0 {
		sparse = "Disabled"
	}
	const counters = "clocks_event_reasons_counters"
	return []node{
		leaf("Performance State", "performance_state", d.PState).in("PERFORMANCE"),
		group("Clocks Event Reasons", "clocks_event_reasons", kids...).in("PERFORMANCE"),
		d.since(575, group("Clocks Event Reasons Counters", counters,
			leaf("SW Power Capping", counters+"_sw_power_cap", none), leaf("Sync Boost", counters+"_sync_boost", none),
			leaf("SW Thermal Slowdown", counters+"_sw_therm_slowdown", none),
			leaf("HW Thermal Slowdown", counters+"_hw_therm_slowdown", none),
			leaf("HW Power Braking", counters+"_hw_power_brake", none)).in("PERFORMANCE")),
		leaf("Sparse Operation Mode", "sparse_operation_mode", sparse).in("PERFORMANCE"),
	}
}
