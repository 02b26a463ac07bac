package main

import (
	"bytes"
	"flag"
	"os"

	"k8s.io/klog/v2"
)

// On a kernel without nft_queue kube-network-policies tries its own rules again every second, for ever. Those lines
// say nothing new after the one that told how its queue is fed instead.
var refusedRules = [][]byte{[]byte("yncing nftables rules"), []byte("nftables sync failed"), []byte("no such file or directory")}

type withoutRefusedRules struct{}

func (withoutRefusedRules) Write(line []byte) (int, error) {
	for _, words := range refusedRules {
		if bytes.Contains(line, words) {
			return len(line), nil
		}
	}
	return os.Stderr.Write(line)
}

func quietRefusedRules() {
	klog.LogToStderr(false)
	_ = flag.Set("stderrthreshold", "FATAL") // else errors go past the output, straight to stderr
	klog.SetOutput(withoutRefusedRules{})
}
