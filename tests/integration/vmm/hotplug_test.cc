#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "base/units.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::steady_clock;

double Since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

TEST(Hotplug, ArenasAtBootAndLaterAreWhereTheirPathSays) {
  const lamina::testing::TempDir files;
  const auto first = MakeLayer(files.path(), "first", "at boot");
  const auto second = MakeLayer(files.path(), "second", "later");
  ASSERT_OK(first);
  ASSERT_OK(second);
  Machine::Options options;
  options.boot_arenas = {MakeArena(files.path(), "boot", 256 * kMiB, *first, 8 * kMiB)};
  const auto machine = Machine::Boot(options);
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();

  // The same arena is where it was at boot: no port is spent on it.
  const auto boot_path = vm.AttachArena(options.boot_arenas[0], 16 * kMiB);
  ASSERT_OK(boot_path);
  EXPECT_EQ(*boot_path, "06.0");
  EXPECT_EQ(vm.free_ports(), 8u);
  auto mounted = (*machine)->MountPmem(1, *boot_path, 8 * kMiB, FileSize(*first));
  ASSERT_OK(mounted);
  EXPECT_TRUE(mounted->dax());

  const ArenaDevice later = MakeArena(files.path(), "later", kGiB, *second, 4096);
  const auto begin = steady_clock::now();
  const auto path = vm.AttachArena(later, later.bytes);
  ASSERT_OK(path);
  const double attached = Since(begin);
  EXPECT_EQ(*path, "10.0/00.0");
  EXPECT_EQ(vm.free_ports(), 7u);
  mounted = (*machine)->MountPmem(2, *path, 4096, FileSize(*second));
  ASSERT_OK(mounted);
  EXPECT_TRUE(mounted->dax());
  printf("arena of 1 GiB: QMP %.3f s, mounted after %.3f s\n", attached, Since(begin));
  EXPECT_EQ(vm.AttachArena(later, later.bytes).value_or("error"), *path);
  EXPECT_EQ(vm.free_ports(), 7u);
  EXPECT_EQ(vm.arenas().size(), 2u);
}

// A pod pays for the part of an arena that it needs; a layer beyond that part costs it another device.
TEST(Hotplug, WindowsOnOneArena) {
  const lamina::testing::TempDir files;
  const auto near = MakeLayer(files.path(), "near", "in the first window");
  const auto far = MakeLayer(files.path(), "far", "in the second");
  ASSERT_OK(near);
  ASSERT_OK(far);
  const ArenaDevice whole = MakeArena(files.path(), "arena-1", 256 * kMiB, *near, 8 * kMiB);
  WriteRegion(whole, *far, 100 * kMiB);
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();
  const auto first = vm.AttachArena({whole.id, whole.path, 64 * kMiB}, 8 * kMiB + FileSize(*near));
  ASSERT_OK(first);
  ASSERT_OK((*machine)->MountPmem(1, *first, 8 * kMiB, FileSize(*near)));
  EXPECT_THAT(vm.AttachArena({whole.id, whole.path, 64 * kMiB}, 100 * kMiB + FileSize(*far)),
              HasStatus(absl::StatusCode::kInvalidArgument, "do not show"));
  const auto second = vm.AttachArena({whole.id, whole.path, 128 * kMiB}, 100 * kMiB + FileSize(*far));
  ASSERT_OK(second);
  EXPECT_NE(*first, *second);
  const auto mounted = (*machine)->MountPmem(2, *second, 100 * kMiB, FileSize(*far));
  ASSERT_OK(mounted);
  EXPECT_TRUE(mounted->dax());
  // What the first window shows stays there.
  EXPECT_EQ(vm.AttachArena({whole.id, whole.path, 128 * kMiB}, 8 * kMiB + FileSize(*near)).value_or("error"),
            *first);
  EXPECT_EQ(vm.arenas().size(), 2u);
}

TEST(Hotplug, DisksComeGoAndComeAgain) {
  const lamina::testing::TempDir files;
  const auto image = MakeLayer(files.path(), "disk \"quoted\"", "on a disk");
  const auto other = MakeLayer(files.path(), "other", "another");
  ASSERT_OK(image);
  ASSERT_OK(other);
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();

  auto begin = steady_clock::now();
  ScsiDisks& scsi = vm.scsi();
  const uint64_t first = *scsi.Reserve(*image);
  const auto place = scsi.Map(first);
  ASSERT_OK(place);
  EXPECT_EQ(place->pci_path, "10.0/00.0");
  EXPECT_EQ(place->lun, 0u);
  ASSERT_OK((*machine)->MountScsi(1, *place, FileSize(*image)));
  printf("controller and disk: mounted after %.3f s\n", Since(begin));
  begin = steady_clock::now();
  const auto place2 = scsi.Map(*scsi.Reserve(*other));
  ASSERT_OK(place2);
  EXPECT_EQ(place2->lun, 1u);
  EXPECT_EQ(vm.free_ports(), 7u);
  ASSERT_OK((*machine)->MountScsi(2, *place2, FileSize(*other)));
  printf("further disk: mounted after %.3f s\n", Since(begin));

  // A second user of the same image: the first to leave takes nothing away.
  const uint64_t second = *scsi.Reserve(*image);
  EXPECT_EQ(scsi.Map(second)->lun, 0u);
  EXPECT_OK(scsi.Unmap(first));
  ASSERT_OK((*machine)->Unmount(1));
  begin = steady_clock::now();
  EXPECT_OK(scsi.Unmap(second));
  printf("disk removed after %.3f s\n", Since(begin));
  EXPECT_OK(scsi.Unmap(second));

  // Its place is free again, and what sits there then is the new disk, not a memory of the old one.
  const auto place3 = scsi.Map(*scsi.Reserve(*image));
  ASSERT_OK(place3);
  EXPECT_EQ(place3->lun, 0u);
  ASSERT_OK((*machine)->MountScsi(3, *place3, FileSize(*image)));
}

TEST(Hotplug, TheSixtyFifthDiskGetsASecondController) {
  const lamina::testing::TempDir files;
  const auto image = MakeLayer(files.path(), "disk", "many");
  ASSERT_OK(image);
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();
  std::vector<std::string> copies;
  std::vector<uint64_t> ids;
  DiskPlace last;
  for (int i = 0; i < 65; ++i) {
    copies.push_back(files / ("copy" + std::to_string(i)));
    std::filesystem::copy_file(*image, copies.back());
    ids.push_back(*vm.scsi().Reserve(copies.back()));
    const auto place = vm.scsi().Map(ids.back());
    ASSERT_OK(place);
    EXPECT_EQ(place->pci_path, i < 64 ? "10.0/00.0" : "10.1/00.0");
    EXPECT_EQ(place->lun, static_cast<uint32_t>(i % 64));
    last = *place;
  }
  EXPECT_EQ(vm.free_ports(), 6u);
  ASSERT_OK((*machine)->MountScsi(1, last, FileSize(*image)));
  ASSERT_OK((*machine)->Unmount(1));
  // In any order; here every other one, then the rest from the end.
  for (size_t i = 0; i < ids.size(); i += 2) ASSERT_OK(vm.scsi().Unmap(ids[i]));
  for (size_t i = ids.size(); i-- > 0;) ASSERT_OK(vm.scsi().Unmap(ids[i]));
  // All places are free again; controllers stay.
  const auto again = vm.scsi().Map(*vm.scsi().Reserve(*image));
  ASSERT_OK(again);
  EXPECT_EQ(again->lun, 0u);
  EXPECT_EQ(vm.free_ports(), 6u);
}

TEST(Hotplug, FailuresTakeNothing) {
  const lamina::testing::TempDir files;
  const auto image = MakeLayer(files.path(), "layer", "x");
  ASSERT_OK(image);
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();

  const uint64_t missing = *vm.scsi().Reserve(files / "no-such-image");
  EXPECT_THAT(vm.scsi().Map(missing),
              HasStatus(absl::StatusCode::kInternal, "no-such-image: No such file or directory"));
  EXPECT_OK(vm.scsi().Unmap(missing));
  auto place = vm.scsi().Map(*vm.scsi().Reserve(*image));
  ASSERT_OK(place);
  EXPECT_EQ(place->lun, 0u);
  const size_t ports = vm.free_ports();

  EXPECT_THAT(vm.AttachArena({"gone", files / "gone", kMiB}, kMiB),
              HasStatus(absl::StatusCode::kNotFound, "gone"));
  // QEMU takes the memory, then refuses the device: there is not that much address space.
  const ArenaDevice huge = MakeArena(files.path(), "huge", 64 * kGiB, *image, 0);
  EXPECT_THAT(vm.AttachArena(huge, kMiB), HasStatus(absl::StatusCode::kInternal, "huge"));
  EXPECT_EQ(vm.free_ports(), ports);
  EXPECT_TRUE(vm.arenas().empty());
  // The same id with a size that fits: nothing of the first try is in the way.
  EXPECT_OK(vm.AttachArena({"huge", huge.path, 64 * kMiB}, kMiB));
}

TEST(Hotplug, PortsRunOutWithAWordForIt) {
  const lamina::testing::TempDir files;
  const auto image = MakeLayer(files.path(), "layer", "x");
  ASSERT_OK(image);
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();
  std::set<std::string> paths;
  for (int i = 0; i < 8; ++i) {
    const auto path =
        vm.AttachArena(MakeArena(files.path(), "a" + std::to_string(i), 16 * kMiB, *image, 0), kMiB);
    ASSERT_OK(path);
    paths.insert(*path);
  }
  EXPECT_EQ(paths.size(), 8u);
  EXPECT_THAT(vm.AttachArena(MakeArena(files.path(), "ninth", 16 * kMiB, *image, 0), kMiB),
              HasStatus(absl::StatusCode::kResourceExhausted, "all 8 hotplug ports"));
  EXPECT_THAT(vm.scsi().Map(*vm.scsi().Reserve(*image)),
              HasStatus(absl::StatusCode::kResourceExhausted, "all 8 hotplug ports"));
  ASSERT_OK((*machine)->MountPmem(1, *paths.rbegin(), 0, FileSize(*image)));
}

// Whoever goes on with a VM that another process started knows from QEMU alone what it has been given.
TEST(Hotplug, AVmThatIsAdoptedKeepsWhatItHas) {
  const lamina::testing::TempDir files;
  const auto layer = MakeLayer(files.path(), "layer", "a layer");
  const auto other = MakeLayer(files.path(), "other", "another");
  ASSERT_OK(layer);
  ASSERT_OK(other);
  Machine::Options options;
  options.boot_arenas = {MakeArena(files.path(), "boot", 128 * kMiB, *layer, 0)};
  options.max_vcpus = 2;
  options.max_hot_memory_bytes = 256 * kMiB;
  const auto machine = Machine::Boot(options);
  ASSERT_OK(machine);
  Vm& first = (*machine)->vm();
  const ArenaDevice whole = MakeArena(files.path(), "arena-1", 256 * kMiB, *layer, 8 * kMiB);
  ASSERT_OK(first.AttachArena({whole.id, whole.path, 64 * kMiB}, 16 * kMiB));
  const auto wide = first.AttachArena({whole.id, whole.path, 128 * kMiB}, 100 * kMiB);
  ASSERT_OK(wide);
  const auto disk = first.scsi().Map(*first.scsi().Reserve(*layer));
  ASSERT_OK(disk);
  ASSERT_OK((*machine)->MountScsi(1, *disk, FileSize(*layer)));
  ASSERT_OK(first.resizer().GrowMemory(64 * kMiB, std::chrono::seconds(30)));
  const size_t free_ports = first.free_ports();

  Adoption adoption;
  adoption.process = {first.pid(), first.start_time()};
  adoption.runtime_dir = (*machine)->dir();
  adoption.boot_memory_bytes = 192 * kMiB;
  adoption.timeout = std::chrono::milliseconds(100);
  EXPECT_THAT(Hypervisor::Qemu().Adopt(adoption), HasStatus(absl::StatusCode::kDeadlineExceeded))
      << "one process at a time has its control socket";
  (*machine)->ForgetVm();
  adoption.timeout = std::chrono::seconds(10);
  auto adopted = Hypervisor::Qemu().Adopt(adoption);
  ASSERT_OK(adopted);
  Vm& vm = **adopted;
  EXPECT_EQ(vm.free_ports(), free_ports);
  ASSERT_EQ(vm.arenas().size(), 3U);
  EXPECT_EQ(vm.AttachArena(options.boot_arenas[0], kMiB).value_or("error"), "06.0");
  EXPECT_EQ(vm.AttachArena({whole.id, whole.path, 128 * kMiB}, 100 * kMiB).value_or("error"), *wide);
  EXPECT_OK(vm.AttachArena({whole.id, whole.path, 256 * kMiB}, 200 * kMiB));
  EXPECT_EQ(vm.free_ports(), free_ports - 1);
  const auto memory = vm.resizer().Memory();
  ASSERT_OK(memory);
  EXPECT_EQ(memory->plugged, 64 * kMiB);
  EXPECT_EQ(vm.resizer().PlugVcpus(2).value_or(0), 2U);
  const uint64_t reserved = *vm.scsi().Reserve(*other);
  const auto second = vm.scsi().Map(reserved);
  ASSERT_OK(second);
  EXPECT_EQ(second->pci_path, disk->pci_path) << "the controller is there already";
  EXPECT_EQ(second->lun, 1U) << "the first disk keeps its place";
  ASSERT_OK((*machine)->MountScsi(2, *second, FileSize(*other)));
  ASSERT_OK((*machine)->Unmount(2));
  EXPECT_OK(vm.scsi().Unmap(reserved));
  EXPECT_OK(vm.Kill(std::chrono::seconds(10)));
  EXPECT_FALSE(vm.Alive().ok());
  EXPECT_THAT(Hypervisor::Qemu().Adopt(adoption), HasStatus(absl::StatusCode::kUnavailable, "has ended"));
}

}  // namespace
}  // namespace lamina::vmm
