// The node agent: one small process per node that gives pods their network and enforces NetworkPolicy.
//
// It writes the CNI configuration for the node's own pod range, keeps a route to every other node's pod range,
// masquerades what leaves the pod ranges, and runs kube-network-policies in the same process, so that both halves
// share one set of watches. All state is derived from the Node objects and written again on every change and every
// resync: a restarted node, or one whose address changed, mends itself.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

const resync = 30 * time.Second

func main() {
	klog.InitFlags(nil)
	podRanges := flag.String("pod-ranges", os.Getenv("POD_SUBNET"), "pod ranges of the cluster, comma separated CIDRs")
	nodeName := flag.String("node-name", os.Getenv("NODE_NAME"), "the Node this agent runs on")
	endpoint := flag.String("api-server", os.Getenv("CONTROL_PLANE_ENDPOINT"), "host:port of the API server; empty: the Service address")
	cniDir := flag.String("cni-dir", "/etc/cni/net.d", "where the CNI configuration is written")
	policies := flag.Bool("network-policies", true, "enforce NetworkPolicy")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *podRanges, *nodeName, *endpoint, *cniDir, *policies); err != nil {
		fmt.Fprintln(os.Stderr, "node-agent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, podRanges, nodeName, endpoint, cniDir string, policies bool) error {
	if nodeName == "" || podRanges == "" {
		return fmt.Errorf("NODE_NAME and POD_SUBNET must be set")
	}
	ranges, err := parseRanges(podRanges)
	if err != nil {
		return err
	}
	client, err := connect(endpoint)
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, resync)
	net := &podNetwork{nodeName: nodeName, cniDir: cniDir, ranges: ranges, nodes: shared.Core().V1().Nodes().Lister()}
	changed, err := nodeChanges(shared.Core().V1().Nodes().Informer())
	if err != nil {
		return err
	}
	if policies {
		if err := enforcePolicies(ctx, client, shared, nodeName); err != nil {
			return err
		}
	}
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	net.keep(ctx, changed)
	return nil
}

// connect reaches the API server directly where it is told how: the Service address needs kube-proxy, which may not
// have come up on this node yet.
func connect(endpoint string) (kubernetes.Interface, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	if endpoint != "" {
		config.Host = "https://" + strings.TrimPrefix(endpoint, "https://")
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.UserAgent = "node-agent"
	return kubernetes.NewForConfig(config)
}
