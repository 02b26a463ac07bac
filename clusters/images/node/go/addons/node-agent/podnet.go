package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	conflist = "10-sandbox.conflist"
	// our routes carry their own protocol number, so that only ours are ever removed
	routeProtocol = 0x53
	retryAfter    = time.Second
)

type podNetwork struct {
	nodeName string
	cniDir   string
	ranges   []*net.IPNet
	nodes    corelisters.NodeLister
}

func parseRanges(text string) ([]*net.IPNet, error) {
	var ranges []*net.IPNet
	for _, part := range strings.Split(text, ",") {
		_, cidr, err := net.ParseCIDR(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("pod range %q: %w", part, err)
		}
		ranges = append(ranges, cidr)
	}
	return ranges, nil
}

// nodeChanges tells of every change to a Node that concerns the network, and of every resync.
func nodeChanges(informer cache.SharedIndexInformer) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { tell() },
		DeleteFunc: func(any) { tell() },
		UpdateFunc: func(before, after any) {
			old, isOld := before.(*v1.Node)
			now, isNow := after.(*v1.Node)
			// heartbeats change only conditions; a resync hands over the same version twice
			same := isOld && isNow && old.ResourceVersion != now.ResourceVersion && network(old) == network(now)
			if !same {
				tell()
			}
		},
	})
	return changed, err
}

func network(node *v1.Node) string {
	return fmt.Sprint(node.Spec.PodCIDRs, addresses(node))
}

func addresses(node *v1.Node) []net.IP {
	var found []net.IP
	for _, address := range node.Status.Addresses {
		if address.Type == v1.NodeInternalIP {
			if ip := net.ParseIP(address.Address); ip != nil {
				found = append(found, ip)
			}
		}
	}
	return found
}

// keep applies the wanted state now, on every change, and again soon after a failure.
func (p *podNetwork) keep(ctx context.Context, changed <-chan struct{}) {
	for {
		wait := time.Duration(1<<63 - 1)
		if err := p.sync(); err != nil {
			klog.ErrorS(err, "the pod network is not as it should be; trying again")
			wait = retryAfter
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(wait):
		}
	}
}

func (p *podNetwork) sync() error {
	self, err := p.nodes.Get(p.nodeName)
	if err != nil {
		return err
	}
	if err := masquerade(p.ranges); err != nil {
		return fmt.Errorf("masquerade: %w", err)
	}
	all, err := p.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	if err := p.routes(all); err != nil {
		return err
	}
	if len(self.Spec.PodCIDRs) == 0 {
		return fmt.Errorf("node %s has no pod range yet", p.nodeName)
	}
	return writeConflist(p.cniDir, self.Spec.PodCIDRs, uplinkMTU())
}

// routes makes one route for every other node's pod range through that node's address, and removes our stale ones.
func (p *podNetwork) routes(nodes []*v1.Node) error {
	wanted := map[string]net.IP{}
	for _, node := range nodes {
		if node.Name == p.nodeName {
			continue
		}
		for _, podRange := range node.Spec.PodCIDRs {
			_, cidr, err := net.ParseCIDR(podRange)
			if err != nil {
				return fmt.Errorf("node %s: %w", node.Name, err)
			}
			for _, gateway := range addresses(node) {
				if (gateway.To4() == nil) == (cidr.IP.To4() == nil) {
					wanted[cidr.String()] = gateway
				}
			}
		}
	}
	for podRange, gateway := range wanted {
		_, cidr, _ := net.ParseCIDR(podRange)
		route := &netlink.Route{Dst: cidr, Gw: gateway, Protocol: routeProtocol}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route to %s through %s: %w", podRange, gateway, err)
		}
	}
	return dropStale(wanted)
}

func dropStale(wanted map[string]net.IP) error {
	ours := &netlink.Route{Protocol: routeProtocol}
	present, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, ours, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range present {
		if present[i].Dst == nil || wanted[present[i].Dst.String()].Equal(present[i].Gw) {
			continue
		}
		if err := netlink.RouteDel(&present[i]); err != nil && err != unix.ESRCH {
			return fmt.Errorf("remove the stale route %s: %w", present[i], err)
		}
	}
	return nil
}

// uplinkMTU is that of the link with the default route; 0 leaves the choice to the kernel.
func uplinkMTU() int {
	found, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return 0
	}
	for _, route := range found {
		isDefault := route.Dst == nil || route.Dst.IP.IsUnspecified()
		if link, err := netlink.LinkByIndex(route.LinkIndex); isDefault && err == nil {
			return link.Attrs().MTU
		}
	}
	return 0
}

// writeConflist replaces the CNI configuration in one step, and only when it changed: containerd reloads on every write.
func writeConflist(dir string, podRanges []string, mtu int) error {
	var ranges, routes []any
	for _, podRange := range podRanges {
		ranges = append(ranges, []any{map[string]string{"subnet": podRange}})
		anywhere := "0.0.0.0/0"
		if strings.Contains(podRange, ":") {
			anywhere = "::/0"
		}
		routes = append(routes, map[string]string{"dst": anywhere})
	}
	ptp := map[string]any{
		"type":   "ptp",
		"ipMasq": false,
		"ipam": map[string]any{
			"type": "host-local",
			// /run is empty after a restart, as are the pods' sandboxes: no address is ever leaked
			"dataDir": "/run/cni-ipam-state",
			"ranges":  ranges,
			"routes":  routes,
		},
	}
	if mtu > 0 {
		ptp["mtu"] = mtu
	}
	portmap := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.3.1", "name": "sandbox", "plugins": []any{ptp, portmap},
	}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, conflist)
	if present, err := os.ReadFile(path); err == nil && bytes.Equal(present, text) {
		return nil
	}
	draft := filepath.Join(dir, "."+conflist+".new")
	if err := os.WriteFile(draft, text, 0o644); err != nil {
		return err
	}
	return os.Rename(draft, path)
}
