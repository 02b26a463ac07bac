// nvidia-smi for emulated GPUs: a static program that runs in any image and says of the GPUs that the node's emulator
// writes down what NVIDIA's own program (drivers 570 to 580) says of real ones.
//
// It reads the emulator's state and NVIDIA_VISIBLE_DEVICES, and changes nothing. Outputs, messages, exit codes and
// field names are those of the real program, because programs that cannot be changed read them.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"
)

// Exit codes as nvidia-smi(1) documents them.
const (
	success       = 0
	badArgument   = 2
	notAvailable  = 3
	noPermission  = 4
	notFound      = 6
	noDriver      = 9
	lostGPU       = 15
	defaultPeriod = 5 * time.Second
)

// failure ends the program with a message on standard output, where the real program writes its errors too.
type failure struct {
	text string
	code int
}

func (f failure) Error() string { return f.text }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout))
}

func run(arguments []string, out io.Writer) int {
	asked, err := parse(arguments)
	if err != nil {
		return report(out, err)
	}
	if asked.file != "" {
		file, err := os.Create(asked.file)
		if err != nil {
			return report(out, failure{fmt.Sprintf("Failed to open output file: %s\n", asked.file), badArgument})
		}
		defer file.Close()
		out = file
	}
	for first := true; ; first = false {
		var page bytes.Buffer
		err := answer(&page, asked, first)
		if _, broken := out.Write(page.Bytes()); broken != nil {
			return success // nobody reads on
		}
		if err != nil {
			return report(out, err)
		}
		if asked.period <= 0 {
			return success
		}
		time.Sleep(asked.period)
	}
}

func report(out io.Writer, err error) int {
	fmt.Fprint(out, err.Error())
	if known, ok := err.(failure); ok {
		return known.code
	}
	return badArgument
}

// answer writes one page of output. What was written before an error counts: lists go on behind a lost GPU.
func answer(out io.Writer, asked *request, first bool) error {
	switch asked.does {
	case doHelp:
		return writeHelp(out)
	case doHelpFields:
		return writeFieldHelp(out, asked.about)
	case doVersion:
		return writeVersion(out)
	case doListExcluded:
		fmt.Fprintln(out, "No excluded devices found.")
		return nil
	}
	node, err := load()
	if err != nil {
		return err
	}
	chosen, err := node.selected(asked.ids)
	if err != nil {
		return err
	}
	switch asked.does {
	case doList:
		return writeList(out, node, chosen)
	case doFields:
		return writeFields(out, asked, node, chosen, first)
	case doChange:
		return refuseChange(asked, chosen)
	}
	if chosen, err = node.reachable(out, chosen); err != nil {
		return err
	}
	switch {
	case asked.does == doCommand:
		return runCommand(out, asked, chosen)
	case asked.does == doQuery && asked.xml:
		writeXML(out, node, chosen)
	case asked.does == doQuery:
		writeText(out, node, chosen, asked.display)
	default:
		writeTable(out, node, chosen)
	}
	return nil
}

// writeList is `nvidia-smi -L`.
func writeList(out io.Writer, node *state, chosen []*device) error {
	there := 0
	for _, each := range chosen {
		if each.Lost {
			fmt.Fprint(out, each.gone().Error())
			continue
		}
		there++
		fmt.Fprintf(out, "GPU %d: %s (UUID: %s)\n", each.position, each.Name, each.UUID)
		for _, part := range each.Instances {
			fmt.Fprintf(out, "  MIG %-12sDevice %2d: (UUID: %s)\n", part.Profile, part.Index, part.UUID)
		}
	}
	return node.verdict(len(chosen)-there, there)
}
