// Guests that attack their host, one way each. After each: the neighbour was not disturbed, shim and laminad
// took bounded memory and CPU, the pod ends in time and with a reason, nothing is left (the node looks for it
// at its end). docs/security.md names them.
#include <algorithm>

#include "base/units.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/hostile/guest_kit.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr seconds kAttack{6};
constexpr seconds kEnd{60};
constexpr seconds kCall{100};  // the agent's thirty seconds, and as long again to undo what may have begun

// By containerd or a shim.
bool Logged(const std::string& text) {
  return ReadText(TestNode().dir() + "/containerd.log").find(text) != std::string::npos;
}

// On the agent's ports.
struct PortAttack {
  const char* name;
  bool ends_pod;  // the host gives the guest up by itself
};
void PrintTo(const PortAttack& attack, std::ostream* out) { *out << attack.name; }

class PortTest : public HostileTest, public ::testing::WithParamInterface<PortAttack> {};

TEST_P(PortTest, HurtsNobodyElse) {
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, RunHostile("attacker"));
  ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
  Remember(pod.id());
  // The answer to this very exec may be the attack's first victim.
  Begin(container, GetParam().name).IgnoreError();
  WatchNeighbour(kAttack);
  // Calls to the guest end, with whatever it says.
  const auto begin = steady_clock::now();
  const auto exec = Cri().ExecSync(container, {"true"}, 5);
  EXPECT_LT(steady_clock::now() - begin, kCall);
  if (exec.ok()) {
    EXPECT_NE(exec->exit_code, 0);
  }
  EXPECT_OK(Cri().PodStatus(pod.id()).status());
  ExpectBounded();
  if (GetParam().ends_pod) {
    EXPECT_OK(Eventually(In(kEnd), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const PodInfo info, Cri().PodStatus(pod.id()));
      return info.ready ? absl::UnavailableError("the pod is still ready") : absl::OkStatus();
    }));
    EXPECT_TRUE(Logged(fmt::format("sandbox {}: its VM is gone", pod.id())));
  }
  const auto end = steady_clock::now();
  EXPECT_OK(pod.Remove());
  EXPECT_LT(steady_clock::now() - end, kEnd);
}

INSTANTIATE_TEST_SUITE_P(Attacks, PortTest,
                         ::testing::Values(PortAttack{"silence", false}, PortAttack{"rpc-noise", true},
                                           PortAttack{"rpc-answers", false}, PortAttack{"rpc-calls", false},
                                           PortAttack{"rpc-half", false}, PortAttack{"stdio-noise", false},
                                           PortAttack{"stdio-bytes", false},
                                           PortAttack{"stdio-windows", false},
                                           PortAttack{"stdio-credit", false}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class DeviceTest : public HostileTest {};

TEST_F(DeviceTest, APanicEndsThePodWithItsReason) {
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, RunHostile("attacker"));
  ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
  Begin(container, "panic").IgnoreError();
  EXPECT_OK(Eventually(In(kEnd), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const ContainerInfo info, Cri().Status(container));
    return info.state == ContainerState::kExited ? absl::OkStatus() : absl::UnavailableError("it still runs");
  }));
  EXPECT_TRUE(Logged(fmt::format("sandbox {}: its VM is gone", pod.id())));
  EXPECT_OK(pod.Remove());
}

// What others read cannot be written, whatever the guest's kernel lets its root try.
TEST_F(DeviceTest, NothingThatOthersReadIsWritten) {
  PodSpec spec;
  spec.namespace_name = "shared";
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, RunHostile("attacker", spec));
  ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
  Begin(container, "write-devices").IgnoreError();
  // It has tried, unless its VM did not survive that.
  const auto result = Result(container, seconds(30));
  printf("  %s\n", result.ok() ? result->c_str() : Message(result.status()).c_str());
  if (result.ok()) {
    EXPECT_THAT(*result, AllOf(HasSubstr("written 1"), Not(HasSubstr("opened 1"))))
        << "the disk of its container's own root, and no other";
  } else {
    EXPECT_TRUE(Logged(fmt::format("sandbox {}: its VM is gone", pod.id())));
  }
  EXPECT_OK(pod.Remove());
  // Another pod of its domain reads the same regions, and they are whole.
  spec.name = "reader";
  ASSERT_OK_AND_ASSIGN(ScopedPod reader, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string again, Cri().RunContainer(reader.id(), Sleeper()));
  ASSERT_OK_AND_ASSIGN(const std::string sum, ShellIn(again, "cat /bin/busybox /probe | sha256sum"));
  ASSERT_OK_AND_ASSIGN(const std::string own,
                       ShellIn(neighbour_container_, "cat /bin/busybox /probe | sha256sum"));
  EXPECT_EQ(sum, own);
  // No layer of it was found damaged.
  ASSERT_OK_AND_ASSIGN(const std::string metrics, TestNode().Rest("/metrics"));
  EXPECT_EQ(Metric(metrics, "lamina_layers_rebuilt_total"), 0);
}

// All that it can read of disks and arenas is its own domain's.
TEST_F(DeviceTest, AnotherTenantsLayersAreNotThere) {
  Image secret = Images().Busybox();
  secret.name = "localhost/lamina/secret:1";
  Layer layer;
  layer.File("secret", "neighbours" + std::string("-secret\n") + std::string(8192, 's'));
  secret.layers.push_back(layer);
  ASSERT_OK(TestNode().Import(secret));
  ContainerSpec owner = Sleeper("owner");
  owner.image = secret.name;
  ASSERT_OK_AND_ASSIGN(const std::string owners, Cri().RunContainer(neighbour_, owner));
  // It reads all that it has, the holes of its own disk too.
  ASSERT_OK(TestNode().Reconfigure({{"volumes.root_size", "\"64MiB\""}}));
  for (const bool same : {false, true}) {
    PodSpec spec;
    spec.namespace_name = same ? "others" : "spies";
    ASSERT_OK_AND_ASSIGN(ScopedPod pod, RunHostile("attacker", spec));
    ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
    ASSERT_OK(Begin(container, "read-devices"));
    ASSERT_OK_AND_ASSIGN(const std::string result, Result(container, seconds(120)));
    printf("  %s: %s\n", spec.namespace_name.c_str(), result.c_str());
    // In one domain arenas are shared, and it is found: the search works.
    EXPECT_EQ(result.find("found 0") == std::string::npos, same);
  }
  ASSERT_OK(TestNode().Reconfigure({{"volumes.root_size", "\"20GiB\""}}));
  EXPECT_OK(Cri().StopContainer(owners, 0));
  EXPECT_OK(Cri().RemoveContainer(owners));
}

TEST_F(DeviceTest, NoiseInRegistersHurtsNobodyElse) {
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, RunHostile("attacker"));
  ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
  Remember(pod.id());
  Begin(container, "poke-devices").IgnoreError();
  WatchNeighbour(kAttack);
  ExpectBounded();
  // A guest that still answers says that it has done it.
  if (Cri().ExecSync(container, {"true"}, 5).ok()) {
    EXPECT_OK(Result(container, seconds(30)).status());
  }
  EXPECT_OK(pod.Remove());
}

// A guest that uses memory which it was not given meets the limit of its cgroup, and the node does not.
TEST_F(DeviceTest, MemoryThatWasNotGivenEndsThePodNotTheNode) {
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.kernel_args", "\"iomem=relaxed\""}}));
  auto run = RunHostile("attacker");
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.kernel_args", "\"\""}}));
  ASSERT_OK(run.status());
  ScopedPod pod = std::move(*run);
  ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pod.id(), Sleeper()));
  ASSERT_OK(Begin(container, "touch-unplugged"));
  WatchNeighbour(kAttack);
  EXPECT_OK(Eventually(In(kEnd), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const PodInfo info, Cri().PodStatus(pod.id()));
    return info.ready ? absl::UnavailableError("the pod is still ready") : absl::OkStatus();
  }));
  EXPECT_TRUE(Logged(fmt::format("sandbox {}: its VM is gone: the pod's processes used up the", pod.id())));
  EXPECT_OK(pod.Remove());
}

// An agent whose every answer is a lie.
class LiarTest : public HostileTest {};

TEST_F(LiarTest, ATimeThatCannotBeIsNoTime) {
  const auto run = RunHostile("liar");
  ASSERT_NOT_OK(run);
  EXPECT_THAT(Message(run.status()), HasSubstr("the guest's clock says -9223372036854775808 ns"));
}

TEST_F(LiarTest, NoAnswerIsBelievedThatCannotBe) {
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.kernel_args", "\"truth=clock\""}}));
  auto run = RunHostile("liar");
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.kernel_args", "\"\""}}));
  ASSERT_OK(run.status());
  ScopedPod pod = std::move(*run);
  Remember(pod.id());
  const auto say = [](const char* call, const absl::Status& status) {
    const std::string text = Message(status);
    printf("  %s: %s\n", call, status.ok() ? "OK" : text.substr(0, 200).c_str());
    // One line of printable text, whatever the guest wrote.
    EXPECT_EQ(text.find('\x1b'), std::string::npos) << call;
    EXPECT_LT(text.size(), 8192U) << call;
  };
  const auto container = Cri().RunContainer(pod.id(), Sleeper());
  say("a container", container.status());
  if (container.ok()) {
    const auto exec = Cri().ExecSync(*container, {"true"}, 10);
    say("an exec", exec.status());
    if (exec.ok()) {
      EXPECT_LE(exec->exit_code, 255);
    }
    say("its usage", Cri().Usage(*container).status());
    Resources more;
    more.memory = 64 << 20;
    say("another size", Cri().UpdateResources(*container, more));
    say("its end", Cri().StopContainer(*container, 0));
  }
  say("the pod's usage", Cri().PodUsage(pod.id()).status());
  WatchNeighbour(seconds(1));
  ExpectBounded();
  EXPECT_OK(pod.Remove());
  // What it said is in the log on one line, and harms no terminal.
  EXPECT_FALSE(Logged("\x1b[2J"));
}

}  // namespace
}  // namespace lamina::e2e
