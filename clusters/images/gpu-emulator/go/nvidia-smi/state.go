package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
)

const (
	stateFile     = "/run/nvidia-emulated/devices.json"
	stateVariable = "NVIDIA_EMULATED_STATE"
	visible       = "NVIDIA_VISIBLE_DEVICES"

	none       = "N/A"
	deprecated = "Requested functionality has been deprecated"
	forbidden  = "Insufficient Permissions"
	driverGone = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. " +
		"Make sure that the latest NVIDIA driver is installed and running.\n\n"
)

// instance is a MIG device.
type instance struct {
	Index           int     `json:"index"`
	GI              int     `json:"gi"`
	CI              int     `json:"ci"`
	Profile         string  `json:"profile"`
	UUID            string  `json:"uuid"`
	MemoryTotal     float64 `json:"memoryTotal"`
	MemoryUsed      float64 `json:"memoryUsed"`
	Multiprocessors int     `json:"multiprocessors"`
}

// device is one GPU as the emulator's model has it now. MiB, W, MHz, degrees Celsius, per cent.
type device struct {
	Index             int        `json:"index"`
	Minor             int        `json:"minor"`
	UUID              string     `json:"uuid"`
	Name              string     `json:"name"`
	Brand             string     `json:"brand"`
	Architecture      string     `json:"architecture"`
	Serial            string     `json:"serial"`
	PCIBusID          string     `json:"pciBusId"`
	PCIDeviceID       string     `json:"pciDeviceId"`
	ComputeCap        string     `json:"computeCap"`
	TemperatureGPU    float64    `json:"temperatureGpu"`
	TemperatureMemory *float64   `json:"temperatureMemory"`
	PowerDraw         float64    `json:"powerDraw"`
	PowerLimit        float64    `json:"powerLimit"`
	PowerDefaultLimit float64    `json:"powerDefaultLimit"`
	UtilizationGPU    float64    `json:"utilizationGpu"`
	UtilizationMemory float64    `json:"utilizationMemory"`
	MemoryTotal       float64    `json:"memoryTotal"`
	MemoryUsed        float64    `json:"memoryUsed"`
	MemoryFree        float64    `json:"memoryFree"`
	ClocksSM          float64    `json:"clocksSm"`
	ClocksMem         float64    `json:"clocksMem"`
	ClocksMaxSM       float64    `json:"clocksMaxSm"`
	ClocksMaxMem      float64    `json:"clocksMaxMem"`
	PState            string     `json:"pstate"`
	ECCCorrected      float64    `json:"eccCorrected"`
	ECCUncorrected    float64    `json:"eccUncorrected"`
	XID               int        `json:"xid"`
	Throttle          string     `json:"throttle"`
	MIGMode           string     `json:"migMode"`
	Lost              bool       `json:"lost"`
	Instances         []instance `json:"migDevices"`

	position int    // among those this container may see
	partial  bool   // only some of its MIG devices were claimed, not the GPU itself
	node     *state // it is part of
}

// state is what the emulator writes: all GPUs of the node. `shown` are those this container may see.
type state struct {
	DriverVersion string    `json:"driverVersion"`
	CUDAVersion   string    `json:"cudaVersion"`
	Devices       []*device `json:"devices"`

	shown []*device
}

func load() (*state, error) {
	path := stateFile
	if other := os.Getenv(stateVariable); other != "" {
		path = other
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, failure{driverGone, noDriver}
	}
	node := &state{}
	if err := json.Unmarshal(text, node); err != nil {
		return nil, failure{driverGone, noDriver}
	}
	sort.SliceStable(node.Devices, func(a, b int) bool { return node.Devices[a].Index < node.Devices[b].Index })
	wanted := claimed(os.Environ())
	for _, each := range node.Devices {
		each.node = node
		if each.keep(wanted) {
			each.position = len(node.shown)
			node.shown = append(node.shown, each)
		}
	}
	return node, nil
}

// claimed are the words of NVIDIA_VISIBLE_DEVICES and of every variable whose name goes on behind it with `_`: of two
// claims that set the same variable, a container would only have one.
func claimed(environment []string) []string {
	words, set := []string{}, false
	for _, each := range environment {
		name, value, _ := strings.Cut(each, "=")
		if name == visible || strings.HasPrefix(name, visible+"_") {
			words, set = append(words, strings.Split(value, ",")...), true
		}
	}
	if !set {
		return []string{"all"} // nothing limits us: a shell on the node, or the emulator's own container
	}
	return words
}

// keep drops the MIG devices that nothing in `wanted` names, and says whether any of the GPU is to be seen. Numbers
// are the node's own: GPU `0`, MIG device `0:1`.
func (d *device) keep(wanted []string) bool {
	parts := []instance{}
	for _, word := range wanted {
		word, _, _ = strings.Cut(strings.TrimSpace(word), "::") // a time-sliced replica is its GPU
		if word == "all" || word == strconv.Itoa(d.Index) || strings.EqualFold(word, d.UUID) {
			return true
		}
		for _, part := range d.Instances {
			if strings.EqualFold(word, part.UUID) || word == fmt.Sprintf("%d:%d", d.Index, part.Index) {
				part.Index = len(parts)
				parts = append(parts, part)
			}
		}
	}
	d.Instances, d.partial = parts, true
	return len(parts) > 0
}

// selected are the GPUs that -i names: by index, UUID, serial number or PCI address; all when it names none.
func (n *state) selected(ids []string) ([]*device, error) {
	chosen := []*device{}
	for _, each := range n.shown {
		if len(ids) == 0 || each.named(ids) {
			chosen = append(chosen, each)
		}
	}
	if len(chosen) == 0 {
		return nil, failure{"No devices were found\n", notFound}
	}
	return chosen, nil
}

func (d *device) named(ids []string) bool {
	for _, id := range ids {
		if id == strconv.Itoa(d.position) || strings.EqualFold(id, d.UUID) || id == d.Serial || d.at(id) {
			return true
		}
	}
	return false
}

func (d *device) gone() error {
	name := d.PCIBusID[max(0, len(d.PCIBusID)-len("0000:00:00.0")):]
	if d.node.since(580) {
		name = fmt.Sprintf("%d: %s", d.position, name)
	}
	text := "Unable to determine the device handle for GPU%s: GPU is lost.  Reboot the system to recover this GPU\n"
	return failure{fmt.Sprintf(text, name), lostGPU}
}

// verdict ends a list that has lost GPUs in it. Drivers since 580 think nothing of it as long as one is there.
func (n *state) verdict(lost, there int) error {
	switch {
	case lost == 0 || n.since(580) && there > 0:
		return nil
	case n.since(580):
		return failure{"No devices were found\n", lostGPU}
	}
	return failure{"", lostGPU}
}

// reachable leaves out lost GPUs, having said so. To drivers before 580 one lost GPU is the end of everything that is
// not a list; -i looks at the others.
func (n *state) reachable(out io.Writer, chosen []*device) ([]*device, error) {
	there := []*device{}
	for _, each := range chosen {
		switch {
		case !each.Lost:
			there = append(there, each)
		case !n.since(580):
			return nil, each.gone()
		default:
			fmt.Fprint(out, each.gone().Error())
		}
	}
	return there, n.verdict(len(chosen)-len(there), len(there))
}

// since says whether the emulated driver is this one or a newer one: layouts differ a little between them.
func (n *state) since(major int) bool {
	first, _, _ := strings.Cut(n.DriverVersion, ".")
	number, _ := strconv.Atoi(first)
	return number >= major
}

func number(value float64) string { return strconv.FormatInt(int64(math.Round(value)), 10) }

func watts(value float64) string { return strconv.FormatFloat(value, 'f', 2, 64) }
