package main

import (
	"fmt"
	"io"
	"strings"
)

const emulated = "there is no GPU and no NVIDIA driver; the GPU emulator of ai-k8s-sandbox says all this"

func versions() (driver, cuda string) {
	node, err := load()
	if err != nil {
		return none, none
	}
	return node.DriverVersion, node.CUDAVersion
}

// writeVersion has one line more than the real program's.
func writeVersion(out io.Writer) error {
	driver, cuda := versions()
	library := driver
	if parts := strings.Split(driver, "."); len(parts) > 2 {
		library = strings.Join(parts[:2], ".")
	}
	fmt.Fprintf(out, "NVIDIA-SMI version  : %s\nNVML version        : %s\nDRIVER version      : %s\nCUDA Version        : %s\n",
		driver, library, driver, cuda)
	fmt.Fprintf(out, "EMULATED            : %s\n", emulated)
	return nil
}

// writeFieldHelp is --help-query-*: a blank line, then the names of a field in quotes. Programs find out from it which
// fields there are.
func writeFieldHelp(out io.Writer, about string) error {
	fmt.Fprintf(out, "List of valid properties to query for the switch \"--query-%s\":\n", about)
	for _, each := range listings[about].fields() {
		fmt.Fprintf(out, "\n\"%s\"\n%s\n", strings.Join(each.names, "\" or \""), each.says)
	}
	fmt.Fprintln(out)
	return nil
}

func writeHelp(out io.Writer) error {
	driver, _ := versions()
	fmt.Fprintf(out, "NVIDIA System Management Interface -- v%s\n\nEMULATED: %s.\n", driver, emulated)
	fmt.Fprint(out, `It shows the GPUs that this container has claimed, in the real program's formats, and changes nothing.

nvidia-smi [OPTION1 [ARG1]] [OPTION2 [ARG2]] ...

    -h,   --help                Print usage information and exit.

          --version             Print version information and exit.

  LIST OPTIONS:

    -L,   --list-gpus           Display a list of GPUs connected to the system.

    -B,   --list-excluded-gpus  Display a list of excluded GPUs in the system.

  SUMMARY OPTIONS:

    <no arguments>              Show a summary of GPUs connected to the system.

  QUERY OPTIONS:

    -q,   --query               Display all that is known of the GPUs.
    -x,   --xml-format          Produce XML output.
    -d,   --display=            Display only selected information: ACCOUNTING, CLOCK, COMPUTE, ECC,
                                ENCODER_STATS, FBC_STATS, GSP_FIRMWARE_VERSION, MEMORY, PAGE_RETIREMENT,
                                PERFORMANCE, PIDS, POWER, POWER_PROFILES, POWER_SMOOTHING, ROW_REMAPPER,
                                SUPPORTED_CLOCKS, SUPPORTED_GPU_TARGET_TEMP, TEMPERATURE, UTILIZATION, VOLTAGE.
                                Several are separated by commas.

  SELECTIVE QUERY OPTIONS:

    --query-gpu=                Information about GPUs. --help-query-gpu lists the fields.
    --query-compute-apps=       Processes that compute: none. --help-query-compute-apps
    --query-accounted-apps=     Accounted processes: none. --help-query-accounted-apps
    --query-retired-pages=      Retired pages: none. --help-query-retired-pages
    --query-remapped-rows=      Remapped rows. --help-query-remapped-rows
    --query-supported-clocks=   Supported clocks. --help-query-supported-clocks
    --format=                   csv (always), noheader, nounits; separated by commas.

  WITH ANY OF THESE:

    -i,   --id=                 Only the GPUs with these indices, UUIDs, serial numbers or PCI addresses.
    -f,   --filename=           Write to this file rather than to stdout.
    -l,   --loop=               Repeat at this interval in seconds, until Ctrl+C.
    -lms, --loop-ms=            Repeat at this interval in milliseconds, until Ctrl+C.

  COMMANDS:

    topo -m                     Display how the GPUs are connected.
    nvlink -s                   Display the NVLinks.

Options and commands of the real program that would change a GPU are refused: Insufficient Permissions.
`)
	return nil
}
