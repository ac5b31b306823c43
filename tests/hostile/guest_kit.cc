#include "tests/hostile/guest_kit.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/file_system.h"
#include "base/proc.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/e2e/kit/image.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using std::chrono::steady_clock;

// What a shim or laminad may grow by, whatever one guest sends.
constexpr uint64_t kMostGrowth = 24 * kMiB;
// Of one core, over the time of an attack: the shim reads what is sent, on one thread for each port.
constexpr double kMostCores = 1.5;
constexpr seconds kNeighbourLimit{10};

std::string Quoted(const std::string& text) { return '"' + text + '"'; }
std::string GuestDir(const std::string& program) { return TestNode().volumes_dir() + "/guest-" + program; }

// The node's guest image with `program` as its init, and Lamina's agent beside it.
absl::Status MakeGuest(const std::string& program, const std::string& path) {
  const std::string dir = GuestDir(program), from = TestNode().guest_dir();
  if (fs::exists(dir + "/SHA256SUMS")) return absl::OkStatus();  // another suite's
  fs::create_directories(dir);
  fs::create_symlink(from + "/vmlinux", dir + "/vmlinux");
  Layer files;
  files.File("init", ReadText(path), 0755).File("lamina-agent", ReadText(LAMINA_HOSTILE_AGENT), 0755);
  RETURN_IF_ERROR(ExtendInitramfs(from + "/initramfs.img", files, dir + "/initramfs.img"));
  std::ofstream sums(dir + "/SHA256SUMS");
  for (const char* name : {"vmlinux", "initramfs.img"})
    sums << Sha256(ReadText(dir + "/" + name)) << "  " << name << "\n";
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HostCost> CostOf(int64_t pid) {
  ASSIGN_OR_RETURN(const std::string status,
                   FileSystem::Real().Read(fmt::format("/proc/{}/status", pid), 65536));
  ASSIGN_OR_RETURN(const std::string stat, FileSystem::Real().Read(fmt::format("/proc/{}/stat", pid), 65536));
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;  // utime is field 14
  double user = 0, system = 0;
  fields >> user >> system;
  return HostCost{KernelBytes(status, "VmHWM"), (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK))};
}

std::string HostileTest::neighbour_;
std::string HostileTest::neighbour_container_;

void HostileTest::SetUpTestSuite() {
  ASSERT_OK(MakeGuest("attacker", LAMINA_HOSTILE_ATTACKER));
  ASSERT_OK(MakeGuest("liar", LAMINA_HOSTILE_LIAR));
  PodSpec spec;
  spec.name = "neighbour";
  spec.namespace_name = "others";
  ASSERT_OK_AND_ASSIGN(neighbour_, Cri().RunPod(spec));
  ASSERT_OK_AND_ASSIGN(neighbour_container_, Cri().RunContainer(neighbour_, Sleeper()));
}

void HostileTest::TearDownTestSuite() {
  if (!neighbour_.empty()) {
    EXPECT_OK(Cri().RemovePod(neighbour_));
  }
  neighbour_.clear();
}

void HostileTest::SetUp() { ASSERT_FALSE(neighbour_container_.empty()) << "the neighbour did not start"; }

void HostileTest::TearDown() {
  EXPECT_OK(ShellIn(neighbour_container_, "true").status()) << "the neighbour";
  ASSERT_OK_AND_ASSIGN(const auto pods, Cri().ListPods());
  EXPECT_EQ(pods.size(), 1U) << "a pod of the test is left";
}

absl::StatusOr<ScopedPod> HostileTest::RunHostile(const std::string& program, const PodSpec& spec) {
  RETURN_IF_ERROR(TestNode().Reconfigure({{"paths.guest_dir", Quoted(GuestDir(program))}}));
  absl::StatusOr<ScopedPod> pod = ScopedPod::Run(spec);
  RETURN_IF_ERROR(TestNode().Reconfigure({{"paths.guest_dir", Quoted(TestNode().guest_dir())}}));
  return pod;
}

persist::SandboxState HostileTest::State(const std::string& pod) {
  const persist::StateStore store(FileSystem::Real(), TestNode().state_dir());
  auto state = store.Load(pod);
  EXPECT_OK(state.status());
  return state.value_or(persist::SandboxState());
}

absl::Status HostileTest::Begin(const std::string& container, const std::string& attack) {
  return ShellIn(container, "rm -f /dev/shm/result; echo " + attack + " > /dev/shm/attack").status();
}

absl::StatusOr<std::string> HostileTest::Result(const std::string& container, seconds limit) {
  std::string result;
  RETURN_IF_ERROR(Eventually(In(limit), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(result, ShellIn(container, "cat /dev/shm/result"));
    return absl::OkStatus();
  }));
  return Trim(result);
}

void HostileTest::WatchNeighbour(seconds time) {
  const auto end = steady_clock::now() + time;
  do {
    const auto begin = steady_clock::now();
    EXPECT_OK(Cri().ExecSync(neighbour_container_, {"true"}, kNeighbourLimit.count()).status());
    EXPECT_LT(steady_clock::now() - begin, kNeighbourLimit);
  } while (steady_clock::now() < end);
}

void HostileTest::Remember(const std::string& pod) {
  state_ = State(pod);
  since_ = steady_clock::now();
  ASSERT_OK_AND_ASSIGN(shim_, CostOf(state_.shim.pid));
  ASSERT_OK_AND_ASSIGN(laminad_, CostOf(TestNode().laminad_pid()));
}

void HostileTest::ExpectBounded() {
  const double seconds = std::chrono::duration<double>(steady_clock::now() - since_).count();
  struct One {
    const char* name;
    int64_t pid;
    HostCost before;
  };
  for (const One& one :
       {One{"shim", state_.shim.pid, shim_}, One{"laminad", TestNode().laminad_pid(), laminad_}}) {
    const auto now = CostOf(one.pid);
    ASSERT_OK(now.status()) << one.name << " is gone";
    // The kernel's figure is rough, and may be less than before.
    const uint64_t growth = now->peak_bytes - std::min(now->peak_bytes, one.before.peak_bytes);
    const double cores = (now->cpu_seconds - one.before.cpu_seconds) / seconds;
    printf("  %s: %.1f MiB more at its peak, %.2f cores over %.1f s\n", one.name,
           static_cast<double>(growth) / kMiB, cores, seconds);
    EXPECT_LE(growth, kMostGrowth) << one.name;
    EXPECT_LE(cores, kMostCores) << one.name;
  }
}

}  // namespace lamina::e2e
