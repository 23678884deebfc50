# The first process of a node: usage: NAME FOLDER PLACE…
# Sets up a private root over the machine's, so that every path is the usual one and nothing of the machine changes; then
# runs the node's programs, each restarted when it exits. A file NAME.stopped prevents a program from starting.
set -e
name=$1 folder=$2
shift
hostname "$name"
mount --make-rprivate /
cd "$folder"
mkdir -p upper work root containerd kubelet logs sysctl
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" root
cd root
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
for place in "$@"; do # folders that a mount of the machine hides from the overlay
    mkdir -p ".$place"
    mount --rbind "$place" ".$place"
done
mkdir -p var/lib/containerd var/lib/kubelet var/log/pods opt/cni/bin etc/cni/net.d run/netns run/lock
mount --bind "$folder/containerd" var/lib/containerd # an overlay cannot be stacked on an overlay
mount --bind "$folder/kubelet" var/lib/kubelet
mount --bind "$folder/logs" var/log/pods
# kubelet writes these settings, which are the whole machine's: it gets private files.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
    kernel/keys/root_maxbytes; do
    own=$folder/sysctl/$(echo "$setting" | tr / .)
    cat "/proc/sys/$setting" >"$own"
    mount --bind "$own" "proc/sys/$setting"
done
if [ ! -e "$folder/installed" ]; then # not after a reboot: agents may have changed these files
    rm -rf etc/cni/net.d/* opt/cni/bin/* var/lib/cni etc/resolv.conf
    for plugin in bridge host-local loopback portmap; do
        cp "$PROGRAMS/$plugin" opt/cni/bin/
    done
    cp "$folder/network.conflist" etc/cni/net.d/10-network.conflist
    cp "$folder/resolv.conf" etc/resolv.conf
    : >"$folder/installed"
fi
mkdir -p mnt/machine
pivot_root . mnt/machine
cd /
umount -l /mnt/machine
mount --make-rshared /
keep() { # keep NAME PROGRAM…: restarts the program whenever it exits
    local of=$1
    shift
    while :; do
        while [ -e "$folder/$of.stopped" ]; do sleep 0.1; done
        "$@" >>"$folder/$of.log" 2>&1 </dev/null || :
        sleep 0.2
    done
}
keep containerd containerd --config "$folder/containerd.toml" &
keep kubelet kubelet --config "$folder/kubelet.yaml" --kubeconfig "$folder/kubelet.kubeconfig" \
    --hostname-override "$name" --node-ip "$NODE_IP" --v=2 &
keep kube-proxy kube-proxy --config "$folder/kube-proxy.yaml" &
: >"$folder/ready"
while :; do wait || :; sleep 1; done
