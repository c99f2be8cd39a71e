#!/bin/sh
# Runs the tests on other kernels: Debian's, booted in QEMU, with nothing but
# cgroup v2 and a Debian root that the sandboxes see as their host.
#
#     tests/vm/run.sh [6.1|6.12 ...]
#
# The last line is `N passed, N failed, N skipped`, summed over the kernels. A kernel
# that panics, hangs or doesn't come to its end counts as a failure; one that can't
# be had here as skipped. Exit: 0 all passed, 1 a failure, 77 nothing could be run.
#
# The machine is emulated, 10 to 20 times slower than the host, so the lane tests
# behaviour and measures nothing. COFFERDAM_VM_ACCEL=kvm uses the processor instead;
# it isn't the default because nested virtualisation, where CI runs, often half works.
set -eu
cd "$(dirname "$0")/../.."

kernels=${*:-6.1 6.12}
# Test binaries that run in the machine, in this order. One of those about images: the
# others are `layers layer_attacks images store`, and take three times as long as all of these.
tests=${COFFERDAM_VM_TESTS:-isolation limits commands containers clock owners}
# Arguments for them, such as a part of a test's name.
arguments=${COFFERDAM_VM_ARGUMENTS:-}
# What they use there.
packages=busybox-static,iproute2,procps,python3,runc,uidmap,zstd
# Kernel modules, with those that they depend on; built-in ones are passed over.
modules="virtio_pci virtio_blk overlay"
memory=2048
accel=${COFFERDAM_VM_ACCEL:-tcg,thread=multi}
# The tests wait so many times longer, and measure nothing unless it's 1.
# String instructions are slow in emulation, and clear and copy every page where the
# processor calls them fast.
case $accel in kvm*) slower=1 cpu=max ;; *) slower=10 cpu=max,erms=off,fsrm=off ;; esac
# Seconds for one kernel, from start to power off: several times what it takes when
# nobody else uses the machine's cores.
limit=${COFFERDAM_VM_SECONDS:-3000}

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/vm"
cache=$(cd "$target/vm" && pwd)
passed=0 failed=0 skipped=0

say() { echo "vm: $*"; }

# finish <exit code>: the closing line.
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    exit "$1"
}

# skip_all <reason>
skip_all() {
    say "skipped: $1"
    for _ in $kernels; do skipped=$((skipped + 1)); done
    finish 77
}

need() {
    command -v "$1" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ||
        absent="$absent $1 (package $2)"
}

absent=
need qemu-system-x86_64 qemu-system-x86
need busybox busybox-static
need cpio cpio
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need xz xz-utils
need dpkg-deb dpkg
need apt-get apt
need gcc gcc
PATH=$PATH:/usr/sbin:/sbin
[ -z "$absent" ] || skip_all "missing programs:$absent"
[ "$(uname -m)" = x86_64 ] || skip_all "the kernels are for x86_64, and this is $(uname -m)"
[ "$(id -u)" -eq 0 ] || skip_all "only root can unpack a Debian root with its owners"

# kernel_package <version>: the name of Debian's newest cloud kernel of that line.
kernel_package() {
    for meta in "linux-image-$1-cloud-amd64" linux-image-cloud-amd64; do
        apt-cache depends "$meta" 2>/dev/null | sed -n "s/^ *Depends: \(linux-image-$1\.[0-9].*\)/\1/p"
    done | head -n 1
}

# fetch_kernel <version>: unpacks it to $cache/<version>, if it isn't there.
fetch_kernel() {
    [ ! -d "$cache/$1" ] || return 0
    package=$(kernel_package "$1")
    [ -n "$package" ] || { say "apt knows no cloud kernel $1 (is this Debian 12? try apt-get update)"; return 1; }
    rm -rf "$cache/fetch"
    mkdir "$cache/fetch"
    say "downloading $package"
    (cd "$cache/fetch" && apt-get -q download "$package" >apt.log 2>&1) ||
        { say "cannot download $package: $(tail -n 1 "$cache/fetch/apt.log")"; return 1; }
    dpkg-deb -x "$cache"/fetch/linux-image-*.deb "$cache/fetch/root"
    mv "$cache/fetch/root" "$cache/$1"
}

# add_module <kernel's directory> <initramfs> <name>: copies it, after what it needs,
# and appends its name to the list that init loads.
add_module() {
    ! grep -qx "$3" "$2/modules" || return 0
    file=$(find "$1/lib/modules" -name "$3.ko" -o -name "$3.ko.xz")
    # Built into the kernel.
    [ -n "$file" ] || return 0
    case $file in
        *.xz) xz -dc "$file" ;;
        *) cat "$file" ;;
    esac >"$2/lib/$3.ko"
    for needed in $(tr '\0' '\n' <"$2/lib/$3.ko" | sed -n 's/^depends=//p' | tr ',-' ' _'); do
        add_module "$1" "$2" "$needed"
    done
    echo "$3" >>"$2/modules"
}

# make_initramfs <version>
make_initramfs() {
    tree=$cache/initramfs
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/lib" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/root"
    cp "$(command -v busybox)" "$tree/bin/busybox"
    cp tests/vm/init "$tree/init"
    chmod 755 "$tree/init"
    : >"$tree/modules"
    for module in $modules; do add_module "$cache/$1" "$tree" "$module"; done
    (cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$cache/initramfs-$1.gz"
}

# fill_disk <image> <tree> <spare megabytes>
fill_disk() {
    size=$(($(du -sm "$2" | cut -f 1) * 12 / 10 + $3))
    rm -f "$1"
    mke2fs -q -t ext4 -L "$(basename "$1" .img)" -d "$2" "$1" "${size}M" >/dev/null
}

# The machine's root file system, and in it a second one as an image for sandboxes.
make_root() {
    recipe="$packages $(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
    [ ! -f "$cache/root.img" ] || [ "$(cat "$cache/root.recipe" 2>/dev/null)" != "$recipe" ] || return 0
    say "making a Debian root"
    tree=$cache/root
    rm -rf "$tree" "$cache/root.img"
    # The same release as the host's: the test binaries are linked with its libc.
    sources=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
    mmdebstrap --quiet --variant=minbase --include="$packages" "${recipe#* }" "$tree" ${sources:+"$sources"} >"$cache/root.log" 2>&1 || {
        say "cannot make a Debian root: $(grep -m 1 -e '^E:' -e '^W:' "$cache/root.log")"
        rm -rf "$tree"
        return 1
    }
    mkdir -p "$tree/scratch" "$tree/images" "$cache/image"
    # Hard links: a whole second root that takes no space.
    rm -rf "$cache/image"
    cp -al "$tree" "$cache/image"
    mv "$cache/image" "$tree/images/debian"
    fill_disk "$cache/root.img" "$tree" 32
    echo "$recipe" >"$cache/root.recipe"
    rm -rf "$tree"
}

# compile <name> <flags>: a program of tests/programs, onto the scratch disk.
compile() {
    name=$1
    shift
    gcc -O1 -o "$tree/programs/$name" "tests/programs/$name.c" "$@" >"$cache/build.log" 2>&1 ||
        { cat "$cache/build.log"; say "the program $name can't be compiled"; failed=$((failed + 1)); finish 1; }
}

# A writable disk: the tests, and room for what they make. On ext4, not tmpfs, which
# has idmapped mounts only from Linux 6.3.
make_scratch() {
    tree=$cache/scratch
    rm -rf "$tree"
    mkdir -p "$tree/tests"
    say "building the tests: $tests"
    wanted=
    for test in $tests; do wanted="$wanted --test $test"; done
    # shellcheck disable=SC2086 # a list of arguments
    cargo test --locked --no-run --message-format=json $wanted 2>"$cache/build.log" >"$cache/build.json" ||
        { cat "$cache/build.log"; say "the tests don't build"; failed=$((failed + 1)); finish 1; }
    for test in $tests; do
        binary=$(sed -n "s/.*\"executable\":\"\([^\"]*\/$test-[^\"\/]*\)\".*/\1/p" "$cache/build.json" | tail -n 1)
        strip -g -o "$tree/tests/$test" "$binary" 2>/dev/null || cp "$binary" "$tree/tests/$test"
    done
    echo "$tests" >"$tree/tests/list"
    echo "$arguments" >"$tree/tests/arguments"
    # What the tests compile elsewhere. Static: that starts much faster in emulation.
    mkdir "$tree/programs"
    compile workload -static -pthread -fno-optimize-sibling-calls
    compile crash -static
    compile pour -static
    compile calls -static -pthread
    compile euid -static
    compile swapper -static
    compile leftovers -static
    compile traces -static
    compile lost -Wl,--dynamic-linker=/no/such/ld.so
    cp tests/vm/guest "$tree/guest"
    chmod 755 "$tree/guest"
    fill_disk "$cache/scratch.img" "$tree" 1024
}

# boot <version>: the console on standard output, without carriage returns.
boot() {
    # `snapshot=on`: each kernel finds the disk as it was made.
    timeout --foreground "$limit" qemu-system-x86_64 -accel "$accel" -cpu "$cpu" -smp 2 -m "$memory" \
        -kernel "$(ls "$cache/$1"/boot/vmlinuz-*)" -initrd "$cache/initramfs-$1.gz" \
        -drive "file=$cache/root.img,if=virtio,format=raw,readonly=on" \
        -drive "file=$cache/scratch.img,if=virtio,format=raw,snapshot=on" \
        -append "console=ttyS0 quiet lsm=landlock,yama mitigations=off panic=-1 COFFERDAM_EMULATED=$slower" \
        -nic none -display none -serial stdio -monitor none -no-reboot </dev/null 2>&1 | tr -d '\r'
}

# count <word>: the sum of its numbers in what the guest said about each binary.
count() {
    sed -n "s/^vm: [a-z_ ]*: test result:.* \([0-9][0-9]*\) $1;.*/\1/p" "$console" | awk '{ n += $1 } END { print n + 0 }'
}

# One lane at a time: they share the disks.
exec 9>"$cache/lock"
flock 9

make_root || skip_all "there's no root file system for the machine"
make_scratch

for kernel in $kernels; do
    fetch_kernel "$kernel" || { skipped=$((skipped + 1)); say "skipped: Linux $kernel"; continue; }
    make_initramfs "$kernel"
    console=$cache/console-$kernel.log
    say "booting Linux $kernel"
    began=$(date +%s)
    boot "$kernel" | tee "$console"
    seconds=$(($(date +%s) - began))
    good=$(count passed) bad=$(count failed) left_out=$(count ignored)
    # A binary that ended badly without saying that a test failed.
    broken=$(grep -c '^vm: .* ended without a result' "$console" || true)
    if grep -q 'Kernel panic' "$console"; then
        say "Linux $kernel: the kernel panicked"
        broken=$((broken + 1))
    elif ! grep -q '^vm: all tests have run$' "$console"; then
        say "Linux $kernel: no end after $seconds s (limit $limit s)"
        broken=$((broken + 1))
    fi
    say "Linux $kernel: $good passed, $((bad + broken)) failed, $left_out skipped in $seconds s"
    passed=$((passed + good)) failed=$((failed + bad + broken)) skipped=$((skipped + left_out))
done

[ "$failed" -eq 0 ] || finish 1
[ "$passed" -gt 0 ] || finish 77
finish 0
