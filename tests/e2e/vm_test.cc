// What only a VM shows: its size, its claim, where its layers are, its state on disk, its metrics.
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "base/process.h"
#include "base/subprocess.h"
#include "persist/state_store.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

json Get(const std::string& path) {
  auto body = TestNode().Rest(path);
  EXPECT_OK(body.status());
  return json::parse(body.value_or("null"), nullptr, false);
}

// The element of the list whose id is this.
json Find(const std::string& path, const char* list, const std::string& id) {
  for (const json& item : Get(path).value(list, json::array())) {
    if (item.value("id", "") == id) return item;
  }
  return nullptr;
}

double ArenaBytes(const std::string& kind) {
  double sum = 0;
  for (const json& arena : Get("/v1/arenas").value("arenas", json::array()))
    sum += arena.value(kind + "_bytes", 0.0);
  return sum;
}

class VmTest : public ::testing::Test {
 protected:
  void SetUp() override { LAMINA_ONLY(); }
};

TEST_F(VmTest, TheSizeIsTheSumRoundedUpOnce) {
  PodSpec spec;
  spec.name = "sized";
  spec.resources.cpu_quota = 25'000;  // 250m beside half a vCPU: 0.75, so 1 and not 2
  spec.resources.memory = 160 * kMiB;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.resources = spec.resources;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  EXPECT_EQ(Trim(ShellIn(id, "nproc").value_or("?")), "1");
  const uint64_t total =
      1024 * std::stoull(ShellIn(id, "awk '/MemTotal/{print $2}' /proc/meminfo").value_or("0"));
  EXPECT_LE(total, 256 * kMiB);  // 160 + 96, less what the kernel itself takes
  EXPECT_GE(total, 180 * kMiB);

  const json sandbox = Find("/v1/sandboxes", "sandboxes", pod.id());
  ASSERT_TRUE(sandbox.is_object());
  EXPECT_EQ(sandbox["vcpus"], 1);
  EXPECT_EQ(sandbox["vcpus_exact"], "0.75");
  EXPECT_EQ(sandbox["vcpus_if_rounded_per_container"], 2);
  EXPECT_EQ(sandbox["memory_bytes"], 256 * kMiB);
  EXPECT_EQ(sandbox["pod"], "sized");
  EXPECT_EQ(sandbox["namespace"], "e2e");
  EXPECT_FALSE(sandbox["reasons"].empty());
  const json claim = Find("/v1/claims", "claims", pod.id());
  ASSERT_TRUE(claim.is_object());
  EXPECT_EQ(claim["target_bytes"], (256 + 96) * kMiB);
  EXPECT_EQ(claim["bound"], true);
}

TEST_F(VmTest, SeveralCpusAreThere) {
  PodSpec spec;
  spec.name = "wide";
  spec.resources.cpu_quota = 150'000;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.resources = spec.resources;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  EXPECT_EQ(Trim(ShellIn(id, "nproc").value_or("?")), "2");
  EXPECT_EQ(Find("/v1/sandboxes", "sandboxes", pod.id())["memory_bytes"], 288 * kMiB)
      << "no memory limit: the default beside the overhead, never the overhead alone";
}

TEST_F(VmTest, AClaimThatDoesNotFitIsRefusedBeforeQemuStarts) {
  const json before = Get("/v1/claims");
  PodSpec spec;
  spec.name = "giant";
  spec.resources.memory = 5000 * kMiB;
  const auto begin = std::chrono::steady_clock::now();
  const auto pod = Cri().RunPod(spec);
  ASSERT_NOT_OK(pod);
  EXPECT_THAT(Message(pod.status()), HasSubstr("MiB")) << "the numbers";
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(5));
  EXPECT_EQ(Get("/v1/claims")["claimed_bytes"], before["claimed_bytes"]);
  for (const Process& process : FindProcesses(TestNode().dir(), {}))
    EXPECT_EQ(process.command.find("qemu-system"), std::string::npos) << process.command;
  ASSERT_OK_AND_ASSIGN(const std::string metrics, TestNode().Rest("/metrics"));
  EXPECT_GE(Metric(metrics, "lamina_claims_refused_total{reason=\"no_memory\"}"), 1);
}

TEST_F(VmTest, LayersAreStoredOncePerNamespace) {
  PodSpec spec;
  spec.namespace_name = "sharing";
  spec.name = "first";
  ASSERT_OK_AND_ASSIGN(const ScopedPod first, ScopedPod::Run(spec));
  ASSERT_OK(Cri().RunContainer(first.id(), Sleeper()));
  const double held = ArenaBytes("held");
  EXPECT_GT(held, 3.0 * kMiB);
  spec.name = "second";
  ASSERT_OK_AND_ASSIGN(const ScopedPod second, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(second.id(), Sleeper()));
  EXPECT_EQ(ArenaBytes("held"), held) << "a second pod of the namespace costs nothing";
  // The layers come straight from the host's page cache.
  ASSERT_OK_AND_ASSIGN(const std::string root, ShellIn(id, "grep ' / ' /proc/mounts"));
  EXPECT_THAT(root, HasSubstr("overlay"));
  spec.namespace_name = "not-sharing";
  ASSERT_OK_AND_ASSIGN(const ScopedPod third, ScopedPod::Run(spec));
  ASSERT_OK(Cri().RunContainer(third.id(), Sleeper()));
  EXPECT_GT(ArenaBytes("held"), held) << "another namespace sees none of it";
}

TEST_F(VmTest, TheStateOnDiskFollowsEachStep) {
  PodSpec spec;
  spec.name = "stateful";
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, ScopedPod::Run(spec));
  const persist::StateStore store(FileSystem::Real(), TestNode().state_dir());
  const std::string path = store.Path(pod.id());
  const auto mode = [](const std::string& file) {
    struct stat st {};
    return stat(file.c_str(), &st) == 0 ? static_cast<int>(st.st_mode & 07777) : -1;
  };
  EXPECT_EQ(mode(path), 0600);
  EXPECT_EQ(mode(path.substr(0, path.rfind('/'))), 0700);
  ASSERT_OK_AND_ASSIGN(persist::SandboxState state, store.Load(pod.id()));
  EXPECT_EQ(state.life_cycle, persist::LifeCycle::kReady);
  EXPECT_EQ(state.pod_name, "stateful");
  EXPECT_TRUE(ProcessAlive(static_cast<pid_t>(state.vmm.pid), state.vmm.start_time));
  EXPECT_TRUE(state.containers.empty());

  ASSERT_OK_AND_ASSIGN(const std::string id,
                       Cri().CreateContainer(pod.id(), ShellContainer("main", "exit 3")));
  ASSERT_OK(Cri().StartContainer(id));
  ASSERT_OK_AND_ASSIGN(state, store.Load(pod.id()));
  ASSERT_EQ(state.containers.count(id), 1U);
  EXPECT_EQ(state.containers[id].layer_ids.size(), 3U);
  EXPECT_GE(state.layers.size(), 3U);
  ASSERT_OK(Cri().WaitForExit(id, In(seconds(20))));
  ASSERT_OK(Cri().RemoveContainer(id));
  ASSERT_OK_AND_ASSIGN(state, store.Load(pod.id()));
  EXPECT_EQ(state.containers.count(id), 0U) << "removed containers leave the file";
  EXPECT_EQ(mode(path), 0600);
  ASSERT_OK(pod.Remove());
  EXPECT_EQ(mode(path), -1);
}

TEST_F(VmTest, MetricsAgreeWithWhatRuns) {
  PodSpec spec;
  spec.name = "metered";
  spec.resources.cpu_quota = 50'000;
  spec.resources.memory = 128 * kMiB;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.resources = spec.resources;
  ASSERT_OK(Cri().RunContainer(pod.id(), container));
  ASSERT_OK_AND_ASSIGN(const std::string text, TestNode().Rest("/metrics"));
  const json claims = Get("/v1/claims");
  EXPECT_EQ(Metric(text, "lamina_sandboxes"), static_cast<double>(Get("/v1/sandboxes")["sandboxes"].size()));
  EXPECT_EQ(Metric(text, "lamina_memory_capacity_bytes"), claims["capacity_bytes"].get<double>());
  EXPECT_GE(Metric(text, "lamina_memory_claimed_bytes"), 320.0 * kMiB);
  const auto of = [&](const std::string& family, const std::string& kind) {
    return Metric(text, fmt::format("{}{{pod=\"metered\",namespace=\"e2e\",sandbox=\"{}\",kind=\"{}\"}}",
                                    family, pod.id(), kind));
  };
  EXPECT_EQ(of("lamina_sandbox_memory_bytes", "configured"), 224.0 * kMiB);
  EXPECT_EQ(of("lamina_sandbox_memory_bytes", "limit"), 128.0 * kMiB);
  EXPECT_EQ(of("lamina_sandbox_memory_bytes", "overhead"), 96.0 * kMiB);
  EXPECT_EQ(of("lamina_sandbox_vcpus", "configured"), 1);
  EXPECT_EQ(of("lamina_sandbox_vcpus", "limit"), 0.5);
  EXPECT_EQ(of("lamina_sandbox_vcpus", "overhead"), 0.5);
  EXPECT_GE(Metric(text, "lamina_layers_placed_total{kind=\"vpmem\"}"), 3);
  EXPECT_GE(Metric(text, "lamina_sandbox_boot_seconds_count{phase=\"total\"}"), 1);
  const double boots = Metric(text, "lamina_sandbox_boot_seconds_count{phase=\"total\"}");
  const double mean = Metric(text, "lamina_sandbox_boot_seconds_sum{phase=\"total\"}") / boots;
  EXPECT_GT(mean, 0.05);
  EXPECT_LT(mean, 60);
  double size = 0;
  const json arenas = Get("/v1/arenas");
  for (const json& arena : arenas["arenas"]) {
    size += Metric(text, fmt::format("lamina_arena_bytes{{arena=\"{}\",kind=\"size\"}}",
                                     arena["id"].get<std::string>()));
    EXPECT_LE(arena["payload_bytes"].get<double>(), arena["held_bytes"].get<double>());
  }
  EXPECT_GE(size, 256.0 * kMiB);
  // A pod that is gone leaves no series.
  EXPECT_OK(Cri().RemovePod(pod.id()));
  ASSERT_OK_AND_ASSIGN(const std::string after, TestNode().Rest("/metrics"));
  EXPECT_EQ(after.find(pod.id()), std::string::npos);
}

}  // namespace
}  // namespace lamina::e2e
