package main

// use and readings of `nvidia-smi -q`

func (d *device) memories() []node {
	usage := func(label, tag string, total, used, free string) node {
		return group(label, tag, leaf("Total", "total", unit(total, "MiB")), leaf("Used", "used", unit(used, "MiB")),
			leaf("Free", "free", unit(free, "MiB"))).in("MEMORY")
	}
	fb := usage("FB Memory Usage", "fb_memory_usage", d.memory(d.MemoryTotal), d.memory(d.MemoryUsed), d.memory(d.MemoryFree))
	reserved := leaf("Reserved", "reserved", unit(d.memory(d.reserved()), "MiB"))
	fb.kids = []node{fb.kids[0], reserved, fb.kids[1], fb.kids[2]}
	return []node{
		fb,
		usage("BAR1 Memory Usage", "bar1_memory_usage", d.memory(d.bar1()), d.memory(0), d.memory(d.bar1())),
		usage("Conf Compute Protected Memory Usage", "cc_protected_memory_usage", "0", "0", "0"),
	}
}

// samples is what -d has beside a reading: none are kept.
func samples(label, section string) node {
	const missing = "Not Found"
	found := group(label, "", leaf("Duration", "", missing), leaf("Number of Samples", "", missing), leaf("Max", "", missing),
		leaf("Min", "", missing), leaf("Avg", "", missing)).in(section)
	found.sample = true
	return found
}

func (d *device) use() []node {
	share := func(label, tag string, value float64) node { return leaf(label, tag, unit(d.utilization(value), "%")) }
	stats := func(label, tag, section string) node {
		return group(label, tag, leaf("Active Sessions", "session_count", "0"), leaf("Average FPS", "average_fps", "0"),
			leaf("Average Latency", "average_latency", "0")).in(section)
	}
	return []node{
		leaf("Compute Mode", "compute_mode", "Default").in("COMPUTE"),
		group("Utilization", "utilization",
			share("GPU", "gpu_util", d.UtilizationGPU), share("Memory", "memory_util", d.UtilizationMemory),
			share("Encoder", "encoder_util", 0), share("Decoder", "decoder_util", 0), share("JPEG", "jpeg_util", 0),
			share("OFA", "ofa_util", 0)).in("UTILIZATION"),
		samples("GPU Utilization Samples", "UTILIZATION"), samples("Memory Utilization Samples", "UTILIZATION"),
		samples("ENC Utilization Samples", "UTILIZATION"), samples("DEC Utilization Samples", "UTILIZATION"),
		stats("Encoder Stats", "encoder_stats", "ENCODER_STATS"), stats("FBC Stats", "fbc_stats", "FBC_STATS"),
		group("DRAM Encryption Mode", "dram_encryption_mode",
			leaf("Current", "current_dram_encryption", none), leaf("Pending", "pending_dram_encryption", none)),
	}
}

func (d *device) errors() []node {
	return []node{
		group("ECC Mode", "ecc_mode",
			leaf("Current", "current_ecc", "Enabled"), leaf("Pending", "pending_ecc", "Enabled")).in("ECC"),
		d.eccErrors().in("ECC"),
		d.retired().in("PAGE_RETIREMENT"),
		d.remapped().in("ROW_REMAPPER"),
	}
}

// Only GPUs since Ampere tell kinds and places of errors in SRAM apart.
func (d *device) eccErrors() node {
	zero := func(label, tag string) node { return leaf(label, tag, "0") }
	sram := []node{zero("SRAM Correctable", "sram_correctable"), zero("SRAM Uncorrectable", "sram_uncorrectable")}
	if d.capability() >= 8.0 {
		sram = []node{
			sram[0],
			zero("SRAM Uncorrectable Parity", "sram_uncorrectable_parity"),
			zero("SRAM Uncorrectable SEC-DED", "sram_uncorrectable_secded"),
		}
	}
	counts := append(sram,
		leaf("DRAM Correctable", "dram_correctable", number(d.ECCCorrected)),
		leaf("DRAM Uncorrectable", "dram_uncorrectable", number(d.ECCUncorrected)))
	all := []node{group("Volatile", "volatile", counts...), group("Aggregate", "aggregate", counts...)}
	if d.capability() >= 8.0 {
		all[1].kids = append(all[1].kids[:len(counts):len(counts)],
			leaf("SRAM Threshold Exceeded", "sram_threshold_exceeded", "No"))
		all = append(all,
			group("Aggregate Uncorrectable SRAM Sources", "aggregate_uncorrectable_sram_sources",
				zero("SRAM L2", "sram_l2"), zero("SRAM SM", "sram_sm"), zero("SRAM Microcontroller", "sram_microcontroller"),
				zero("SRAM PCIE", "sram_pcie"), zero("SRAM Other", "sram_other")),
			d.since(580, leaf("Channel Repair Pending", "channel_repair_pending", "No")),
			d.since(580, leaf("TPC Repair Pending", "tpc_repair_pending", "No")))
	}
	return group("ECC Errors", "ecc_errors", all...)
}

// GPUs before Ampere retire pages, those since remap rows.
func (d *device) retires() bool { return d.capability() < 8.0 }

func (d *device) retired() node {
	count, pending := none, none
	if d.retires() {
		count, pending = "0", "No"
	}
	kind := func(tag string) node {
		pages := leaf("", "retired_pagelist", none)
		if d.retires() {
			pages = node{tag: "retired_pagelist", kids: []node{}}
		}
		return group("", tag, leaf("", "retired_count", count), pages)
	}
	return group("Retired Pages", "retired_pages",
		kind("multiple_single_bit_retirement"), kind("double_bit_retirement"),
		leaf("Single Bit ECC", "", count), leaf("Double Bit ECC", "", count),
		leaf("Pending Page Blacklist", "pending_blacklist", pending), leaf("", "pending_retirement", pending))
}

func (d *device) remapped() node {
	if d.retires() {
		return leaf("Remapped Rows", "remapped_rows", none)
	}
	return group("Remapped Rows", "remapped_rows",
		leaf("Correctable Error", "remapped_row_corr", "0"), leaf("Uncorrectable Error", "remapped_row_unc", "0"),
		leaf("Pending", "remapped_row_pending", "No"), leaf("Remapping Failure Occurred", "remapped_row_failure", "No"),
		group("Bank Remap Availability Histogram", "row_remapper_histogram",
			leaf("Max", "row_remapper_histogram_max", none), leaf("High", "row_remapper_histogram_high", none),
			leaf("Partial", "row_remapper_histogram_partial", none), leaf("Low", "row_remapper_histogram_low", none),
			leaf("None", "row_remapper_histogram_none", none)))
}

// GPUs since Ada say how far they are from their limits, those before say the limits.
func (d *device) temperatures() []node {
	kids := []node{
		leaf("GPU Current Temp", "gpu_temp", unit(number(d.TemperatureGPU), "C")),
		leaf("GPU T.Limit Temp", "gpu_temp_tlimit", unit(d.margin(), "C")),
	}
	memory := none
	if d.capability() >= 8.9 {
		if d.TemperatureMemory != nil {
			memory = "0 C"
		}
		kids = append(kids,
			leaf("GPU Shutdown T.Limit Temp", "gpu_temp_max_tlimit_threshold", "-8 C"),
			leaf("GPU Slowdown T.Limit Temp", "gpu_temp_slow_tlimit_threshold", "-2 C"),
			leaf("GPU Max Operating T.Limit Temp", "gpu_temp_max_gpu_tlimit_threshold", "0 C"),
			leaf("GPU Target Temperature", "gpu_target_temperature", none),
			leaf("Memory Current Temp", "memory_temp", unit(d.hbmTemperature(), "C")),
			leaf("Memory Max Operating T.Limit Temp", "gpu_temp_max_mem_tlimit_threshold", memory))
	} else {
		if d.TemperatureMemory != nil {
			memory = "95 C"
		}
		shutdown, slowdown := "92 C", "89 C"
		if d.retires() {
			shutdown, slowdown = "96 C", "93 C"
		}
		kids = append(kids,
			leaf("GPU Shutdown Temp", "gpu_temp_max_threshold", shutdown),
			leaf("GPU Slowdown Temp", "gpu_temp_slow_threshold", slowdown),
			leaf("GPU Max Operating Temp", "gpu_temp_max_gpu_threshold", "85 C"),
			leaf("GPU Target Temperature", "gpu_target_temperature", none),
			leaf("Memory Current Temp", "memory_temp", unit(d.hbmTemperature(), "C")),
			leaf("Memory Max Operating Temp", "gpu_temp_max_mem_threshold", memory))
	}
	target := group("", "supported_gpu_target_temp",
		leaf("", "gpu_target_temp_min", none), leaf("", "gpu_target_temp_max", none))
	listed := group("Supported GPU Target Temperature", "",
		leaf("GPU Target Temp Min", "", none), leaf("GPU Target Temp Max", "", none))
	listed.sample = true
	return []node{
		group("Temperature", "temperature", kids...).in("TEMPERATURE"), target, listed.in("SUPPORTED_GPU_TARGET_TEMP"),
	}
}

func (d *device) powers() []node {
	readings := func(label, tag, draw, limit, whole, lowest string) node {
		return group(label, tag,
			leaf("", "power_state", d.PState),
			leaf("Average Power Draw", "average_power_draw", unit(draw, "W")),
			leaf("Instantaneous Power Draw", "instant_power_draw", unit(draw, "W")),
			leaf("Current Power Limit", "current_power_limit", unit(limit, "W")),
			leaf("Requested Power Limit", "requested_power_limit", unit(limit, "W")),
			leaf("Default Power Limit", "default_power_limit", unit(whole, "W")),
			leaf("Min Power Limit", "min_power_limit", unit(lowest, "W")),
			leaf("Max Power Limit", "max_power_limit", unit(whole, "W"))).in("POWER")
	}
	draw, limit := watts(d.PowerDraw), watts(d.PowerLimit)
	whole, lowest := watts(d.PowerDefaultLimit), watts(d.minimumPower())
	return []node{
		readings("GPU Power Readings", "gpu_power_readings", draw, limit, whole, lowest),
		samples("Power Samples", "POWER"),
		// the blank at the end is the real program's
		group("GPU Memory Power Readings ", "gpu_memory_power_readings", leaf("Average Power Draw", "average_power_draw", none),
			leaf("Instantaneous Power Draw", "instant_power_draw", none)).in("POWER"),
		readings("Module Power Readings", "module_power_readings", none, none, none, none),
		leaf("Power Smoothing", "power_smoothing", none).in("POWER_SMOOTHING"),
		group("Workload Power Profiles", "power_profiles", leaf("Requested Profiles", "power_profile_requested_profiles", none),
			leaf("Enforced Profiles", "power_profile_enforced_profiles", none)).in("POWER_PROFILES"),
	}
}

func (d *device) clocks() []node {
	clock := func(label, tag string, value float64) node { return leaf(label, tag, unit(number(value), "MHz")) }
	video := func(sm float64) node { return leaf("Video", "video_clock", unit(d.videoClock(sm), "MHz")) }
	pair := func(label, tag string) node {
		return group(label, tag, clock("Graphics", "graphics_clock", d.ClocksMaxSM),
			clock("Memory", "mem_clock", d.ClocksMaxMem)).in("CLOCK")
	}
	return []node{
		group("Clocks", "clocks", clock("Graphics", "graphics_clock", d.ClocksSM), clock("SM", "sm_clock", d.ClocksSM),
			clock("Memory", "mem_clock", d.ClocksMem), video(d.ClocksSM)).in("CLOCK"),
		pair("Applications Clocks", "applications_clocks"),
		pair("Default Applications Clocks", "default_applications_clocks"),
		group("Deferred Clocks", "deferred_clocks", leaf("Memory", "mem_clock", none)).in("CLOCK"),
		group("Max Clocks", "max_clocks",
			clock("Graphics", "graphics_clock", d.ClocksMaxSM), clock("SM", "sm_clock", d.ClocksMaxSM),
			clock("Memory", "mem_clock", d.ClocksMaxMem), video(d.ClocksMaxSM)).in("CLOCK"),
		group("Max Customer Boost Clocks", "max_customer_boost_clocks",
			clock("Graphics", "graphics_clock", d.ClocksMaxSM)).in("CLOCK"),
		samples("SM Clock Samples", "CLOCK"), samples("Memory Clock Samples", "CLOCK"),
		group("Clock Policy", "clock_policy", leaf("Auto Boost", "auto_boost", none),
			leaf("Auto Boost Default", "auto_boost_default", none)).in("CLOCK"),
	}
}

func (d *device) end() []node {
	value := func(label, tag, text string) node { return leaf(label, tag, d.onFabric(text)) }
	steps := group("Supported Clocks", "", leaf("Memory", "", unit(number(d.ClocksMaxMem), "MHz")),
		node{kids: []node{leaf("Graphics", "", unit(number(d.ClocksMaxSM), "MHz"))}}).in("SUPPORTED_CLOCKS")
	accounted := leaf("Accounted Processes", "", "None").in("ACCOUNTING")
	steps.sample, accounted.sample = true, true
	return []node{
		d.before(580, group("Voltage", "voltage", leaf("Graphics", "graphics_volt", none))).in("VOLTAGE"),
		group("Fabric", "fabric", value("State", "state", "Completed"), value("Status", "status", "Success"),
			value("CliqueId", "cliqueId", "0"), value("ClusterUUID", "clusterUuid", "00000000-0000-0000-0000-000000000000"),
			group("Health", "health", d.since(580, leaf("Summary", "summary", none)), leaf("Bandwidth", "bandwidth", none),
				leaf("Route Recovery in progress", "route_recovery_in_progress", none),
				leaf("Route Unhealthy", "route_unhealthy", none), leaf("Access Timeout Recovery", "access_timeout_recovery", none),
				d.since(580, leaf("Incorrect Configuration", "incorrect_configuration", none)))),
		steps,
		group("", "supported_clocks", group("", "supported_mem_clock", leaf("", "value", unit(number(d.ClocksMaxMem), "MHz")),
			leaf("", "supported_graphics_clock", unit(number(d.ClocksMaxSM), "MHz")))),
		leaf("Processes", "", "None").in("PIDS"),
		{tag: "processes", kids: []node{}},
		accounted,
		{tag: "accounted_processes", kids: []node{}},
		group("Capabilities", "capabilities", leaf("EGM", "egm", "disabled")),
	}
}
