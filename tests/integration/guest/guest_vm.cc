#include "tests/integration/guest/guest_vm.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/file_system.h"
#include "base/positioned_io.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/tsc.h"
#include "base/unix_socket.h"
#include "guest/protocol/greeting.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr uint64_t kArenaBytes = 128ULL << 20;

std::unique_ptr<GuestVm>& SharedSlot() {
  static std::unique_ptr<GuestVm> vm;
  return vm;
}

class EndSharedVm : public ::testing::Environment {
 public:
  void TearDown() override { SharedSlot().reset(); }
};
[[maybe_unused]] auto* const g_environment = ::testing::AddGlobalTestEnvironment(new EndSharedVm);

// Repeats `attempt` on a short poll until it succeeds, the process `pid` ends or the time is up.
template <typename Attempt>
absl::Status Until(steady_clock::time_point deadline, pid_t pid, const char* what, Attempt attempt) {
  while (!attempt()) {
    int status;
    if (pid > 0 && waitpid(pid, &status, WNOHANG) == pid) {
      return MakeStatus(absl::StatusCode::kInternal, "{}: the process has ended", what);
    }
    if (steady_clock::now() > deadline) return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{}", what);
    poll(nullptr, 0, 10);
  }
  return absl::OkStatus();
}

void End(pid_t& pid) {
  if (pid <= 0) return;
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  pid = 0;
}

}  // namespace

absl::StatusOr<DiskImage> MakeErofs(const std::string& directory, const std::string& image) {
  unlink(image.c_str());
  RETURN_IF_ERROR(RunChecked({"mkfs.erofs", "-x-1", "--force-uid=0", "--force-gid=0", image, directory},
                             std::chrono::seconds(60)));
  // Disks come in sectors, regions in pages.
  const uint64_t size = (fs::file_size(image) + 4095) / 4096 * 4096;
  if (truncate(image.c_str(), static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "truncate " + image);
  return DiskImage{image, size};
}

absl::StatusOr<std::unique_ptr<GuestVm>> GuestVm::Boot(const VmOptions& options) {
  std::unique_ptr<GuestVm> vm(new GuestVm());
  RETURN_IF_ERROR(vm->Start(options));
  return vm;
}

GuestVm& GuestVm::Shared() {
  if (!SharedSlot()) {
    auto vm = Boot({});
    if (!vm.ok()) {
      fprintf(stderr, "the guest does not boot: %s\n", Message(vm.status()).c_str());
      abort();
    }
    SharedSlot() = *std::move(vm);
    agent::v1::ConfigureSandboxRequest request;
    request.set_sandbox_id("pod-1");
    request.set_shared_tag(kSharedTag);
    const auto configured = SharedSlot()->Call(kConfigureSandbox, request);
    EXPECT_OK(configured);
  }
  return *SharedSlot();
}

absl::Status GuestVm::Start(const VmOptions& options) {
  char pattern[] = "/tmp/lamina-guest-vm-XXXXXX";
  if (mkdtemp(pattern) == nullptr) return ErrnoStatus(errno, "mkdtemp");
  directory_ = pattern;
  const std::string image = LAMINA_GUEST_IMAGE;
  std::vector<std::string> argv = {
      "qemu-system-x86_64",
      "-machine",
      fmt::format("q35{}", options.devices ? ",memory-backend=ram" : ""),
      "-accel",
      options.max_vcpus > 1 ? "tcg" : "tcg,thread=single",
      "-smp",
      fmt::format("1,maxcpus={}", options.max_vcpus),
      "-cpu",
      "max,-erms,-fsrm",
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-m",
      fmt::format("{}M,slots=4,maxmem=8G", options.memory_mib),
      "-bios",
      "/usr/share/qemu/qboot.rom",
      "-kernel",
      image + "/vmlinux",
      "-initrd",
      image + "/initramfs.img",
      "-append",
      "console=ttyS0 quiet loglevel=4 tsc=reliable no_timer_check noreplace-smp reboot=t panic=-1 "
      "cryptomgr.notests "
      "random.trust_cpu=on rcupdate.rcu_expedited=1 pci=noaer edd=off swiotlb=noforce" +
          (TscKhz() > 0 ? fmt::format(" tsc_early_khz={}", TscKhz()) : ""),
      "-serial",
      "file:" + directory_ + "/console.log",
      "-qmp",
      "unix:" + directory_ + "/qmp,server=on,wait=off",
      "-device",
      "virtio-serial-pci,addr=03.0",
      "-chardev",
      "socket,id=rpc,server=on,wait=off,path=" + directory_ + "/rpc",
      "-device",
      fmt::format("virtserialport,chardev=rpc,name={}", kRpcPort),
      "-chardev",
      "socket,id=stdio,server=on,wait=off,path=" + directory_ + "/stdio",
      "-device",
      fmt::format("virtserialport,chardev=stdio,name={}", kStdioPort)};
  if (options.devices) {
    const std::string arena = directory_ + "/arena";
    UniqueFd fd(open(arena.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || ftruncate(fd.get(), kArenaBytes) != 0) return ErrnoStatus(errno, "make " + arena);
    fs::create_directory(shared_directory());
    SpawnOptions sharing;
    sharing.argv = {"/usr/lib/qemu/virtiofsd",
                    "--socket-path=" + directory_ + "/fs",
                    "-o",
                    "source=" + shared_directory(),
                    "-o",
                    "cache=auto",
                    "-o",
                    "sandbox=chroot",
                    "-o",
                    "xattr",
                    "-o",
                    "announce_submounts",
                    "--thread-pool-size=4"};
    sharing.log_path = directory_ + "/virtiofsd.log";
    sharing.env = {"MALLOC_ARENA_MAX=1"};  // as in vmm/virtiofsd.cc, but not confined
    ASSIGN_OR_RETURN(virtiofsd_, Spawn(sharing));
    RETURN_IF_ERROR(Until(steady_clock::now() + std::chrono::seconds(10), virtiofsd_, "virtiofsd's socket",
                          [&] { return fs::exists(directory_ + "/fs"); }));
    for (const std::string& word :
         {std::string("-object"),
          fmt::format("memory-backend-memfd,id=ram,size={}M,share=on", options.memory_mib),
          std::string("-object"),
          fmt::format("memory-backend-file,id=arena0,mem-path={},size={},share=on,readonly=on", arena,
                      kArenaBytes),
          std::string("-device"),
          std::string("pcie-root-port,id=port0,addr=04.0,chassis=1"),
          std::string("-device"),
          std::string("pcie-root-port,id=port1,addr=09.0,chassis=2"),
          std::string("-device"),
          std::string("virtio-pmem-pci,memdev=arena0,bus=port0"),
          std::string("-device"),
          std::string("virtio-scsi-pci,id=scsi0,addr=05.0"),
          std::string("-netdev"),
          std::string("user,id=net0,restrict=on"),
          std::string("-device"),
          fmt::format("virtio-net-pci,netdev=net0,mac={},addr=06.0,romfile=", kMac),
          std::string("-chardev"),
          "socket,id=fs,path=" + directory_ + "/fs",
          std::string("-device"),
          std::string("vhost-user-fs-pci,chardev=fs,tag=" + std::string(kSharedTag) + ",addr=07.0"),
          std::string("-device"),
          std::string("virtio-balloon-pci,addr=08.0")}) {
      argv.push_back(word);
    }
  }
  SpawnOptions spawn;
  spawn.argv = argv;
  spawn.log_path = directory_ + "/qemu.log";
  const auto start = steady_clock::now();
  ASSIGN_OR_RETURN(qemu_, Spawn(spawn));
  const absl::Status connected = Connect();
  boot_seconds_ = std::chrono::duration<double>(steady_clock::now() - start).count();
  if (connected.ok()) return absl::OkStatus();
  const auto console = FileSystem::Real().Read(directory_ + "/console.log", 1 << 20);
  const auto log = FileSystem::Real().Read(directory_ + "/qemu.log", 1 << 20);
  return Annotate(connected, fmt::format("console:\n{}\nqemu:\n{}\n", console.ok() ? *console : "",
                                         log.ok() ? *log : ""));
}

absl::Status GuestVm::Connect() {
  RETURN_IF_ERROR(Until(steady_clock::now() + std::chrono::seconds(60), qemu_, "QEMU's monitor", [&] {
    if (!qmp_) qmp_ = ConnectUnix(directory_ + "/qmp").value_or(UniqueFd());
    return static_cast<bool>(qmp_);
  }));
  RETURN_IF_ERROR(ConnectPorts(std::chrono::seconds(60)));
  return Qmp(R"({"execute":"qmp_capabilities"})");
}

absl::Status GuestVm::ConnectPorts(std::chrono::seconds hello_timeout) {
  const auto deadline = steady_clock::now() + std::chrono::seconds(60);
  UniqueFd rpc, stdio;
  RETURN_IF_ERROR(Until(deadline, qemu_, "the guest's ports", [&] {
    if (!rpc) rpc = ConnectUnix(directory_ + "/rpc").value_or(UniqueFd());
    if (!stdio) stdio = ConnectUnix(directory_ + "/stdio").value_or(UniqueFd());
    return rpc && stdio;
  }));
  client_ = ttrpc::Client::FromFd(std::move(rpc), "agent");
  // A successor attaches the streams of its predecessor once it is connected.
  mux_ = StdioMux::Create(std::move(stdio), {.early_bytes = kMaxEarlyBytes});
  ASSIGN_OR_RETURN(hello_, Greet(*client_, hello_timeout));
  return absl::OkStatus();
}

absl::Status GuestVm::Reconnect() {
  client_.reset();
  mux_.reset();
  {
    UniqueFd cut = ConnectUnix(directory_ + "/rpc").value_or(UniqueFd());
    const char half[] = {0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 'h', 'a', 'l', 'f'};
    if (!cut || write(cut.get(), half, sizeof half) != sizeof half)
      return ErrnoStatus(errno, "write half a frame");
    // QEMU takes the bytes only when it next polls; a socket closed before would lose them.
    int unsent = 1;
    RETURN_IF_ERROR(Until(steady_clock::now() + std::chrono::seconds(5), 0, "half a frame to be taken",
                          [&] { return ioctl(cut.get(), TIOCOUTQ, &unsent) == 0 && unsent == 0; }));
  }
  // The port has no word for a host that came back before the guest saw it go: what it says then goes on with
  // the half frame. So a successor that is not answered goes away again, for longer.
  absl::Status status;
  for (const int away_ms : {300, 1000, 3000, 10'000}) {
    poll(nullptr, 0, away_ms);
    status = ConnectPorts(std::chrono::seconds(5));
    if (status.code() != absl::StatusCode::kDeadlineExceeded) break;
    client_.reset();
    mux_.reset();
  }
  return status;
}

GuestVm::~GuestVm() {
  client_.reset();
  mux_.reset();
  End(qemu_);
  End(virtiofsd_);
  if (directory_.empty()) return;
  if (::testing::UnitTest::GetInstance()->Failed()) {
    const auto console = FileSystem::Real().Read(directory_ + "/console.log", 1 << 20);
    if (console.ok()) fprintf(stderr, "---- guest console\n%s\n----\n", console->c_str());
  }
  fs::remove_all(directory_);
}

absl::StatusOr<agent::v1::PmemRegion> GuestVm::AddToArena(const DiskImage& image) {
  ASSIGN_OR_RETURN(const std::string bytes, FileSystem::Real().Read(image.path, kArenaBytes));
  UniqueFd fd(open((directory_ + "/arena").c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open the arena");
  RETURN_IF_ERROR(WriteAt(fd.get(), directory_ + "/arena", arena_used_, bytes.data(), bytes.size()));
  agent::v1::PmemRegion region;
  region.set_pci_path(kPmemPath);
  region.set_offset(arena_used_);
  region.set_size(image.bytes);
  arena_used_ += image.bytes;
  return region;
}

absl::Status GuestVm::Qmp(const std::string& command) {
  const std::string line = command + "\n";
  if (write(qmp_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    return ErrnoStatus(errno, "QMP");
  std::string text;
  const auto deadline = steady_clock::now() + std::chrono::seconds(10);
  while (steady_clock::now() < deadline) {
    pollfd ready{qmp_.get(), POLLIN, 0};
    if (poll(&ready, 1, 1000) <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(qmp_.get(), buffer, sizeof buffer);
    if (n <= 0) return absl::UnavailableError("QMP connection lost");
    text.append(buffer, static_cast<size_t>(n));
    if (text.find("\"return\"") != std::string::npos) return absl::OkStatus();
    if (text.find("\"error\"") != std::string::npos) return absl::InternalError(text);
  }
  return absl::DeadlineExceededError("QMP: " + text);
}

absl::Status GuestVm::PlugDisk(const DiskImage& image, uint32_t lun) {
  RETURN_IF_ERROR(Qmp(fmt::format(
      R"({{"execute":"blockdev-add","arguments":{{"driver":"raw","node-name":"disk{0}","read-only":true,"file":{{"driver":"file","filename":"{1}"}}}}}})",
      lun, image.path)));
  return Qmp(fmt::format(
      R"({{"execute":"device_add","arguments":{{"driver":"scsi-hd","id":"hd{0}","bus":"scsi0.0","channel":0,"scsi-id":0,"lun":{0},"drive":"disk{0}"}}}})",
      lun));
}

absl::Status GuestVm::PlugArena(const DiskImage& image) {
  const std::string path = directory_ + "/arena1";
  fs::copy_file(image.path, path);
  // Memory devices come in steps of 2 MiB.
  if (truncate(path.c_str(), 4 << 20) != 0) return ErrnoStatus(errno, "truncate " + path);
  RETURN_IF_ERROR(Qmp(fmt::format(
      R"({{"execute":"object-add","arguments":{{"qom-type":"memory-backend-file","id":"arena1","mem-path":"{}","size":{},"share":true,"readonly":true}}}})",
      path, 4 << 20)));
  return Qmp(
      R"({"execute":"device_add","arguments":{"driver":"virtio-pmem-pci","id":"pmem1","memdev":"arena1","bus":"port1"}})");
}

absl::Status GuestVm::UnplugDisk(uint32_t lun) {
  RETURN_IF_ERROR(Qmp(fmt::format(R"({{"execute":"device_del","arguments":{{"id":"hd{}"}}}})", lun)));
  // The block node is busy until the guest has let go of the device.
  return Until(steady_clock::now() + std::chrono::seconds(10), 0, "the disk's removal", [&] {
    return Qmp(fmt::format(R"({{"execute":"blockdev-del","arguments":{{"node-name":"disk{}"}}}})", lun)).ok();
  });
}

bool GuestVm::WaitForEnd(std::chrono::seconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  while (steady_clock::now() < deadline) {
    int status;
    if (waitpid(qemu_, &status, WNOHANG) == qemu_) {
      qemu_ = 0;
      return true;
    }
    poll(nullptr, 0, 20);
  }
  return false;
}

}  // namespace lamina::guest
