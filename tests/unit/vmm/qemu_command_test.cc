// The machine's command line, word for word: a change of it is a change of the guest's hardware.
#include "vmm/qemu_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/units.h"

namespace lamina::vmm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

VmSpec Pod() {
  VmSpec spec;
  spec.name = "pod-1";
  spec.firmware = "/fw/qboot.rom";
  spec.kernel = "/guest/vmlinux";
  spec.initramfs = "/guest/initramfs.img";
  spec.memory_bytes = 352 * kMiB;
  spec.hotplug_ports = 2;
  spec.runtime_dir = "/run/lamina/pod-1";
  return spec;
}

// "-option value" pairs, one per line; flags stand alone.
std::vector<std::string> Lines(const QemuCommand& command) {
  std::vector<std::string> lines;
  for (const std::string& word : command.argv) {
    if (word[0] == '-' || lines.empty() || lines.back().find(' ') != std::string::npos) {
      lines.push_back(word);
    } else {
      lines.back() += " " + word;
    }
  }
  return lines;
}

std::string Line(const VmSpec& spec, const std::string& part) {
  const auto lines = Lines(BuildQemuCommand(spec));
  const auto it = std::find_if(lines.begin(), lines.end(),
                               [&](const auto& line) { return line.find(part) != std::string::npos; });
  return it == lines.end() ? "none" : *it;
}

TEST(QemuCommandTest, AnEmulatedGuestIsToldTheFrequencyOfItsTsc) {
  VmSpec spec = Pod();
  EXPECT_THAT(Line(spec, "-append"), Not(HasSubstr("tsc_early_khz")));
  spec.tsc_khz = 2'596'142;
  EXPECT_THAT(Line(spec, "-append"), HasSubstr(" tsc_early_khz=2596142"));
  spec.accel = Accel::kKvm;  // which tells it itself
  EXPECT_THAT(Line(spec, "-append"), Not(HasSubstr("tsc_early_khz")));
}

TEST(QemuCommandTest, RoomToGrow) {
  VmSpec spec = Pod();
  spec.max_vcpus = 8;
  spec.max_hot_memory_bytes = 2 * kGiB;
  spec.extra_kernel_args = "debug";
  EXPECT_EQ(Line(spec, "-smp"), "-smp 1,maxcpus=8");
  EXPECT_EQ(Line(spec, "-accel"), "-accel tcg,thread=multi,tb-size=256");
  EXPECT_EQ(Line(spec, "-m 352M"), "-m 352M,slots=8,maxmem=3424M");
  EXPECT_EQ(Line(spec, "hot-ram,size"), "-object memory-backend-memfd,id=hot-ram,size=2048M,share=on");
  EXPECT_EQ(Line(spec, "virtio-mem"),
            "-device virtio-mem-pci,id=hot-memory,memdev=hot-ram,block-size=4M,requested-size=0,bus=pcie.0,"
            "addr=0e.0");
  EXPECT_THAT(Line(spec, "-append"), HasSubstr(" rdinit=/init memhp_default_state=online "
                                               "memory_hotplug.online_policy=auto-movable debug"));
  // The same number as at boot is no room, and costs nothing.
  spec.max_vcpus = 1;
  spec.max_hot_memory_bytes = 0;
  EXPECT_EQ(Line(spec, "-smp"), "-smp 1");
  EXPECT_EQ(Line(spec, "-accel"), "-accel tcg,thread=single,tb-size=256");
  EXPECT_EQ(Line(spec, "virtio-mem"), "none");
}

TEST(QemuCommandTest, NumaNodesBindAllOfTheGuestsMemoryAndNoArena) {
  VmSpec spec = Pod();
  spec.max_hot_memory_bytes = 2 * kGiB;
  spec.boot_arenas = {{"arena-7", "/var/lib/lamina/arena-7", kGiB}};
  spec.numa_nodes = {1};
  EXPECT_EQ(Line(spec, "id=ram"),
            "-object memory-backend-memfd,id=ram,size=352M,share=on,host-nodes=1,policy=bind");
  EXPECT_EQ(Line(spec, "hot-ram,size"),
            "-object memory-backend-memfd,id=hot-ram,size=2048M,share=on,host-nodes=1,policy=bind");
  EXPECT_THAT(Line(spec, "id=mem-arena-7"), ::testing::EndsWith("share=on,readonly=on"));
  spec.numa_nodes = {0, 2};
  EXPECT_EQ(
      Line(spec, "id=ram"),
      "-object memory-backend-memfd,id=ram,size=352M,share=on,host-nodes=0,host-nodes=2,policy=interleave");
}

TEST(QemuCommandTest, AWholePod) {
  VmSpec spec = Pod();
  spec.boot_arenas = {{"arena-7", "/var/lib/lamina/arena-7", kGiB}};
  spec.hotplug_bytes = 3 * kGiB;
  spec.virtiofs_socket = "/run/lamina/pod-1/virtiofsd.sock";
  spec.tap_fd = 3;
  spec.mac = "02:42:0a:01:02:03";
  EXPECT_THAT(
      Lines(BuildQemuCommand(spec)),
      ElementsAre(
          "qemu-system-x86_64", "-name pod-1",
          // Nothing that is not named here.
          "-nodefaults", "-no-user-config", "-display none", "-no-reboot",
          // A QEMU that was taken over can neither start programs nor gain rights.
          "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
          "-machine q35,memory-backend=ram,hpet=off,usb=off,vmport=off,smm=off,i8042=off,dump-guest-core=off",
          "-accel tcg,thread=single,tb-size=256", "-cpu max,-erms,-fsrm", "-smp 1",
          // Address space: 1 GiB arena at boot + 3 GiB later + 1 GiB for alignment.
          "-m 352M,slots=8,maxmem=5472M", "-object memory-backend-memfd,id=ram,size=352M,share=on",
          "-bios /fw/qboot.rom", "-kernel /guest/vmlinux", "-initrd /guest/initramfs.img",
          "-append quiet loglevel=0 tsc=reliable no_timer_check noreplace-smp reboot=t panic=-1 "
          "cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 pci=noaer edd=off swiotlb=noforce "
          "rdinit=/init",
          // A control channel, two ports into the guest; all that is the node's comes as a descriptor.
          "-chardev socket,id=qmp,fd=4,server=on,wait=off", "-mon chardev=qmp,mode=control",
          "-device virtio-serial-pci,id=serial,disable-legacy=on,bus=pcie.0,addr=01.0",
          "-chardev socket,id=rpc,fd=5,server=on,wait=off",
          "-device virtserialport,bus=serial.0,nr=1,chardev=rpc,name=lamina.rpc",
          "-chardev socket,id=stdio,fd=6,server=on,wait=off",
          "-device virtserialport,bus=serial.0,nr=2,chardev=stdio,name=lamina.stdio",
          "-object rng-builtin,id=rng",
          "-device virtio-rng-pci,rng=rng,disable-legacy=on,bus=pcie.0,addr=02.0",
          // The guest's free pages go back to the host by themselves.
          "-device virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on,disable-legacy=on,"
          "bus=pcie.0,addr=03.0",
          "-netdev tap,id=net,fd=3",
          "-device virtio-net-pci,netdev=net,mac=02:42:0a:01:02:03,romfile=,disable-legacy=on,bus=pcie.0,"
          "addr=04.0",
          "-chardev socket,id=fs,fd=7",
          "-device vhost-user-fs-pci,chardev=fs,tag=lamina,bus=pcie.0,addr=05.0",
          // readonly=on: the guest must not reach what other pods read.
          "-object memory-backend-file,id=mem-arena-7,mem-path=/proc/self/fd/8,size=1073741824,share=on,"
          "readonly=on",
          "-device virtio-pmem-pci,id=pmem-arena-7,memdev=mem-arena-7,bus=pcie.0,addr=06.0",
          // What comes later goes into these.
          "-device pcie-root-port,id=port0,chassis=1,slot=1,bus=pcie.0,addr=10.0,multifunction=on",
          "-device pcie-root-port,id=port1,chassis=2,slot=2,bus=pcie.0,addr=10.1"));
}

TEST(QemuCommandTest, NoProtectionOfTheGuestIsSwitchedOff) {
  const std::string line = Line(Pod(), "-append");
  for (const char* word : {"mitigations=off", "nokaslr", "nopti"})
    EXPECT_EQ(line.find(word), std::string::npos);
}

TEST(QemuCommandTest, OnlyWhatThePodHasIsThere) {
  EXPECT_EQ(Line(Pod(), "virtio-net"), "none");
  EXPECT_EQ(Line(Pod(), "vhost-user-fs"), "none");
  EXPECT_EQ(Line(Pod(), "virtio-pmem"), "none");
  EXPECT_THAT(BuildQemuCommand(Pod()).arena_pci_paths, IsEmpty());
}

TEST(QemuCommandTest, EmulationUsesAThreadPerCpuOnlyWhereThereAreMore) {
  VmSpec spec = Pod();
  spec.vcpus = 3;
  EXPECT_EQ(Line(spec, "-accel"), "-accel tcg,thread=multi,tb-size=256");
  EXPECT_EQ(Line(spec, "-smp"), "-smp 3");
  spec.accel = Accel::kKvm;
  EXPECT_EQ(Line(spec, "-accel"), "-accel kvm");
  EXPECT_EQ(Line(spec, "-cpu"), "-cpu host");
}

TEST(QemuCommandTest, ExtraKernelArgumentsComeLastAndWin) {
  VmSpec spec = Pod();
  spec.extra_kernel_args = "loglevel=7 console=hvc0";
  EXPECT_THAT(Line(spec, "-append"), ::testing::EndsWith("rdinit=/init loglevel=7 console=hvc0"));
}

TEST(QemuCommandTest, ACommaDoesNotBecomeAnOption) {
  VmSpec spec = Pod();
  spec.name = "a,debug-threads=on";
  spec.firmware = "/fw/a,b.rom";
  EXPECT_EQ(Line(spec, "-name"), "-name a,,debug-threads=on");
  EXPECT_EQ(Line(spec, "-bios"), "-bios /fw/a,,b.rom");
}

TEST(QemuCommandTest, ThePathsOfThePodAreNotQemus) {
  VmSpec spec = Pod();
  spec.virtiofs_socket = "/run/lamina/pod-1/virtiofsd.sock";
  for (int i = 0; i < 8; ++i) spec.boot_arenas.push_back({"a" + std::to_string(i), "/arenas/a", kGiB});
  for (const std::string& line : Lines(BuildQemuCommand(spec)))
    EXPECT_THAT(line, ::testing::AllOf(Not(HasSubstr("/run/")), Not(HasSubstr("/arenas/"))));
  EXPECT_THAT(Line(spec, "id=mem-a7"), HasSubstr("mem-path=/proc/self/fd/15,"));
}

TEST(QemuCommandTest, EachDeviceHasASlotOfItsOwn) {
  VmSpec spec = Pod();
  spec.hotplug_ports = 64;
  spec.tap_fd = 3;
  spec.virtiofs_socket = "/s";
  for (int i = 0; i < 8; ++i) spec.boot_arenas.push_back({"a" + std::to_string(i), "/a", kGiB});
  const QemuCommand command = BuildQemuCommand(spec);
  std::set<std::string> addresses;
  size_t devices = 0;
  for (const std::string& word : command.argv) {
    const size_t at = word.find("addr=");
    if (at == std::string::npos) continue;
    ++devices;
    addresses.insert(word.substr(at + 5, 4));
    EXPECT_LT(std::stoul(word.substr(at + 5, 2), nullptr, 16), 0x1fu) << word << ": the chipset's own slot";
  }
  EXPECT_EQ(devices, 5u + 8u + 64u);
  EXPECT_EQ(addresses.size(), devices);
  EXPECT_THAT(command.arena_pci_paths,
              ElementsAre("06.0", "07.0", "08.0", "09.0", "0a.0", "0b.0", "0c.0", "0d.0"));
}

TEST(QemuCommandTest, PathsOfPortsGoFunctionByFunction) {
  EXPECT_EQ(HotplugPciPath(0), "10.0/00.0");
  EXPECT_EQ(HotplugPciPath(7), "10.7/00.0");
  EXPECT_EQ(HotplugPciPath(8), "11.0/00.0");
  EXPECT_EQ(HotplugPciPath(63), "17.7/00.0");
  EXPECT_EQ(HotplugPortId(9), "port9");
}

// The firmware looks for a slot's further functions only behind a function 0 that says it has some.
TEST(QemuCommandTest, FunctionZeroOfEachPortSlotSaysThatThereAreMore) {
  VmSpec spec = Pod();
  spec.hotplug_ports = 10;
  int multifunction = 0;
  for (const std::string& word : BuildQemuCommand(spec).argv) {
    if (word.rfind("pcie-root-port", 0) != 0) continue;
    const bool first = word.find(".0,multifunction=on") != std::string::npos;
    EXPECT_EQ(first,
              word.find("id=port0,") != std::string::npos || word.find("id=port8,") != std::string::npos)
        << word;
    multifunction += first;
  }
  EXPECT_EQ(multifunction, 2);
}

}  // namespace
}  // namespace lamina::vmm
