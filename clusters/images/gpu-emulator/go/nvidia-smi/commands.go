package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
)

// commands are the words that the real program takes instead of options.
var commands = map[string]bool{
	"topo": true, "nvlink": true, "mig": true, "dmon": true, "daemon": true, "replay": true, "pmon": true, "drain": true,
	"c2c": true, "clocks": true, "encodersessions": true, "fbcsessions": true, "vgpu": true, "compute-policy": true,
	"boost-slider": true, "power-hint": true, "base-clocks": true, "conf-compute": true, "gpm": true, "pci": true,
	"power-smoothing": true, "power-profiles": true,
}

const early = "Terminating early due to previous errors.\n"

func runCommand(out io.Writer, asked *request, chosen []*device) error {
	words := strings.Join(asked.command, " ")
	switch words {
	case "topo -m", "topo --matrix":
		return writeTopology(out, chosen)
	case "nvlink -s", "nvlink --status":
		return writeLinks(out, chosen)
	}
	if asked.command[0] == "mig" {
		return refuseMIG(asked.command[1:], chosen)
	}
	return failure{fmt.Sprintf("\"nvidia-smi %s\" is not emulated.\n", words), notAvailable}
}

// refuseMIG: a container may not look into MIG, let alone cut GPUs, in reality either.
func refuseMIG(words []string, chosen []*device) error {
	cut := false
	for _, each := range chosen {
		cut = cut || each.mig()
	}
	if !cut {
		return failure{"No MIG-enabled devices found.\n", notFound}
	}
	what := "Insufficient Permissions\n"
	for _, word := range words {
		switch word {
		case "-lgip", "--list-gpu-instance-profiles":
			what = "Failed to display GPU instance profiles: " + what
		case "-lgi", "--list-gpu-instances":
			what = "Failed to display GPU instances: " + what
		case "-lcip", "--list-compute-instance-profiles":
			what = "Failed to display compute instance profiles: " + what
		case "-lci", "--list-compute-instances":
			what = "Failed to display compute instances: " + what
		}
	}
	return failure{what, noPermission}
}

// refuseChange answers every option that would change a GPU as the driver answers those who are not root.
func refuseChange(asked *request, chosen []*device) error {
	d := chosen[0]
	if d.Lost {
		return d.gone()
	}
	text := fmt.Sprintf("Unable to change this setting for GPU %s: %s\n", d.PCIBusID, forbidden)
	switch asked.change {
	case "-pm":
		text = fmt.Sprintf("Unable to set persistence mode for GPU %s: %s\n", d.PCIBusID, forbidden)
	case "-pl":
		text = fmt.Sprintf("Failed to set power management limit for GPU %s: %s\n", d.PCIBusID, forbidden)
	case "-r":
		text = fmt.Sprintf("Unable to reset GPU %s: %s\n", d.PCIBusID, forbidden)
	case "-mig":
		verb := "enable"
		if asked.value == "0" || strings.EqualFold(asked.value, "DISABLED") {
			verb = "disable"
		}
		text = fmt.Sprintf("Unable to %s MIG Mode for GPU %s: %s\n", verb, d.PCIBusID, forbidden)
	case "-lgc", "-rgc", "-lmc", "-rmc", "-lmcd", "-rmcd", "-ac", "-rac":
		text = fmt.Sprintf("The current user does not have permission to change clocks for GPU %s.\n", d.PCIBusID)
	}
	return failure{text + early, noPermission}
}

// writeTopology is `topo -m`. An emulated node has one socket; where there is NVLink, all GPUs are on one switch.
func writeTopology(out io.Writer, chosen []*device) error {
	for _, each := range chosen {
		fmt.Fprintf(out, "\tGPU%d", each.position)
	}
	fmt.Fprint(out, "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n")
	for _, row := range chosen {
		fmt.Fprintf(out, "GPU%d", row.position)
		for _, column := range chosen {
			fmt.Fprintf(out, "\t%s", between(row, column))
		}
		fmt.Fprintf(out, "\t0-%d\t0\t\tN/A\n", runtime.NumCPU()-1)
	}
	fmt.Fprint(out, `
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
`)
	return nil
}

func between(row, column *device) string {
	links, _ := row.nvlinks()
	switch {
	case row == column:
		return " X "
	case links == 0 || row.mig() || column.mig():
		return "PHB"
	}
	return fmt.Sprintf("NV%d", links)
}

// writeLinks is `nvlink -s`.
func writeLinks(out io.Writer, chosen []*device) error {
	for _, each := range chosen {
		fmt.Fprintf(out, "GPU %d: %s (UUID: %s)\n", each.position, each.Name, each.UUID)
		links, speed := each.nvlinks()
		switch {
		case each.mig():
			fmt.Fprintln(out, "Nvlink queries are not supported for Devices in MIG mode")
		case links == 0:
			fmt.Fprintln(out, "Device does not have or support Nvlink")
		}
		for link := 0; link < links && !each.mig(); link++ {
			fmt.Fprintf(out, "\t Link %d: %s\n", link, speed)
		}
	}
	return nil
}
