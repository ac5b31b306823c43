// The shared directory as the guest sees it, with the real virtiofsd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/process.h"
#include "base/units.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"
#include "vmm/qemu_command.h"

namespace lamina::vmm {
namespace {

namespace fs = std::filesystem;
using lamina::testing::HasStatus;
using std::chrono::seconds;

// Runs `cp /in/file /out/<id>` in a container whose root is the shared directory's "root"; the exit status.
absl::StatusOr<uint32_t> CopyInGuest(Machine& machine, const std::string& id) {
  agent::v1::CreateContainerRequest create;
  create.set_container_id(id);
  create.set_spec_json(R"({"ociVersion":"1.0.2","root":{"path":"/run/lamina/shared/root"},)"
                       R"("process":{"args":["/busybox","cp","/in/file","/out/)" +
                       id +
                       R"("],"cwd":"/","env":[],"user":{"uid":0,"gid":0}},)"
                       R"("mounts":[{"destination":"/dev","type":"tmpfs","source":"tmpfs"}],)"
                       R"("linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}})");
  RETURN_IF_ERROR(machine.Call(guest::kCreateContainer, create).status());
  agent::v1::ProcessRequest process;
  process.set_container_id(id);
  RETURN_IF_ERROR(machine.Call(guest::kStartProcess, process).status());
  ASSIGN_OR_RETURN(const auto waited, machine.Call(guest::kWaitProcess, process));
  RETURN_IF_ERROR(machine.Call(guest::kDeleteProcess, process).status());
  return waited.exit_status();
}

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

TEST(Virtiofs, ABindMadeAfterTheBootIsSeenAndArenasDoNotDisturbIt) {
  const std::string busybox = LAMINA_GUEST_CACHE "/busybox/bin/busybox";
  if (!fs::exists(busybox)) GTEST_SKIP() << "no " << busybox << ": the guest's integration tests fetch it";
  const lamina::testing::TempDir files;
  const auto layer = MakeLayer(files.path(), "layer", "x");
  ASSERT_OK(layer);
  Machine::Options options;
  options.shared_dir = true;
  for (int i = 0; i < 8; ++i)
    options.boot_arenas.push_back(MakeArena(files.path(), "boot" + std::to_string(i), 16 * kMiB, *layer, 0));
  const auto machine = Machine::Boot(options);
  ASSERT_OK(machine);
  const std::string root = (*machine)->shared_dir() + "/root";
  for (const char* name : {"in", "out", "proc", "dev", "sys", "tmp"})
    fs::create_directories(root + "/" + name);
  fs::copy_file(busybox, root + "/busybox");
  fs::create_directory(files / "volume");
  std::ofstream(files / "volume/file") << "through the bind";

  ASSERT_EQ(mount((files / "volume").c_str(), (root + "/in").c_str(), nullptr, MS_BIND, nullptr), 0);
  auto status = CopyInGuest(**machine, "c1");
  ASSERT_OK(status);
  EXPECT_EQ(*status, 0u);
  EXPECT_EQ(FirstLine(root + "/out/c1"), "through the bind");

  // vhost-user learns of each new memory region; read-only ones and many of them are no harm.
  for (int i = 0; i < 8; ++i) {
    ASSERT_OK((*machine)->vm().AttachArena(
        MakeArena(files.path(), "later" + std::to_string(i), 16 * kMiB, *layer, 0), kMiB));
  }
  ASSERT_OK((*machine)->MountPmem(1, HotplugPciPath(7), 0, FileSize(*layer)));
  status = CopyInGuest(**machine, "c2");
  ASSERT_OK(status);
  EXPECT_EQ(*status, 0u);
  EXPECT_EQ(FirstLine(root + "/out/c2"), "through the bind");

  ASSERT_EQ(umount2((root + "/in").c_str(), MNT_DETACH), 0);
  const VirtiofsdProcess& virtiofsd = (*machine)->virtiofsd();
  EXPECT_TRUE(ProcessAlive(virtiofsd.pid, virtiofsd.start_time));
}

// What the node mounts comes and goes in virtiofsd's own namespace, where it sees nothing else of the node.
TEST(Virtiofs, SeesTheSharedDirectoryAndNoOtherMountOfTheNode) {
  const lamina::testing::TempDir files;
  Machine::Options options;
  options.shared_dir = true;
  const auto machine = Machine::Boot(options);
  ASSERT_OK(machine);
  const auto mounts = [&] {
    std::ifstream info(fmt::format("/proc/{}/mountinfo", (*machine)->virtiofsd().pid));
    std::vector<std::string> places;
    for (std::string line; std::getline(info, line);) {
      std::istringstream words(line);
      std::string skip, place;
      words >> skip >> skip >> skip >> skip >> place;
      places.push_back(place);
    }
    return places;
  };
  // As one sees them who stands in the shared directory, which is its root: others are out of its reach.
  EXPECT_THAT(mounts(), ::testing::ElementsAre("/"));
  const std::string root = (*machine)->shared_dir() + "/volume";
  fs::create_directory(root);
  ASSERT_EQ(mount(files.path().c_str(), root.c_str(), nullptr, MS_BIND, nullptr), 0);
  EXPECT_THAT(mounts(), ::testing::ElementsAre("/", "/volume"));
  ASSERT_EQ(umount2(root.c_str(), MNT_DETACH), 0);
  EXPECT_THAT(mounts(), ::testing::ElementsAre("/"));
}

TEST(Virtiofs, EndsWithQemu) {
  Machine::Options options;
  options.shared_dir = true;
  const auto machine = Machine::Boot(options);
  ASSERT_OK(machine);
  const VirtiofsdProcess& virtiofsd = (*machine)->virtiofsd();
  ASSERT_OK((*machine)->vm().Kill(seconds(10)));
  const auto deadline = std::chrono::steady_clock::now() + seconds(10);
  while (ProcessAlive(virtiofsd.pid, virtiofsd.start_time) && std::chrono::steady_clock::now() < deadline) {
    usleep(5000);
  }
  EXPECT_FALSE(ProcessAlive(virtiofsd.pid, virtiofsd.start_time));
}

TEST(Virtiofs, ADirectoryThatIsNotThereIsAnErrorInItsWords) {
  const lamina::testing::TempDir dir;
  VirtiofsdOptions options;
  options.program = kVirtiofsd;
  options.shared_dir = dir / "missing";
  options.socket = dir / "fs.sock";
  options.log_path = dir / "log";
  EXPECT_THAT(Hypervisor::Qemu().StartVirtiofsd(options), HasStatus(absl::StatusCode::kNotFound, "missing"));
}

}  // namespace
}  // namespace lamina::vmm
