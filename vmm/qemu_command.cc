#include "vmm/qemu_command.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "guest/protocol/contract.h"

namespace lamina::vmm {
namespace {

// Fixed slots on the root bus, so that a path is known without asking the guest.
constexpr int kSerialSlot = 0x01, kRngSlot = 0x02, kBalloonSlot = 0x03, kNetSlot = 0x04, kFsSlot = 0x05;
constexpr int kFirstArenaSlot = 0x06, kHotMemorySlot = 0x0e, kFirstPortSlot = 0x10;
constexpr uint32_t kFunctionsPerSlot = 8;

// What was measured to shorten the boot without giving up a protection.
constexpr char kKernelArgs[] =
    "quiet loglevel=0 tsc=reliable no_timer_check noreplace-smp reboot=t panic=-1 cryptomgr.notests "
    "random.trust_cpu=on "
    "rcupdate.rcu_expedited=1 pci=noaer edd=off swiotlb=noforce rdinit=/init";

// New memory is online at once, movable (so that it can be given back) as long as the kernel has enough of
// the other kind beside it.
constexpr char kHotMemoryKernelArgs[] =
    " memhp_default_state=online memory_hotplug.online_policy=auto-movable";

// QEMU reads a comma in a value as two.
std::string Escape(const std::string& value) {
  std::string out;
  for (const char c : value) {
    out.push_back(c);
    if (c == ',') out.push_back(',');
  }
  return out;
}

// Of a memory backend. Interleaving is what makes an even division true; a single node is bound strictly.
std::string NumaPolicy(const std::vector<uint32_t>& nodes) {
  if (nodes.empty()) return "";
  std::string out;
  for (const uint32_t node : nodes) out += fmt::format(",host-nodes={}", node);
  return out + (nodes.size() == 1 ? ",policy=bind" : ",policy=interleave");
}

// An emulated guest reads the host's TSC and measures its frequency against emulated timers: on a busy host
// it is off by more than tenfold, and so is the guest's clock from then on.
std::string TscKernelArg(const VmSpec& spec) {
  if (spec.accel != Accel::kTcg || spec.tsc_khz == 0) return "";
  return fmt::format(" tsc_early_khz={}", spec.tsc_khz);
}

}  // namespace

std::string HotplugPciPath(uint32_t index) {
  return fmt::format("{:02x}.{}/00.0", kFirstPortSlot + index / kFunctionsPerSlot, index % kFunctionsPerSlot);
}

std::string HotplugPortId(uint32_t index) { return fmt::format("port{}", index); }

QemuCommand BuildQemuCommand(const VmSpec& spec) {
  QemuCommand command;
  auto& argv = command.argv;
  const auto add = [&](std::initializer_list<std::string> words) { argv.insert(argv.end(), words); };
  add({spec.qemu, "-name", Escape(spec.name), "-nodefaults", "-no-user-config", "-display", "none"});
  // A guest that panics or resets itself is over: the pod's end must be seen, and a second boot would be
  // another machine.
  add({"-no-reboot"});
  add({"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  add({"-machine",
       "q35,memory-backend=ram,hpet=off,usb=off,vmport=off,smm=off,i8042=off,dump-guest-core=off"});
  const uint32_t max_vcpus = std::max(spec.vcpus, spec.max_vcpus);
  if (spec.accel == Accel::kTcg) {
    // Emulated, `rep movsb` goes byte by byte: a kernel that takes it for fast copies at a third of the
    // speed.
    add({"-accel",
         fmt::format("tcg,thread={},tb-size={}", max_vcpus == 1 ? "single" : "multi",
                     kTranslatedCodeBytes / kMiB),
         "-cpu", "max,-erms,-fsrm"});
  } else {
    add({"-accel", AccelName(spec.accel), "-cpu", "host"});
  }
  add({"-smp", max_vcpus == spec.vcpus ? std::to_string(spec.vcpus)
                                       : fmt::format("{},maxcpus={}", spec.vcpus, max_vcpus)});
  const uint64_t memory_mib = spec.memory_bytes / kMiB;
  uint64_t device_bytes = spec.hotplug_bytes;
  for (const ArenaDevice& arena : spec.boot_arenas) device_bytes += arena.bytes;
  // Each device may need up to its own alignment on top.
  const uint64_t device_mib =
      (device_bytes + kGiB - 1) / kGiB * 1024 + 1024 + spec.max_hot_memory_bytes / kMiB;
  add({"-m", fmt::format("{}M,slots=8,maxmem={}M", memory_mib, memory_mib + device_mib)});
  // Shared, because virtiofsd reads and writes the guest's buffers.
  add({"-object", fmt::format("memory-backend-memfd,id=ram,size={}M,share=on{}", memory_mib,
                              NumaPolicy(spec.numa_nodes))});
  add({"-bios", Escape(spec.firmware), "-kernel", spec.kernel, "-initrd", spec.initramfs});
  add({"-append",
       fmt::format("{}{}{}{}", kKernelArgs, spec.max_hot_memory_bytes > 0 ? kHotMemoryKernelArgs : "",
                   spec.extra_kernel_args.empty() ? "" : " ", spec.extra_kernel_args) +
           TscKernelArg(spec)});

  const auto socket = [&](const std::string& id, int fd) {
    add({"-chardev", fmt::format("socket,id={},fd={},server=on,wait=off", id, fd)});
  };
  socket("qmp", kQmpFd);
  add({"-mon", "chardev=qmp,mode=control"});
  add({"-device",
       fmt::format("virtio-serial-pci,id=serial,disable-legacy=on,bus=pcie.0,addr={:02x}.0", kSerialSlot)});
  socket("rpc", kRpcFd);
  add({"-device", fmt::format("virtserialport,bus=serial.0,nr=1,chardev=rpc,name={}", guest::kRpcPort)});
  socket("stdio", kStdioFd);
  add({"-device", fmt::format("virtserialport,bus=serial.0,nr=2,chardev=stdio,name={}", guest::kStdioPort)});
  add({"-object", "rng-builtin,id=rng"});
  add({"-device",
       fmt::format("virtio-rng-pci,rng=rng,disable-legacy=on,bus=pcie.0,addr={:02x}.0", kRngSlot)});
  add({"-device", fmt::format("virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on,"
                              "disable-legacy=on,bus=pcie.0,"
                              "addr={:02x}.0",
                              kBalloonSlot)});
  if (spec.tap_fd >= 0) {
    add({"-netdev", fmt::format("tap,id=net,fd={}", spec.tap_fd)});
    add({"-device",
         fmt::format("virtio-net-pci,netdev=net,mac={},romfile=,disable-legacy=on,bus=pcie.0,addr={:02x}.0",
                     spec.mac, kNetSlot)});
  }
  if (!spec.virtiofs_socket.empty()) {
    add({"-chardev", fmt::format("socket,id=fs,fd={}", kVirtiofsFd)});
    add({"-device", fmt::format("vhost-user-fs-pci,chardev=fs,tag={},bus=pcie.0,addr={:02x}.0",
                                spec.virtiofs_tag, kFsSlot)});
  }
  // Before any other device with memory: there its addresses begin at a whole memory block of the guest's.
  if (spec.max_hot_memory_bytes > 0) {
    add({"-object", fmt::format("memory-backend-memfd,id=hot-ram,size={}M,share=on{}",
                                spec.max_hot_memory_bytes / kMiB, NumaPolicy(spec.numa_nodes))});
    add({"-device", fmt::format("virtio-mem-pci,id=hot-memory,memdev=hot-ram,block-size=4M,requested-size=0,"
                                "bus=pcie.0,addr={:02x}.0",
                                kHotMemorySlot)});
  }
  int slot = kFirstArenaSlot;
  for (const ArenaDevice& arena : spec.boot_arenas) {
    add({"-object",
         fmt::format("memory-backend-file,id=mem-{},mem-path=/proc/self/fd/{},size={},share=on,readonly=on",
                     arena.id, kFirstArenaFd + slot - kFirstArenaSlot, arena.bytes)});
    add({"-device", fmt::format("virtio-pmem-pci,id=pmem-{0},memdev=mem-{0},bus=pcie.0,addr={1:02x}.0",
                                arena.id, slot)});
    command.arena_pci_paths.push_back(fmt::format("{:02x}.0", slot));
    ++slot;
  }
  for (uint32_t i = 0; i < spec.hotplug_ports; ++i) {
    add({"-device",
         fmt::format("pcie-root-port,id={},chassis={},slot={},bus=pcie.0,addr={:02x}.{}{}", HotplugPortId(i),
                     i + 1, i + 1, kFirstPortSlot + i / kFunctionsPerSlot, i % kFunctionsPerSlot,
                     i % kFunctionsPerSlot == 0 ? ",multifunction=on" : "")});
  }
  return command;
}

}  // namespace lamina::vmm
