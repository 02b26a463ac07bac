package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// field is one that --query-gpu and its sisters know. The first name is the one in headers.
type field struct {
	names []string
	unit  string
	says  string
	value func(*device) string
}

func (f field) header() string {
	if f.unit == "" {
		return f.names[0]
	}
	return fmt.Sprintf("%s [%s]", f.names[0], f.unit)
}

// cell is the value as CSV has it: what is no value stands in brackets and has no unit.
func (f field) cell(d *device, units bool) string {
	switch value := f.value(d); {
	case value == none || value == deprecated || value == forbidden:
		return "[" + value + "]"
	case units && f.unit != "":
		return value + " " + f.unit
	default:
		return value
	}
}

func named(names, unit, says string, value func(*device) string) field {
	return field{strings.Split(names, "|"), unit, says, value}
}

// fixed is a field that is the same for every emulated GPU.
func fixed(names, unit, says, value string) field {
	return named(names, unit, says, func(*device) string { return value })
}

func find(known []field, name string) (field, bool) {
	for _, each := range known {
		for _, alias := range each.names {
			if alias == name {
				return each, true
			}
		}
	}
	return field{}, false
}

// gpuFields are those of --query-gpu, in the order of the real program's help.
func gpuFields() []field {
	all := identityFields()
	all = append(all, boardFields()...)
	all = append(all, clockReasonFields()...)
	all = append(all, loadFields()...)
	all = append(all, eccFields()...)
	all = append(all, repairFields()...)
	all = append(all, temperatureAndPowerFields()...)
	all = append(all, clockFields()...)
	return append(all, modeFields()...)
}

func identityFields() []field {
	const link = "pcie.link."
	generation, vgpu := (*device).pcieGeneration, "Whether this vGPU capability is there."
	return []field{
		named("timestamp", "", "When the query was made, as YYYY/MM/DD HH:MM:SS.msec.", func(*device) string {
			return time.Now().Format("2006/01/02 15:04:05.000")
		}),
		named("driver_version", "", "Version of the driver that is emulated.",
			func(d *device) string { return d.node.DriverVersion }),
		fixed("vgpu_driver_capability.heterogenous_multivGPU", "", vgpu, none),
		named("count", "", "How many GPUs there are.", func(d *device) string { return strconv.Itoa(len(d.node.shown)) }),
		named("name|gpu_name", "", "Product name of the GPU.", func(d *device) string { return d.Name }),
		named("serial|gpu_serial", "", "Serial number of the board.", func(d *device) string { return d.Serial }),
		named("uuid|gpu_uuid", "", "Identifier of the GPU.", func(d *device) string { return d.UUID }),
		named("pci.bus_id|gpu_bus_id", "", "PCI address: domain:bus:device.function, in hex.",
			func(d *device) string { return d.PCIBusID }),
		named("pci.domain", "", "PCI domain, in hex.",
			func(d *device) string { return fmt.Sprintf("0x%04X", d.address().domain) }),
		named("pci.bus", "", "PCI bus, in hex.", func(d *device) string { return fmt.Sprintf("0x%02X", d.address().bus) }),
		named("pci.device", "", "PCI device, in hex.",
			func(d *device) string { return fmt.Sprintf("0x%02X", d.address().slot) }),
		fixed("pci.baseClass", "", "PCI base class, in hex.", "0x3"),
		fixed("pci.subClass", "", "PCI sub class, in hex.", "0x2"),
		named("pci.device_id", "", "PCI device and vendor, in hex.", (*device).deviceID),
		fixed("pci.sub_device_id", "", "PCI subsystem, in hex.", none),
		fixed("vgpu_device_capability.fractional_multiVgpu", "", vgpu, none),
		fixed("vgpu_device_capability.heterogeneous_timeSlice_profile", "", vgpu, none),
		fixed("vgpu_device_capability.heterogeneous_timeSlice_sizes", "", vgpu, none),
		fixed("vgpu_device_capability.homogeneous_placements", "", vgpu, none),
		fixed("vgpu_device_capability.mig_timeSlicing", "", vgpu, none),
		fixed("vgpu_device_capability.mig_timeSlicing_mode", "", vgpu, none),
		named(link+"gen.current", "", "PCIe generation of the link now.", generation),
		named(link+"gen.gpucurrent", "", "PCIe generation of the link now.", generation),
		named(link+"gen.max", "", "Highest PCIe generation of this GPU in this machine.", generation),
		named(link+"gen.gpumax", "", "Highest PCIe generation of this GPU.", generation),
		fixed(link+"gen.hostmax", "", "Highest PCIe generation of the root port.", none),
		fixed(link+"width.current", "", "PCIe lanes of the link now.", "16"),
		fixed(link+"width.max", "", "Most PCIe lanes of the link.", "16"),
		named("index", "", "Number of the GPU, from zero.", func(d *device) string { return strconv.Itoa(d.position) }),
	}
}

func boardFields() []field {
	return []field{
		named("display_mode", "", "Deprecated.", (*device).displayMode),
		fixed("display_attached", "", "Whether a display is attached.", "No"),
		fixed("display_active", "", "Whether a display is initialized.", "Disabled"),
		fixed("persistence_mode", "", "Whether the driver stays loaded without clients.", "Enabled"),
		fixed("addressing_mode", "", "How memory of the system is addressed: HMM, ATS or None.", "None"),
		fixed("accounting.mode", "", "Whether processes are accounted.", "Disabled"),
		fixed("accounting.buffer_size", "", "How many processes can be accounted.", "4000"),
		fixed("driver_model.current", "", "Driver model; N/A on Linux.", none),
		fixed("driver_model.pending", "", "Driver model after the next reboot; N/A on Linux.", none),
		fixed("vbios_version", "", "Version of the board's BIOS.", none),
		fixed("inforom.img|inforom.image", "", "Version of the infoROM image.", none),
		fixed("inforom.oem", "", "Version of the OEM object.", none),
		fixed("inforom.ecc", "", "Version of the ECC object.", none),
		fixed("inforom.pwr|inforom.power", "", "Version of the power management object.", none),
		fixed("inforom.checksum_validation", "", "Whether the infoROM's checksum is right.", none),
		named("gpu_recovery_action", "", "What recovers the GPU from a bad state.", (*device).recovery),
		fixed("gom.current|gpu_operation_mode.current", "", "GPU operation mode.", none),
		fixed("gom.pending|gpu_operation_mode.pending", "", "GPU operation mode after the next reboot.", none),
		fixed("fan.speed", "%", "Speed of the fan; N/A where the chassis cools.", none),
		named("pstate", "", "Performance state, P0 (most) to P12 (least).", func(d *device) string { return d.PState }),
	}
}

func clockReasonFields() []field {
	both := func(name string) string { return "clocks_event_reasons." + name + "|clocks_throttle_reasons." + name }
	active := func(name, says string, bit int) field {
		return named(both(name), "", says, func(d *device) string { return d.reason(bit) })
	}
	all := []field{
		fixed(both("supported"), "", "Bitmask of supported reasons.", fmt.Sprintf("0x%016X", allReasons)),
		named(both("active"), "", "Bitmask of active reasons.",
			func(d *device) string { return fmt.Sprintf("0x%016X", d.reasons()) }),
		active("gpu_idle", "Nothing runs, clocks go down.", gpuIdle),
		active("applications_clocks_setting", "Limited by the applications clocks.", appClocks),
		active("sw_power_cap", "Limited because the power limit is reached.", swPowerCap),
		active("hw_slowdown", "Clocks halved or less by the hardware.", hwSlowdown),
		active("hw_thermal_slowdown", "Clocks halved or less: too hot.", hwThermal),
		active("hw_power_brake_slowdown", "Clocks halved or less: external power brake.", hwPowerBrake),
		active("sw_thermal_slowdown", "Limited because the temperature is too high.", swThermal),
		active("sync_boost", "Limited by other GPUs of its boost group.", syncBoost),
	}
	for _, name := range []string{
		"sw_power_cap", "sync_boost", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown",
	} {
		all = append(all, fixed("clocks_event_reasons_counters."+name, "us", "How long this has held clocks down.", none))
	}
	return all
}

func loadFields() []field {
	return []field{
		named("memory.total", "MiB", "Memory of the GPU.", func(d *device) string { return d.memory(d.MemoryTotal) }),
		named("memory.reserved", "MiB", "Memory that driver and firmware keep.",
			func(d *device) string { return d.memory(d.reserved()) }),
		named("memory.used", "MiB", "Memory in use.", func(d *device) string { return d.memory(d.MemoryUsed) }),
		named("memory.free", "MiB", "Memory that is free.", func(d *device) string { return d.memory(d.MemoryFree) }),
		fixed("compute_mode", "", "Whether several compute applications may run.", "Default"),
		named("compute_cap", "", "CUDA compute capability.", func(d *device) string { return d.ComputeCap }),
		named("utilization.gpu", "%", "Share of time in which a kernel ran. N/A in MIG mode.",
			func(d *device) string { return d.utilization(d.UtilizationGPU) }),
		named("utilization.memory", "%", "Share of time in which memory was read or written. N/A in MIG mode.",
			func(d *device) string { return d.utilization(d.UtilizationMemory) }),
		named("utilization.encoder", "%", "Share of time in which the encoder ran.",
			func(d *device) string { return d.utilization(0) }),
		named("utilization.decoder", "%", "Share of time in which the decoder ran.",
			func(d *device) string { return d.utilization(0) }),
		named("utilization.jpeg", "%", "Share of time in which the JPEG engine ran.",
			func(d *device) string { return d.utilization(0) }),
		named("utilization.ofa", "%", "Share of time in which the optical flow engine ran.",
			func(d *device) string { return d.utilization(0) }),
		fixed("encoder.stats.sessionCount", "", "Encoder sessions.", "0"),
		fixed("encoder.stats.averageFps", "", "Frames per second of the encoder sessions.", "0"),
		fixed("encoder.stats.averageLatency", "", "Latency of the encoder sessions.", "0"),
		fixed("dramEncryption.mode.current", "", "DRAM encryption.", none),
		fixed("dramEncryption.mode.pending", "", "DRAM encryption after the next reboot.", none),
		fixed("ecc.mode.current", "", "Error correction.", "Enabled"),
		fixed("ecc.mode.pending", "", "Error correction after the next reboot.", "Enabled"),
	}
}

var eccPlaces = []string{
	"device_memory", "dram", "register_file", "l1_cache", "l2_cache", "texture_memory", "cbu", "sram", "total",
}

// eccFields: what the emulator counts are errors of the device's memory since the driver was loaded.
func eccFields() []field {
	all := []field{}
	for _, kind := range []string{"corrected", "uncorrected"} {
		count := func(d *device) string { return number(d.ECCCorrected) }
		if kind == "uncorrected" {
			count = func(d *device) string { return number(d.ECCUncorrected) }
		}
		for _, span := range []string{"volatile", "aggregate"} {
			for _, place := range eccPlaces {
				value := count
				switch place {
				case "sram":
					value = func(*device) string { return "0" }
				case "register_file", "l1_cache", "l2_cache", "texture_memory", "cbu":
					value = func(*device) string { return none }
				}
				name := fmt.Sprintf("ecc.errors.%s.%s.%s", kind, span, place)
				all = append(all, named(name, "", "Errors found in "+strings.ReplaceAll(place, "_", " ")+".", value))
			}
		}
	}
	for _, place := range []string{
		"volatile.sram.parity", "volatile.sram.secded", "aggregate.sram.parity", "aggregate.sram.secded",
	} {
		all = append(all, fixed("ecc.errors.uncorrected."+place, "", "Errors found in SRAM.", "0"))
	}
	const exceeded = "ecc.errors.uncorrected.aggregate.sram.thresholdExceeded"
	all = append(all, fixed(exceeded, "", "Whether SRAM has had too many errors.", "No"))
	for _, place := range []string{"l2", "sm", "mcu", "pcie", "other"} {
		all = append(all, fixed("ecc.errors.uncorrected.aggregate.sram."+place, "", "Errors found in SRAM.", "0"))
	}
	return all
}
