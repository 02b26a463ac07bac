package main

import (
	"fmt"
	"io"
	"strings"
)

// writeFields answers --query-gpu and the other selective queries. In a loop, the header comes once.
func writeFields(out io.Writer, asked *request, node *state, chosen []*device, first bool) error {
	header, units, err := format(asked)
	if err != nil {
		return err
	}
	list := listings[asked.about]
	wanted, err := resolve(list.fields(), asked.fields)
	if err != nil {
		return err
	}
	if header && first {
		writeLine(out, wanted, field.header)
	}
	there := 0
	for _, d := range chosen {
		if d.Lost {
			fmt.Fprint(out, d.gone().Error())
			continue
		}
		there++
		for range list.rows {
			writeLine(out, wanted, func(f field) string { return f.cell(d, units) })
		}
	}
	return node.verdict(len(chosen)-there, there)
}

func resolve(known []field, names string) ([]field, error) {
	wanted := []field{}
	for _, name := range strings.Split(names, ",") {
		found, ok := find(known, strings.TrimSpace(name))
		if !ok {
			return nil, failure{fmt.Sprintf("Field \"%s\" is not a valid field to query.\n\n", strings.TrimSpace(name)), badArgument}
		}
		wanted = append(wanted, found)
	}
	return wanted, nil
}

// format reads --format=csv[,noheader][,nounits].
func format(asked *request) (header, units bool, err error) {
	header, units = true, true
	csv := false
	for _, word := range strings.Split(asked.format, ",") {
		switch strings.TrimSpace(word) {
		case "csv":
			csv = true
		case "noheader":
			header = false
		case "nounits":
			units = false
		case "":
		default:
			return false, false, usage("\"%s\" is not a valid --format= option.", word)
		}
	}
	if asked.format == "" {
		return false, false, usage("\"--format=\" switch is missing.")
	}
	if !csv {
		return false, false, usage("\"csv\" is missing in the \"--format=\" switch.")
	}
	return header, units, nil
}

func writeLine(out io.Writer, fields []field, text func(field) string) {
	cells := make([]string, len(fields))
	for at, each := range fields {
		cells[at] = text(each)
	}
	fmt.Fprintln(out, strings.Join(cells, ", "))
}
