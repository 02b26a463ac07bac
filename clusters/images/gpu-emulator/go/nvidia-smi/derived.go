package main

// What the real program reads from the hardware and the emulator's state does not hold: it follows from the model.

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

func (d *device) capability() float64 {
	value, _ := strconv.ParseFloat(d.ComputeCap, 64)
	return value
}

func (d *device) migCapable() bool {
	cap := d.capability()
	return cap == 8.0 || (cap >= 9.0 && cap < 12.0)
}

func (d *device) mig() bool { return d.migCapable() && d.MIGMode == "Enabled" }

func (d *device) migMode() string {
	if !d.migCapable() {
		return none
	}
	return d.MIGMode
}

// Whoever claimed only MIG devices may not look at the memory of the whole GPU: the real driver refuses, too.
func (d *device) memory(value float64) string {
	if d.partial {
		return forbidden
	}
	return number(value)
}

func (d *device) reserved() float64 { return max(0, d.MemoryTotal-d.MemoryUsed-d.MemoryFree) }

func (d *device) utilization(value float64) string {
	if d.mig() {
		return none
	}
	return number(value)
}

func (d *device) hbmTemperature() string {
	if d.TemperatureMemory == nil {
		return none
	}
	return number(*d.TemperatureMemory)
}

// The distance to the temperature at which clocks go down; GPUs before Ada do not report it.
func (d *device) margin() string {
	switch cap := d.capability(); {
	case cap < 8.9:
		return none
	case cap < 9.0:
		return number(88 - d.TemperatureGPU)
	}
	return number(87 - d.TemperatureGPU)
}

func (d *device) idle() bool { return d.UtilizationGPU < 1 && d.Throttle == "" }

// Clocks at half or less are what the hardware's own protection does; above that it is software.
func (d *device) halved() bool { return d.Throttle != "" && d.ClocksSM <= d.ClocksMaxSM/2 }

const (
	gpuIdle       = 0x1
	appClocks     = 0x2
	swPowerCap    = 0x4
	hwSlowdown    = 0x8
	syncBoost     = 0x10
	swThermal     = 0x20
	hwThermal     = 0x40
	hwPowerBrake  = 0x80
	displayClocks = 0x100
	allReasons    = 0x1FF
)

// reasons are nvmlClocksEventReasons.
func (d *device) reasons() int {
	found := 0
	if d.idle() {
		found |= gpuIdle
	}
	switch d.Throttle {
	case "thermal":
		found |= swThermal
		if d.halved() {
			found |= hwSlowdown | hwThermal
		}
	case "power":
		found |= swPowerCap
		if d.halved() {
			found |= hwSlowdown | hwPowerBrake
		}
	}
	return found
}

func (d *device) reason(bit int) string {
	if d.reasons()&bit != 0 {
		return "Active"
	}
	return "Not Active"
}

// What the driver advises after an error, by NVIDIA's XID catalogue.
func (d *device) recovery() string {
	switch d.XID {
	case 48, 95, 119:
		return "Reset"
	case 94:
		return "Drain and Reset"
	}
	return "None"
}

func (d *device) minimumPower() float64 {
	switch limit := d.PowerDefaultLimit; {
	case limit <= 70:
		return 60
	case limit <= 72:
		return 40
	case limit < 700:
		return 100
	}
	return 200
}

func (d *device) videoClock(sm float64) string { return number(math.Round(sm*0.78/15) * 15) }

func (d *device) pcieGeneration() string {
	switch cap := d.capability(); {
	case cap < 8.0:
		return "3"
	case cap < 9.0:
		return "4"
	}
	return "5"
}

// BAR1 covers all memory since Ampere.
func (d *device) bar1() float64 {
	if d.capability() < 8.0 {
		return 256
	}
	return float64(uint64(1) << bits.Len64(uint64(max(1, d.MemoryTotal))-1))
}

// nvlinks is how many links a GPU has, and what one carries.
func (d *device) nvlinks() (int, string) {
	if strings.Contains(strings.ToUpper(d.Name), "PCIE") {
		return 0, ""
	}
	switch cap := d.capability(); {
	case cap == 8.0:
		return 12, "25 GB/s"
	case cap >= 9.0 && cap < 10.0:
		return 18, "26.562 GB/s"
	case cap >= 10.0 && cap < 12.0:
		return 18, "53.125 GB/s"
	}
	return 0, ""
}

func (d *device) onFabric(value string) string {
	if count, _ := d.nvlinks(); count == 0 || d.capability() < 9.0 {
		return none
	}
	return value
}

// address is a PCI address, without the function.
type address struct{ domain, bus, slot uint64 }

// pci reads 00000000:10:00.0, or the same with a shorter domain or none.
func pci(text string) (address, bool) {
	parts := strings.Split(strings.TrimSuffix(text, ".0"), ":")
	if len(parts) == 2 {
		parts = append([]string{"0"}, parts...)
	}
	if len(parts) != 3 {
		return address{}, false
	}
	domain, first := strconv.ParseUint(parts[0], 16, 64)
	bus, second := strconv.ParseUint(parts[1], 16, 64)
	slot, third := strconv.ParseUint(parts[2], 16, 64)
	return address{domain, bus, slot}, first == nil && second == nil && third == nil
}

func (d *device) address() address {
	found, _ := pci(d.PCIBusID)
	return found
}

// at says whether the GPU is at the PCI address `id`.
func (d *device) at(id string) bool {
	found, ok := pci(id)
	return ok && found == d.address()
}

// deviceID is device and vendor, as 0x233010DE.
func (d *device) deviceID() string {
	digits := strings.TrimPrefix(strings.ToUpper(d.PCIDeviceID), "0X")
	if len(digits) == 4 {
		digits += "10DE"
	}
	return "0x" + digits
}

func (d *device) displayMode() string {
	if d.node.since(575) {
		return deprecated
	}
	return "Enabled"
}

// c2c is the link between GPU and CPU on one board.
func (d *device) c2c() string {
	switch {
	case d.capability() < 9.0:
		return none
	case strings.Contains(d.Name, " GB") || strings.Contains(d.Name, " GH"):
		return "Enabled"
	}
	return "Disabled"
}

func (d *device) bar1Share(part instance) float64 {
	slices := math.Round(8 * part.MemoryTotal / max(1, d.MemoryTotal))
	return max(0, d.bar1()*slices/8-1)
}

// engines of a MIG device: what its profile's compute slices come with.
type engines struct{ copy, decoder, ofa, jpeg int }

func (d *device) engines(part instance) engines {
	slices := 0
	fmt.Sscanf(part.Profile, "%dg", &slices)
	whole, media := slices == 7, strings.HasSuffix(part.Profile, "+me")
	found := engines{copy: slices, decoder: slices, jpeg: slices}
	if d.capability() < 9.0 { // an A100 has five decoders and one JPEG engine
		found.decoder, found.jpeg = slices/2, 0
		if whole {
			found.decoder, found.jpeg = 5, 1
		}
	}
	if whole || media {
		found.ofa = 1
	}
	if media {
		found.decoder, found.jpeg = max(found.decoder, 1), max(found.jpeg, 1)
	}
	if whole && d.capability() >= 9.0 {
		found.copy = 8
	}
	return found
}
