package main

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/cmd"
	"sigs.k8s.io/kube-network-policies/pkg/dataplane"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo/nri"
)

const metricsAddress = "127.0.0.1:9080"

// enforcePolicies starts kube-network-policies in this process and feeds its queue where the kernel cannot take its
// own rules. Call before the informers start.
func enforcePolicies(ctx context.Context, client kubernetes.Interface, shared informers.SharedInformerFactory, nodeName string) error {
	native, err := hasQueue()
	if err != nil {
		return fmt.Errorf("ask the kernel for nft_queue: %w", err)
	}
	if !native {
		klog.InfoS("this kernel has no nft_queue: feeding the policy queue through the xtables target NFQUEUE")
		quietRefusedRules()
		if err := queueThroughXtables(); err != nil {
			return fmt.Errorf("feed the policy queue through xtables: %w", err)
		}
	}
	core, networking := shared.Core().V1(), shared.Networking().V1()
	pods, namespaces := core.Pods(), core.Namespaces()
	if err := pods.Informer().SetTransform(withoutManagedFields); err != nil {
		return err
	}
	byAPI, err := podinfo.NewInformerResolver(pods.Informer())
	if err != nil {
		return err
	}
	resolvers := []podinfo.IPResolver{byAPI}
	// the runtime knows a pod's address before the API server does, and before its first packet
	if byRuntime, err := nri.NewNRIResolver(ctx, nodeName, nil); err != nil {
		klog.InfoS("pod addresses come from the API server only: a new pod's first packets may pass", "reason", err)
	} else {
		resolvers = append(resolvers, byRuntime)
	}
	evaluators := []api.PolicyEvaluator{
		networkpolicy.NewStandardNetworkPolicy(nodeName, namespaces, pods, networking.NetworkPolicies()),
	}
	if klog.V(2).Enabled() {
		evaluators = append([]api.PolicyEvaluator{networkpolicy.NewLoggingPolicy()}, evaluators...)
	}
	engine := networkpolicy.NewPolicyEngine(podinfo.NewInformerProvider(pods, namespaces, nil, resolvers), evaluators)
	config := dataplane.Config{FailOpen: true, QueueID: queueNumber, NetfilterBug1766Fix: true, StrictMode: native}
	cmd.Start(ctx, engine, config, metricsAddress)
	return nil
}

func withoutManagedFields(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}
