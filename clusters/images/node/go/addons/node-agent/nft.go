package main

import (
	"errors"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	masqueradeTable = "sandbox-masquerade"
	queueTable      = "sandbox-network-policies"
	probeTable      = "sandbox-probe"
	queueNumber     = 98
)

// replaced opens a table whose old content goes in the same transaction as the new one comes.
func replaced(nft *nftables.Conn, name string, family nftables.TableFamily) *nftables.Table {
	table := nft.AddTable(&nftables.Table{Name: name, Family: family})
	nft.DelTable(table)
	return nft.AddTable(&nftables.Table{Name: name, Family: family})
}

// masquerade gives the node's address to what leaves the pod ranges: nobody outside knows the way back to a pod.
func masquerade(ranges []*net.IPNet) error {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		var own []*net.IPNet
		for _, podRange := range ranges {
			if (podRange.IP.To4() != nil) == (family == nftables.TableFamilyIPv4) {
				own = append(own, podRange)
			}
		}
		if len(own) == 0 {
			continue
		}
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		table := replaced(nft, masqueradeTable, family)
		chain := nft.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		for _, podRange := range own { // what stays among pods keeps its address: NetworkPolicy needs it
			nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(
				destinationIn(podRange), &expr.Verdict{Kind: expr.VerdictAccept})})
		}
		for _, podRange := range own {
			nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(sourceIn(podRange), &expr.Masq{})})
		}
		if err := nft.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func sourceIn(cidr *net.IPNet) []expr.Any      { return addressIn(cidr, 12, 8) }
func destinationIn(cidr *net.IPNet) []expr.Any { return addressIn(cidr, 16, 24) }

// addressIn compares the address at the offset (in the IPv4 or IPv6 header) with a range.
func addressIn(cidr *net.IPNet, offset4, offset6 uint32) []expr.Any {
	network, offset := cidr.IP.To4(), offset4
	if network == nil {
		network, offset = cidr.IP.To16(), offset6
	}
	length := uint32(len(network))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: cidr.Mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network},
	}
}

// hasQueue asks the kernel whether nftables itself can hand packets to a queue (nft_queue).
func hasQueue() (bool, error) {
	nft, err := nftables.New()
	if err != nil {
		return false, err
	}
	table := nft.AddTable(&nftables.Table{Name: probeTable, Family: nftables.TableFamilyIPv4})
	chain := nft.AddChain(&nftables.Chain{Name: "probe", Table: table}) // no hook: no packet ever passes it
	nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Queue{Num: queueNumber}}})
	nft.DelTable(table)
	err = nft.Flush()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// queueThroughXtables feeds the policy queue on kernels without nft_queue, with the xtables target NFQUEUE inside
// nftables rules. It queues the first packet of every connection; kube-network-policies' own rules, which such a
// kernel refuses, would queue those of pods under a policy only. New policies hold for new connections.
func queueThroughXtables() error {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		table := replaced(nft, queueTable, family)
		hook := func(name string, at *nftables.ChainHook, priority nftables.ChainPriority) func(...[]expr.Any) {
			chain := nft.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: at, Priority: &priority,
			})
			return func(parts ...[]expr.Any) {
				var all []expr.Any
				for _, part := range parts {
					all = append(all, part...)
				}
				nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
			}
		}
		// a resolver's two parallel questions share one connection-tracking entry; queued after routing, one of them
		// would be lost on kernels before 6.12 (netfilter bug 1766), so names are judged right after DNAT
		before := hook("prerouting", nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest+5)
		before(dns(), newConnection(), toQueue())
		after := hook("postrouting", nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource-5)
		after(dns(), accept())
		after(rootsOwn(), accept())
		after(newConnection(), toQueue())
		inward := hook("input", nftables.ChainHookInput, *nftables.ChainPriorityNATSource+1)
		inward(arrivesOn("lo"), accept())
		inward(newConnection(), toQueue())
		if err := nft.Flush(); err != nil {
			if family == nftables.TableFamilyIPv6 { // a kernel without IPv6 has no IPv6 pods either
				klog.InfoS("IPv6 network policies are not enforced", "reason", err)
				continue
			}
			return err
		}
	}
	return nil
}

func dns() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
	}
}

// rootsOwn matches what a root process of the node sends: kubelet's probes must pass whatever the policies say.
func rootsOwn() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

func arrivesOn(link string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(link), make([]byte, unix.IFNAMSIZ-len(link))...)},
	}
}

func newConnection() []expr.Any {
	isNew := binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: isNew, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// toQueue is xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h): number, how many, flags; bypass lets packets pass while
// nobody listens, as kube-network-policies does by default.
func toQueue() []expr.Any {
	const bypass = 1
	info := xt.Unknown(make([]byte, 8)) // padded to 8 bytes as XT_ALIGN does
	binaryPut := func(at int, value uint16) { copy(info[at:], binaryutil.NativeEndian.PutUint16(value)) }
	binaryPut(0, queueNumber)
	binaryPut(2, 1)
	binaryPut(4, bypass)
	return []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}}
}
