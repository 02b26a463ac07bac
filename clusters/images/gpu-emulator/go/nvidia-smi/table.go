package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	line      = "+-----------------------------------------------------------------------------------------+\n"
	columns   = "+-----------------------------------------+------------------------+----------------------+\n"
	migColumn = "+------------------+----------------------------------+-----------+-----------------------+\n"
	longest   = 27 // names
)

// writeTable is `nvidia-smi` without arguments.
func writeTable(out io.Writer, node *state, chosen []*device) {
	fmt.Fprintf(out, "%s       \n", time.Now().Format(time.ANSIC))
	fmt.Fprint(out, line)
	fmt.Fprintf(out, "| NVIDIA-SMI %-22s Driver Version: %-14s CUDA Version: %-8s |\n",
		node.DriverVersion, node.DriverVersion, node.CUDAVersion)
	if !node.since(580) {
		fmt.Fprint(out, "|", columns[1:])
	} else {
		fmt.Fprint(out, columns)
	}
	fmt.Fprint(out, `| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
`)
	mig := false
	for _, each := range chosen {
		writeRow(out, each)
		mig = mig || each.mig()
	}
	if mig {
		fmt.Fprintln(out)
		writeInstances(out, node, chosen)
	}
	if !node.since(580) {
		fmt.Fprint(out, strings.Repeat(" ", len(line)-len("++\n")))
	}
	fmt.Fprint(out, "\n", line, `| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |
`, line)
}

func writeRow(out io.Writer, d *device) {
	name := d.Name
	if len(name) > longest {
		name = name[:longest-3] + "..."
	}
	ecc, memory, busy := number(d.ECCUncorrected), none+"  ", d.utilization(d.UtilizationGPU)
	if d.mig() {
		ecc = "On"
	}
	if !d.partial {
		memory = fmt.Sprintf("%sMiB / %6sMiB", number(d.MemoryUsed), number(d.MemoryTotal))
	}
	if busy != none {
		busy += "%"
	}
	fmt.Fprintf(out, "|%4d  %-31s%-3s |   %s Off | %20s |\n", d.position, name, "On", d.PCIBusID, ecc)
	fmt.Fprintf(out, "| %3s%5sC%6s%15sW / %4sW | %22s | %7s%13s |\n", none, number(d.TemperatureGPU), d.PState,
		number(d.PowerDraw), number(d.PowerLimit), memory, busy, "Default")
	fmt.Fprintf(out, "|%41s|%24s|%21s |\n%s", "", "", d.migMode(), columns)
}

func writeInstances(out io.Writer, node *state, chosen []*device) {
	shared, bar1 := "", "|%18s|%18dMiB / %5sMiB  |%11s|%23s|\n%s"
	if node.since(580) {
		shared, bar1 = "Shared ", "|%18s|%16dMiB / %5sMiB    |%11s|%23s|\n%s"
	}
	fmt.Fprint(out, line, "| MIG devices:                                                                            |\n", migColumn)
	fmt.Fprintf(out, "| GPU  GI  CI  MIG |%33s |        Vol|        Shared         |\n", shared+"Memory-Usage")
	fmt.Fprintf(out, "|      ID  ID  Dev |%33s | SM     Unc| CE ENC  DEC  OFA  JPG |\n", shared+"BAR1-Usage")
	fmt.Fprint(out, `|                  |                                  |        ECC|                       |
|==================+==================================+===========+=======================|
`)
	found := false
	for _, d := range chosen {
		for _, part := range d.Instances {
			found = true
			has := d.engines(part)
			fmt.Fprintf(out, "|%3d  %3d %3d %3d  |%16sMiB / %5sMiB    |%3d%7d |%3d%4d%5d%5d%5d |\n",
				d.position, part.GI, part.CI, part.Index, number(part.MemoryUsed), number(part.MemoryTotal),
				part.Multiprocessors, 0, has.copy, 0, has.decoder, has.ofa, has.jpeg)
			fmt.Fprintf(out, bar1, "", 0, number(d.bar1Share(part)), "", "", migColumn)
		}
	}
	if !found {
		fmt.Fprint(out, "|  No MIG devices found                                                                   |\n", line)
	}
}
