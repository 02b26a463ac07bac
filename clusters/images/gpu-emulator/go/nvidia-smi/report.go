package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// node is a line of the full report, or a group of lines. Text has its label, XML its tag; what only one of the two
// has leaves the other empty.
type node struct {
	label, tag, value string
	kids              []node
	section           string // of -d
	sample            bool   // only shown by -d
}

func leaf(label, tag, value string) node { return node{label: label, tag: tag, value: value} }

func group(label, tag string, kids ...node) node { return node{label: label, tag: tag, kids: kids} }

// in puts a node into a section of -d.
func (n node) in(section string) node {
	n.section = section
	return n
}

var sections = map[string]bool{
	"MEMORY": true, "UTILIZATION": true, "ECC": true, "TEMPERATURE": true, "POWER": true, "CLOCK": true, "COMPUTE": true,
	"PIDS": true, "PERFORMANCE": true, "SUPPORTED_CLOCKS": true, "PAGE_RETIREMENT": true, "ACCOUNTING": true,
	"ENCODER_STATS": true, "SUPPORTED_GPU_TARGET_TEMP": true, "VOLTAGE": true, "FBC_STATS": true, "ROW_REMAPPER": true,
	"GSP_FIRMWARE_VERSION": true, "POWER_SMOOTHING": true, "POWER_PROFILES": true,
}

// writeText is `nvidia-smi -q`. The line that says what this is stands where every program looks for names it knows.
func writeText(out io.Writer, host *state, chosen []*device, wanted []string) {
	fmt.Fprintln(out, "\n==============NVSMI LOG==============")
	fmt.Fprintln(out)
	for _, each := range []node{
		leaf("Timestamp", "", time.Now().Format(time.ANSIC)),
		leaf("Driver Version", "", host.DriverVersion),
		leaf("CUDA Version", "", host.CUDAVersion),
		leaf("Emulated", "", "Yes"),
	} {
		each.text(out, 0)
	}
	fmt.Fprintln(out)
	leaf("Attached GPUs", "", fmt.Sprint(len(host.shown))).text(out, 0)
	for _, d := range chosen {
		fmt.Fprintf(out, "GPU %s\n", d.PCIBusID)
		for _, each := range d.report() {
			if each.shown(wanted) {
				each.text(out, 1)
			}
		}
		fmt.Fprintln(out)
	}
}

func (n node) shown(wanted []string) bool {
	for _, section := range wanted {
		if n.section == section {
			return true
		}
	}
	return len(wanted) == 0 && !n.sample
}

func (n node) text(out io.Writer, depth int) {
	indent := strings.Repeat("    ", depth)
	switch {
	case n.label == "":
	case n.kids != nil:
		fmt.Fprintf(out, "%s%s\n", indent, n.label)
	default:
		fmt.Fprintf(out, "%-42s: %s\n", indent+n.label, n.value)
	}
	if n.label == "" && n.tag != "" {
		return
	}
	for _, each := range n.kids {
		each.text(out, depth+1)
	}
}

// writeXML is `nvidia-smi -q -x`. That this is emulated is said in a comment, which no parser hands on.
func writeXML(out io.Writer, host *state, chosen []*device) {
	dtd := 12
	if host.since(580) {
		dtd = 13
	}
	fmt.Fprintf(out, "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v%d.dtd\">\n", dtd)
	fmt.Fprintf(out, "<!-- EMULATED: %s -->\n<nvidia_smi_log>\n", emulated)
	for _, each := range []node{
		leaf("", "timestamp", time.Now().Format(time.ANSIC)),
		leaf("", "driver_version", host.DriverVersion),
		leaf("", "cuda_version", host.CUDAVersion),
		leaf("", "attached_gpus", fmt.Sprint(len(host.shown))),
	} {
		each.xml(out, 1)
	}
	for _, d := range chosen {
		fmt.Fprintf(out, "\t<gpu id=\"%s\">\n", d.PCIBusID)
		for _, each := range d.report() {
			if !each.sample {
				each.xml(out, 2)
			}
		}
		fmt.Fprint(out, "\t</gpu>\n\n")
	}
	fmt.Fprintln(out, "</nvidia_smi_log>")
}

func (n node) xml(out io.Writer, depth int) {
	indent := strings.Repeat("\t", depth)
	switch {
	case n.tag == "":
	case n.kids == nil:
		fmt.Fprintf(out, "%s<%s>%s</%s>\n", indent, n.tag, escaped(n.value), n.tag)
	default:
		fmt.Fprintf(out, "%s<%s>\n", indent, n.tag)
		if n.value != "" {
			fmt.Fprintf(out, "%s\t%s\n", indent, escaped(n.value))
		}
		for _, each := range n.kids {
			each.xml(out, depth+1)
		}
		fmt.Fprintf(out, "%s</%s>\n", indent, n.tag)
	}
}

func escaped(text string) string {
	var safe strings.Builder
	_ = xml.EscapeText(&safe, []byte(text)) // a Builder takes everything
	return safe.String()
}
