package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

type action int

const (
	doTable action = iota
	doList
	doListExcluded
	doQuery
	doFields
	doHelp
	doHelpFields
	doVersion
	doChange
	doCommand
)

// request is the command line.
type request struct {
	does    action
	ids     []string
	file    string
	period  time.Duration
	xml     bool
	display []string // of -q: the sections wanted
	about   string   // of --query-<about> and --help-query-<about>
	fields  string
	format  string
	change  string // the option that would change something, and its value
	value   string
	command []string // topo, nvlink, mig and their arguments
}

func usage(form string, words ...any) error {
	return failure{fmt.Sprintf(form, words...) + " Please run 'nvidia-smi -h' for help.\n\n", badArgument}
}

// taking says whether an option takes a value.
type taking int

const (
	nothing taking = iota
	perhaps
	always
)

type option struct {
	takes taking
	set   func(r *request, value string) error
}

var options = map[string]option{}

// changes are the options that change a real GPU: known, and always refused.
var changes = map[string]taking{
	"-pm --persistence-mode": always, "-e --ecc-config": always, "-p --reset-ecc-errors": always,
	"-c --compute-mode": always, "--gom": always, "-r --gpu-reset": perhaps, "-vm --virt-mode": always,
	"-lgc --lock-gpu-clocks": always, "-rgc --reset-gpu-clocks": nothing, "-lmc --lock-memory-clocks": always,
	"-rmc --reset-memory-clocks": nothing, "-lmcd --lock-memory-clocks-deferred": always,
	"-rmcd --reset-memory-clocks-deferred": nothing, "-ac --applications-clocks": always,
	"-rac --reset-applications-clocks": nothing, "-pl --power-limit": always, "-cc --cuda-clocks": always,
	"-am --accounting-mode": always, "-caa --clear-accounted-apps": nothing, "--auto-boost-default": always,
	"--auto-boost-permission": always, "-mig --multi-instance-gpu": always, "-gtt --gpu-target-temp": always,
	"-den --dram-encryption": always, "--set-hostname": always,
}

func add(names string, takes taking, set func(*request, string) error) {
	for _, name := range strings.Fields(names) {
		options[name] = option{takes, set}
	}
}

// does makes an option that picks what the program does.
func does(what action) func(*request, string) error {
	return func(r *request, _ string) error { return r.pick(what) }
}

func (r *request) pick(what action) error {
	if r.does != doTable && r.does != what {
		return usage("Invalid combination of input arguments.")
	}
	r.does = what
	return nil
}

func init() {
	add("-h --help", nothing, does(doHelp))
	add("--version", nothing, does(doVersion))
	add("-L --list-gpus", nothing, does(doList))
	add("-B --list-excluded-gpus", nothing, does(doListExcluded))
	add("-q --query -a", nothing, does(doQuery))
	add("-col --columns -eow --error-on-warning", nothing, func(*request, string) error { return nil })
	add("-sc --scope -m --mode", always, func(*request, string) error { return nil })
	add("-x --xml-format", nothing, func(r *request, _ string) error { r.xml = true; return nil })
	add("-f --filename", always, func(r *request, value string) error { r.file = value; return nil })
	add("--format", always, func(r *request, value string) error { r.format = value; return nil })
	add("-i --id", always, func(r *request, value string) error {
		for _, id := range strings.Split(value, ",") {
			r.ids = append(r.ids, strings.TrimSpace(id))
		}
		return nil
	})
	add("-d --display", always, func(r *request, value string) error {
		for _, word := range strings.Split(strings.ToUpper(value), ",") {
			if word = strings.TrimSpace(word); !sections[word] {
				return usage("\"%s\" is not a valid display type.", word)
			}
			r.display = append(r.display, word)
		}
		return nil
	})
	add("-l --loop", perhaps, func(r *request, value string) error { return r.repeat(value, time.Second) })
	add("-lms --loop-ms", always, func(r *request, value string) error { return r.repeat(value, time.Millisecond) })
	for about := range listings {
		add("--query-"+about, always, func(r *request, value string) error {
			if r.about != "" {
				return failure{"Only one --query-* switch can be used at a time.\n", badArgument}
			}
			r.about, r.fields = about, value
			return r.pick(doFields)
		})
		add("--help-query-"+about, nothing, func(r *request, _ string) error {
			r.about = about
			return r.pick(doHelpFields)
		})
	}
	for names, takes := range changes {
		first, _, _ := strings.Cut(names, " ")
		add(names, takes, func(r *request, value string) error {
			r.change, r.value = first, value
			return r.pick(doChange)
		})
	}
}

func (r *request) repeat(value string, unit time.Duration) error {
	if value == "" {
		r.period = defaultPeriod
		return nil
	}
	count, err := strconv.Atoi(value)
	if err != nil || count < 0 {
		return usage("\"%s\" is not a valid loop interval.", value)
	}
	r.period = max(time.Duration(count)*unit, time.Millisecond)
	return nil
}

func parse(arguments []string) (*request, error) {
	r := &request{}
	if len(arguments) > 0 && commands[arguments[0]] {
		return r, r.parseCommand(arguments)
	}
	for at := 0; at < len(arguments); at++ {
		name, value, attached := strings.Cut(arguments[at], "=")
		known, ok := options[name]
		if !ok || (attached && known.takes == nothing) {
			return nil, usage("ERROR: Option %s is not recognized.", arguments[at])
		}
		if !attached && at+1 < len(arguments) && known.wants(arguments[at+1]) {
			at++
			value = arguments[at]
		}
		if value == "" && known.takes == always {
			return nil, usage("ERROR: Option %s is missing its value.", name)
		}
		if err := known.set(r, value); err != nil {
			return nil, err
		}
	}
	if (r.does != doFields && r.format != "") || (r.does != doQuery && (r.xml || r.display != nil)) {
		return nil, usage("Invalid combination of input arguments.")
	}
	return r, nil
}

// wants says whether the next word is this option's value.
func (o option) wants(next string) bool {
	number, err := strconv.Atoi(next)
	return o.takes == always && !strings.HasPrefix(next, "-") || o.takes == perhaps && err == nil && number >= 0
}

// parseCommand takes the words of a command; of its options only -i is ours to know.
func (r *request) parseCommand(words []string) error {
	r.does = doCommand
	for at := 0; at < len(words); at++ {
		name, value, attached := strings.Cut(words[at], "=")
		if name != "-i" && name != "--id" {
			r.command = append(r.command, words[at])
			continue
		}
		if !attached && at+1 < len(words) {
			at++
			value = words[at]
		}
		if value == "" {
			return usage("ERROR: Option %s is missing its value.", name)
		}
		r.ids = append(r.ids, strings.Split(value, ",")...)
	}
	return nil
}
