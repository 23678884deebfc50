// libcni-gc runs CNI's GC with a list of valid attachments, like a runtime; cnitool cannot do that.
//
//	libcni-gc NETWORK [CONTAINERID IFNAME]…     uses NETCONFPATH and CNI_PATH like cnitool
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if len(os.Args) < 2 || len(os.Args)%2 != 0 {
		fmt.Fprintln(os.Stderr, "usage: libcni-gc NETWORK [CONTAINERID IFNAME]...")
		os.Exit(2)
	}
	if err := gc(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func gc(network string, named []string) error {
	list, err := libcni.LoadNetworkConf(os.Getenv("NETCONFPATH"), network)
	if err != nil {
		return err
	}
	valid := []types.GCAttachment{}
	for i := 0; i < len(named); i += 2 {
		valid = append(valid, types.GCAttachment{ContainerID: named[i], IfName: named[i+1]})
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	return cni.GCNetworkList(context.Background(), list, &libcni.GCArgs{ValidAttachments: valid})
}
