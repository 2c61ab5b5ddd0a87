#!/bin/sh
# Install what Debian offers and void shims need: `install-deps.sh runtime` or `... test`.
#
# Says what is missing and why it is needed, installs exactly that, and does nothing when all is
# there. Without root it prints the command to run instead. Programs that are present in another
# way (containerd from elsewhere, a kernel of one's own) are used and not replaced.
set -eu

usage() {
    echo "usage: $0 runtime|test" >&2
    exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

# A kernel counts when its modules are there too: the guest image is made of both.
has_kernel() {
    for image in /boot/vmlinuz-*; do
        [ -e "$image" ] && [ -d "/lib/modules/${image#/boot/vmlinuz-}" ] && return 0
    done
    return 1
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

has_clang_runtime() {
    ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-x86_64.a >/dev/null 2>&1
}

missing=""
need() { # need PACKAGE REASON: unless the package is installed
    installed "$1" && return
    missing="$missing $1"
    printf '  %-22s %s\n' "$1" "$2"
}

need_program() { # need_program PROGRAM PACKAGE REASON: unless the program is there
    has "$1" || need "$2" "$3"
}

list_runtime() {
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        need python3-venv "a virtual environment for the Python side"
    need_program qemu-system-x86_64 qemu-system-x86 "the machines; virtiofsd comes with it"
    need_program containerd containerd "who starts the containers"
    need_program runc runc "the runtime that ours is compared with"
    need_program mkfs.erofs erofs-utils "image layers become read-only disks"
    need_program mke2fs e2fsprogs "writable disks"
    need_program make make "compiles void-init"
    need_program gcc gcc "compiles void-init"
    need_program musl-gcc musl-tools "a libc that void-init carries in itself"
    need libseccomp2 "seccomp profiles are compiled on the host"
    need_program ip iproute2 "network namespaces"
    need busybox-static "the programs in the images that demo and tests make"
    has_kernel || need linux-image-cloud-amd64 "the guest's kernel (this host has none in /boot)"
}

list_test() {
    list_runtime
    need libc6-dev "sanitizers and fuzzers compile against the host's libc"
    need_program clang clang "fuzzes void-init's parser"
    has_clang_runtime || need libclang-rt-dev "clang's fuzzer and sanitizers"
    need_program shellcheck shellcheck "reads our shell scripts"
    need_program zstd zstd "kernels and modules come compressed in many ways, tested one by one"
    need_program lz4 lz4 "likewise"
    need_program lzop lzop "likewise"
    need_program ps procps "what runs, and since when"
    need_program strace strace "shows what a test process did"
    need_program git git "tests of the tree ask which files belong to it"
}

[ $# -eq 1 ] || usage
has dpkg-query || {
    echo "$0: this is no Debian system; see README.md for what is needed" >&2
    exit 1
}
echo "Debian packages for '$1':"
case $1 in
runtime) list_runtime ;;
test) list_test ;;
*) usage ;;
esac
if [ -z "$missing" ]; then
    echo "  all present"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Run this, then try again:" >&2
    echo "  sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update
# shellcheck disable=SC2086 # a list of package names
apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
