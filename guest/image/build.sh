#!/bin/bash
# Builds the guest image: build.sh <outdir> <agent-binary>
# Leaves <outdir>/{vmlinux,initramfs.img,SHA256SUMS,versions.txt}. Does nothing when its inputs have not changed.
#   LAMINA_GUEST_CACHE     where downloaded packages are kept (default <outdir>/cache)
#   LAMINA_GUEST_KERNEL    kernel package (default: what linux-image-cloud-amd64 depends on)
#   LAMINA_GUEST_COMPRESS  lz4 (default: boots as fast as none and needs 5 MiB less while it boots) or none
set -euo pipefail
export LC_ALL=C

if [ $# -ne 2 ]; then
  echo "usage: $0 <outdir> <agent-binary>" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
agent=$(realpath -e "$2")
cache=${LAMINA_GUEST_CACHE:-$out/cache}
compress=${LAMINA_GUEST_COMPRESS:-lz4}
crun=$(command -v crun) || { echo "crun is not installed" >&2; exit 1; }
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# Two builds with one cache take turns.
exec 9> "$cache/lock"
flock 9

# The kernel package: named by the meta package; without package lists, what the cache holds.
package=${LAMINA_GUEST_KERNEL:-}
if [ -z "$package" ]; then
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1)
fi
find_package() {
  find "$cache" -maxdepth 1 -name "${package:-linux-image-*-cloud-amd64}_*.deb" | sort -V | tail -n 1
}
deb=$(find_package)
if [ -z "$deb" ] && [ -n "$package" ]; then
  (cd "$cache" && apt-get -q -o APT::Sandbox::User=root download "$package" >&2)
  deb=$(find_package)
fi
if [ -z "$deb" ]; then
  echo "no kernel: linux-image-cloud-amd64 is unknown to apt (run apt-get update) and $cache holds none" >&2
  exit 1
fi

# Everything a program needs at run time: its libraries and the loader, at the paths it looks for. Libraries found in the
# directory $2 are left out.
closure() {
  LD_LIBRARY_PATH=${2:-} ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | grep -v "^${2:-//}/" | sort -u || true
}

inputs=$(
  echo "$package $(basename "$deb") $compress"
  { echo "$0"; echo "$here/modules.txt"; echo "$agent"; echo "$crun"; closure "$crun"; closure "$agent"; } |
    sort -u | xargs sha256sum
)
if [ -f "$out/inputs" ] && [ "$inputs" = "$(cat "$out/inputs")" ] && [ -s "$out/vmlinux" ] &&
  [ -s "$out/initramfs.img" ] && [ -s "$out/SHA256SUMS" ] && [ -s "$out/versions.txt" ]; then
  # Newer than what it was made from, so that the build system sees it as done.
  touch "$out/vmlinux" "$out/initramfs.img" "$out/SHA256SUMS" "$out/versions.txt"
  cat "$out/versions.txt"
  exit 0
fi

work=$(mktemp -d "$out/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
dpkg -x "$deb" "$work/kernel"
bzimage=$(find "$work/kernel/boot" -name 'vmlinuz-*')
release=${bzimage##*/vmlinuz-}
moddir=$work/kernel/lib/modules/$release

# The bzImage's setup header (Documentation/x86/boot.rst) says where its LZ4 payload lies: payload_offset and
# payload_length count from the protected-mode code; the last four bytes are the unpacked size.
field() { od -An -t "u$2" -j "$1" -N "$2" "$bzimage" | tr -d ' '; }
setup_sects=$(field $((0x1f1)) 1)
[ "$setup_sects" -ne 0 ] || setup_sects=4
start=$(((setup_sects + 1) * 512 + $(field $((0x248)) 4)))
length=$(field $((0x24c)) 4)
tail -c +$((start + 1)) "$bzimage" | head -c $((length - 4)) > "$work/payload.lz4" || true
lz4 -q -d -f "$work/payload.lz4" "$work/vmlinux"
if [ "$(head -c 4 "$work/vmlinux" | tail -c 3)" != ELF ]; then
  echo "$bzimage: the payload is not an LZ4-packed ELF kernel" >&2
  exit 1
fi

# crun asks libsystemd for cgroups only with the systemd manager, which the guest has not. The real library brings five
# others along, 3.4 MiB that each run would map and relocate: in its place stands one whose functions say ENOSYS.
stub=$work/stub
mkdir "$stub"
symbols=$(objdump -T "$crun" | sed -n 's/.*UND.*(\(LIBSYSTEMD_[0-9]*\)) *\(sd_[a-z_]*\)$/\1 \2/p' | sort)
if [ -n "$symbols" ]; then
  echo "$symbols" | while read -r _ symbol; do
    echo "long $symbol(void); long $symbol(void) { return -38; }"
  done > "$stub/stub.c"
  for version in $(echo "$symbols" | cut -d ' ' -f 1 | sort -u); do
    echo "$version { global: $(echo "$symbols" | sed -n "s/^$version //p" | tr '\n' ';') };"
  done > "$stub/stub.map"
  "${CC:-gcc}" -shared -nostdlib -Os -fPIC -Wl,-soname,libsystemd.so.0 -Wl,--version-script="$stub/stub.map" -Wl,-s \
    -o "$stub/libsystemd.so.0" "$stub/stub.c"
fi

root=$work/root
mkdir -p "$root"/{dev,proc,sys,run,tmp,usr/bin,lib/modules}
install -m 0755 "$agent" "$root/init"
strip --strip-all "$root/init"
install -m 0755 "$crun" "$root/usr/bin/crun"
{ closure "$crun" "$stub"; closure "$agent"; } | sort -u | while read -r library; do
  install -D -m 0755 "$(realpath "$library")" "$root$library"
done
if [ -n "$symbols" ]; then
  install -D -m 0755 "$stub/libsystemd.so.0" "$root/lib/x86_64-linux-gnu/libsystemd.so.0"
fi
grep -v -e '^#' -e '^$' "$here/modules.txt" | while read -r _ module; do
  file=$(find "$moddir" -name "$module.ko" | head -n 1)
  if [ -z "$file" ]; then
    echo "modules.txt: the kernel $release has no module $module" >&2
    exit 1
  fi
  # Rewriting the file drops the appended signature as well; all of that only costs boot time and memory here.
  strip --strip-unneeded --remove-section=.BTF -o "$root/lib/modules/$module.ko" "$file"
done
grep -v -e '^#' -e '^$' "$here/modules.txt" > "$root/lib/modules/order"

# The same inputs give the same bytes.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | sort | cpio -o -H newc -R 0:0 --reproducible --quiet) > "$work/initramfs.cpio"
case $compress in
  none) mv "$work/initramfs.cpio" "$work/initramfs.img" ;;
  lz4) lz4 -q -l -9 -f "$work/initramfs.cpio" "$work/initramfs.img" ;;
  *) echo "LAMINA_GUEST_COMPRESS=$compress: not none or lz4" >&2; exit 2 ;;
esac

bytes() { stat -c %s "$1"; }
{
  echo "kernel: $release ($(dpkg-deb -f "$deb" Version))"
  echo "crun: $("$crun" --version | sed -n 's/^crun version //p')"
  echo "libc: $(dpkg-query -W -f '${Version}' libc6)"
  echo "agent: $(sha256sum "$agent" | cut -c 1-16)"
  echo "vmlinux: $(bytes "$work/vmlinux") bytes"
  echo "initramfs: $(bytes "$work/initramfs.img") bytes (agent $(bytes "$root/init"), modules $(
    cat "$root"/lib/modules/*.ko | wc -c), crun and libraries $(
    find "$root/usr" "$root/lib" "$root/lib64" -type f ! -name '*.ko' -exec cat {} + 2>/dev/null | wc -c))"
} > "$work/versions.txt"
# Nothing of it runs unless it is still this (vmm/guest_image.h).
(cd "$work" && sha256sum vmlinux initramfs.img) > "$work/SHA256SUMS"
echo "$inputs" > "$work/inputs"
rm -f "$out/inputs"
mv "$work/vmlinux" "$work/initramfs.img" "$work/SHA256SUMS" "$work/versions.txt" "$out/"
mv "$work/inputs" "$out/inputs"
cat "$out/versions.txt"
