package main

import "strconv"

func repairFields() []field {
	retired := func(names, says, value string) field {
		return named(names, "", says, func(d *device) string {
			if d.retires() {
				return value
			}
			return none
		})
	}
	remapped := func(names, says, value string) field {
		return named(names, "", says, func(d *device) string {
			if d.retires() {
				return none
			}
			return value
		})
	}
	return []field{
		retired("retired_pages.single_bit_ecc.count|retired_pages.sbe", "Pages retired for single bit errors.", "0"),
		retired("retired_pages.double_bit.count|retired_pages.dbe", "Pages retired for a double bit error.", "0"),
		retired("retired_pages.pending", "Whether pages wait to be retired.", "No"),
		remapped("remapped_rows.correctable|remapped_rows.sbe", "Rows remapped for single bit errors.", "0"),
		remapped("remapped_rows.correctable_inactive", "The same, not in effect.", "0"),
		remapped("remapped_rows.uncorrectable|remapped_rows.dbe", "Rows remapped for a double bit error.", "0"),
		remapped("remapped_rows.uncorrectable_inactive", "The same, not in effect.", "0"),
		remapped("remapped_rows.pending", "Whether rows wait to be remapped.", "No"),
		remapped("remapped_rows.failure", "Whether remapping failed.", "No"),
		fixed("remapped_rows.histogram.max", "", "Banks with all spare rows.", none),
		fixed("remapped_rows.histogram.high", "", "Banks with many spare rows.", none),
		fixed("remapped_rows.histogram.partial", "", "Banks with some spare rows.", none),
		fixed("remapped_rows.histogram.low", "", "Banks with few spare rows.", none),
		fixed("remapped_rows.histogram.none", "", "Banks without spare rows.", none),
	}
}

func temperatureAndPowerFields() []field {
	draw := func(d *device) string { return watts(d.PowerDraw) }
	limit := func(d *device) string { return watts(d.PowerLimit) }
	whole := func(d *device) string { return watts(d.PowerDefaultLimit) }
	all := []field{
		named("temperature.gpu", "", "Temperature of the core, in degrees C.",
			func(d *device) string { return number(d.TemperatureGPU) }),
		named("temperature.gpu.tlimit", "", "Degrees C below the limit.", (*device).margin),
		named("temperature.memory", "", "Temperature of the HBM, in degrees C.", (*device).hbmTemperature),
		fixed("power.management", "", "Whether power is managed.", "Enabled"),
		named("power.draw", "W", "Power of the board, mean of a second.", draw),
		named("power.draw.average|gpu.power.draw.average", "W", "Power of the board, mean of a second.", draw),
		named("power.draw.instant|gpu.power.draw.instant", "W", "Power of the board.", draw),
		named("power.limit|gpu.power.requested_limit", "W", "Power limit that software asked for.", limit),
		named("enforced.power.limit|gpu.power.current_limit", "W", "Power limit in effect.", limit),
		named("power.default_limit|gpu.power.default_limit", "W", "Default power limit.", whole),
		named("power.min_limit|gpu.power.min_limit", "W", "Lowest power limit.",
			func(d *device) string { return watts(d.minimumPower()) }),
		named("power.max_limit|gpu.power.max_limit", "W", "Highest power limit.", whole),
	}
	for _, name := range []string{
		"module.power.draw.average", "module.power.draw.instant", "module.power.limit|module.power.requested_limit",
		"module.enforced.power.limit|module.power.current_limit", "module.power.default_limit",
		"module.power.min_limit", "module.power.max_limit",
	} {
		all = append(all, fixed(name, "W", "Power of the module.", none))
	}
	for _, each := range [][2]string{
		{"delayed_power_smoothing_supported", ""}, {"primary_power_floor", "W"}, {"secondary_power_floor", "W"},
		{"min_primary_floor_activation_offset", "W"}, {"min_primary_floor_activation_point", "W"},
		{"window_multiplier", "ms"}, {"curr_profile.secondary_power_floor", "W"},
		{"curr_profile.primary_floor_act_window_multiplier", ""}, {"curr_profile.primary_floor_tar_window_multiplier", ""},
		{"curr_profile.primary_floor_act_offset", "W"}, {"admin_override.secondary_power_floor", "W"},
		{"admin_override.primary_floor_act_window_multiplier", ""}, {"admin_override.primary_floor_tar_window_multiplier", ""},
		{"admin_override.primary_floor_act_offset", "W"},
	} {
		all = append(all, fixed("power_smoothing."+each[0], each[1], "Power smoothing.", none))
	}
	return all
}

func clockFields() []field {
	sm := func(d *device) string { return number(d.ClocksSM) }
	memory := func(d *device) string { return number(d.ClocksMem) }
	maxSM := func(d *device) string { return number(d.ClocksMaxSM) }
	maxMemory := func(d *device) string { return number(d.ClocksMaxMem) }
	return []field{
		named("clocks.current.graphics|clocks.gr", "MHz", "Clock of the graphics engine.", sm),
		named("clocks.current.sm|clocks.sm", "MHz", "Clock of the multiprocessors.", sm),
		named("clocks.current.memory|clocks.mem", "MHz", "Clock of the memory.", memory),
		named("clocks.current.video|clocks.video", "MHz", "Clock of the video engines.",
			func(d *device) string { return d.videoClock(d.ClocksSM) }),
		named("clocks.applications.graphics|clocks.applications.gr", "MHz", "Clock for applications.", maxSM),
		named("clocks.applications.memory|clocks.applications.mem", "MHz", "Memory clock for applications.", maxMemory),
		named("clocks.default_applications.graphics|clocks.default_applications.gr", "MHz", "Default clock for applications.", maxSM),
		named("clocks.default_applications.memory|clocks.default_applications.mem", "MHz",
			"Default memory clock for applications.", maxMemory),
		named("clocks.max.graphics|clocks.max.gr", "MHz", "Highest clock of the graphics engine.", maxSM),
		named("clocks.max.sm|clocks.max.sm", "MHz", "Highest clock of the multiprocessors.", maxSM),
		named("clocks.max.memory|clocks.max.mem", "MHz", "Highest clock of the memory.", maxMemory),
	}
}

func modeFields() []field {
	all := []field{
		named("mig.mode.current", "", "Whether MIG is on.", (*device).migMode),
		named("mig.mode.pending", "", "Whether MIG is on after a reset.", (*device).migMode),
		fixed("gsp.mode.current", "", "Whether GSP firmware runs.", "Enabled"),
		fixed("gsp.mode.default", "", "Whether GSP firmware runs by default.", "Enabled"),
		named("c2c.mode", "", "Whether the chip-to-chip link is in use.", (*device).c2c),
		fixed("protected_memory.total", "MiB", "Protected memory.", "0"),
		fixed("protected_memory.used", "MiB", "Protected memory in use.", "0"),
		fixed("protected_memory.free", "MiB", "Protected memory that is free.", "0"),
		named("fabric.state", "", "Registration with the NVLink fabric.",
			func(d *device) string { return d.onFabric("Completed") }),
		named("fabric.status", "", "Error of the registration.", func(d *device) string { return d.onFabric("Success") }),
		named("fabric.cliqueId", "", "Clique in the fabric.", func(d *device) string { return d.onFabric("0") }),
		named("fabric.clusterUuid", "", "Cluster of the fabric.",
			func(d *device) string { return d.onFabric("00000000-0000-0000-0000-000000000000") }),
	}
	for _, name := range []string{
		"fabric.health.summary", "fabric.health.bandwidth", "fabric.health.route_recovery_in_progress",
		"fabric.health.route_unhealthy", "fabric.health.access_timeout_recovery", "fabric.health.incorrect_configuration",
		"fabric.health.partition_assigned", "platform.chassis_serial_number", "platform.slot_number", "platform.tray_index",
		"platform.host_id", "platform.peer_type", "platform.module_id", "platform.gpu_fabric_guid", "hostname",
	} {
		all = append(all, fixed(name, "", "Not known to the emulator.", none))
	}
	return all
}

// common are the fields that every list of one GPU's things has.
func common() []field {
	return []field{
		identityFields()[0],
		named("gpu_name", "", "Product name of the GPU.", func(d *device) string { return d.Name }),
		named("gpu_bus_id", "", "PCI address: domain:bus:device.function, in hex.",
			func(d *device) string { return d.PCIBusID }),
		named("gpu_serial", "", "Serial number of the board.", func(d *device) string { return d.Serial }),
		named("gpu_uuid", "", "Identifier of the GPU.", func(d *device) string { return d.UUID }),
	}
}

// listing is what one --query-* switch knows. `rows` is how many lines a GPU has; nothing runs on an emulated GPU.
type listing struct {
	fields func() []field
	rows   int
}

var listings = map[string]listing{
	"gpu": {gpuFields, 1},
	"compute-apps": {func() []field {
		return append(common(),
			fixed("pid", "", "Process ID.", none),
			fixed("process_name|name", "", "Name of the process.", none),
			fixed("used_gpu_memory|used_memory", "MiB", "Memory the process uses.", none),
		)
	}, 0},
	"accounted-apps": {func() []field {
		return append(common(),
			fixed("vgpu_instance", "", "vGPU instance.", none),
			fixed("pid", "", "Process ID.", none),
			fixed("gpu_utilization|gpu_util", "%", "Utilization of the GPU.", none),
			fixed("mem_utilization|mem_util", "%", "Utilization of the memory.", none),
			fixed("max_memory_usage", "MiB", "Most memory the process used.", none),
			fixed("time", "ms", "How long the process had a context.", none),
		)
	}, 0},
	"retired-pages": {func() []field {
		return append(common(),
			fixed("retired_pages.address", "", "Address of the page.", none),
			fixed("retired_pages.timestamp", "", "When the page was retired.", none),
			fixed("retired_pages.cause", "", "Why the page was retired.", none),
		)
	}, 0},
	"remapped-rows": {func() []field { return append(common(), repairFields()[3:]...) }, 1},
	"supported-clocks": {func() []field {
		return append(common(),
			named("memory|mem", "MHz", "Clock of the memory.",
				func(d *device) string { return strconv.Itoa(int(d.ClocksMaxMem)) }),
			named("graphics|gr", "MHz", "Clock of the graphics engine.",
				func(d *device) string { return strconv.Itoa(int(d.ClocksMaxSM)) }),
		)
	}, 1},
}
