#include "tests/integration/vmm/machine.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file_system.h"
#include "base/positioned_io.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "guest/protocol/greeting.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

VmSpec TestSpec(const std::string& dir) {
  const std::string image = LAMINA_GUEST_IMAGE;
  VmSpec spec;
  spec.name = "lamina-test";
  spec.firmware = "/usr/share/qemu/qboot.rom";
  spec.kernel = image + "/vmlinux";
  spec.initramfs = image + "/initramfs.img";
  spec.memory_bytes = 192 * kMiB;
  spec.hotplug_bytes = 16 * kGiB;
  spec.runtime_dir = dir;
  return spec;
}

StartOptions Confined() {
  StartOptions options;
  options.users = {1'900'000'000, 1'900'000'999};
  options.users_lock = UsersLock("/tmp");
  return options;
}

absl::StatusOr<std::string> MakeLayer(const std::string& dir, const std::string& name,
                                      const std::string& text) {
  const std::string tree = dir + "/" + name + ".tree", image = dir + "/" + name + ".erofs";
  fs::create_directory(tree);
  std::ofstream(tree + "/content") << text;
  RETURN_IF_ERROR(RunChecked({"mkfs.erofs", "--quiet", image, tree}, std::chrono::seconds(60)));
  fs::resize_file(image, (fs::file_size(image) + 4095) / 4096 * 4096);
  return image;
}

ArenaDevice MakeArena(const std::string& dir, const std::string& id, uint64_t bytes, const std::string& layer,
                      uint64_t offset) {
  const ArenaDevice arena{id, dir + "/" + id + ".arena", bytes};
  std::ofstream(arena.path).flush();
  fs::resize_file(arena.path, bytes);
  WriteRegion(arena, layer, offset);
  return arena;
}

void WriteRegion(const ArenaDevice& arena, const std::string& layer, uint64_t offset) {
  const std::string content = FileSystem::Real().Read(layer, kGiB).value_or("");
  const UniqueFd fd(open(arena.path.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_OK(WriteAt(fd.get(), arena.path, offset, content.data(), content.size()));
}

std::string LayerId(int number) { return fmt::format("{:064x}", number); }
uint64_t FileSize(const std::string& path) { return fs::file_size(path); }

absl::StatusOr<std::unique_ptr<Machine>> Machine::Boot(const Options& options) {
  std::unique_ptr<Machine> machine(new Machine());
  VmSpec spec = TestSpec(machine->dir());
  spec.boot_arenas = options.boot_arenas;
  spec.max_vcpus = options.max_vcpus;
  spec.max_hot_memory_bytes = options.max_hot_memory_bytes;
  if (options.shared_dir) {
    const std::string shared = machine->shared_dir();
    fs::create_directory(shared);
    if (mount(shared.c_str(), shared.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
        mount(nullptr, shared.c_str(), nullptr, MS_SHARED, nullptr) != 0) {
      return ErrnoStatus(errno, "bind " + shared);
    }
    spec.virtiofs_socket = machine->dir() + "/fs.sock";
    VirtiofsdOptions options;
    options.program = kVirtiofsd;
    options.shared_dir = shared;
    options.socket = spec.virtiofs_socket;
    options.log_path = VirtiofsdLog(machine->dir());
    ASSIGN_OR_RETURN(machine->virtiofsd_, Hypervisor::Qemu().StartVirtiofsd(options));
  }
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(machine->vm_, Hypervisor::Qemu().Start(spec, Confined()));
  const auto launched = steady_clock::now();
  machine->launch_seconds_ = std::chrono::duration<double>(launched - begin).count();
  ASSIGN_OR_RETURN(machine->client_, ttrpc::Client::Dial(RpcSocket(machine->dir()), "agent"));
  ASSIGN_OR_RETURN(machine->hello_, guest::Greet(*machine->client_, std::chrono::seconds(60)));
  machine->boot_seconds_ = std::chrono::duration<double>(steady_clock::now() - launched).count();
  agent::v1::ConfigureSandboxRequest configure;
  configure.set_sandbox_id("pod-1");
  if (options.shared_dir) configure.set_shared_tag(spec.virtiofs_tag);
  RETURN_IF_ERROR(machine->Call(guest::kConfigureSandbox, configure).status());
  return machine;
}

Machine::~Machine() {
  client_.reset();
  if (vm_) {
    EXPECT_OK(vm_->Kill(std::chrono::seconds(10)));
  }
  EXPECT_OK(KillProcess(virtiofsd_.pid, virtiofsd_.start_time, std::chrono::seconds(10)));
  // Whatever a test has bound below it, too.
  while (umount2(shared_dir().c_str(), MNT_DETACH) == 0) {
  }
}

absl::StatusOr<agent::v1::LayerResult> Machine::MountPmem(int id, const std::string& pci_path,
                                                          uint64_t offset, uint64_t size) {
  agent::v1::MountLayersRequest request;
  agent::v1::Layer* layer = request.add_layers();
  layer->set_id(LayerId(id));
  layer->mutable_pmem()->set_pci_path(pci_path);
  layer->mutable_pmem()->set_offset(offset);
  layer->mutable_pmem()->set_size(size);
  ASSIGN_OR_RETURN(const auto response, Call(guest::kMountLayers, request));
  if (response.results_size() != 1) return absl::InternalError("not one result");
  return response.results(0);
}

agent::v1::ScsiDisk Machine::Disk(const DiskPlace& place, uint64_t size) {
  agent::v1::ScsiDisk disk;
  disk.set_pci_path(place.pci_path);
  disk.set_target(place.target);
  disk.set_lun(place.lun);
  disk.set_size(size);
  return disk;
}

absl::StatusOr<agent::v1::LayerResult> Machine::MountScsi(int id, const DiskPlace& place, uint64_t size,
                                                          const agent::v1::Verity& verity) {
  agent::v1::MountLayersRequest request;
  agent::v1::Layer* layer = request.add_layers();
  layer->set_id(LayerId(id));
  *layer->mutable_scsi() = Disk(place, size);
  if (!verity.root_hash().empty()) *layer->mutable_verity() = verity;
  ASSIGN_OR_RETURN(const auto response, Call(guest::kMountLayers, request));
  if (response.results_size() != 1) return absl::InternalError("not one result");
  return response.results(0);
}

absl::Status Machine::Unmount(int id) {
  agent::v1::UnmountLayersRequest request;
  request.add_ids(LayerId(id));
  return Call(guest::kUnmountLayers, request).status();
}

}  // namespace lamina::vmm
