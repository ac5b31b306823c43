// What a pod's processes hold open stays the same, however often its containers are started anew.
// LAMINA_RESTARTS (10) says how often; ten times as many execs.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr int kVolumes = 30;

int Restarts() {
  const char* text = getenv("LAMINA_RESTARTS");
  return text != nullptr ? std::max(atoi(text), 3) : 10;
}

long Descriptors(pid_t pid) {
  return std::distance(fs::directory_iterator(fmt::format("/proc/{}/fd", pid)), fs::directory_iterator());
}

long Mounts(pid_t pid) {
  std::ifstream table(fmt::format("/proc/{}/mountinfo", pid));
  return std::count(std::istreambuf_iterator<char>(table), std::istreambuf_iterator<char>(), '\n');
}

// Without a PID namespace of its own, and with the right to look, it counts what the agent holds, all the
// time.
class Onlooker {
 public:
  explicit Onlooker(GuestVm& vm) : container_(vm, Options()) {
    EXPECT_OK(container_.created());
    EXPECT_OK(container_.Start());
  }
  long AgentDescriptors() {
    const auto result = container_.Exec(
        {"/bin/sh", "-c", "busybox rm -f /tmp/count; until cat /tmp/count 2>/dev/null; do sleep 0.1; done"});
    EXPECT_OK(result.status);
    const long count = atol(result.out.c_str());
    EXPECT_GT(count, 5) << result.out << result.err;
    return count;
  }
  TestContainer& container() { return container_; }

 private:
  static ContainerOptions Options() {
    ContainerOptions options;
    options.args = {
        "/bin/sh", "-c",
        "while true; do ls /proc/1/fd | wc -l > /tmp/new; busybox mv /tmp/new /tmp/count; sleep 0.3; done"};
    options.change_spec = [](std::string& text) {
      auto spec = nlohmann::json::parse(text);
      spec["linux"]["namespaces"] = {{{"type", "mount"}}, {{"type", "cgroup"}}};
      for (auto& set : spec["process"]["capabilities"]) set.push_back("CAP_SYS_PTRACE");
      text = spec.dump();
    };
    return options;
  }
  TestContainer container_;
};

struct Held {
  long daemon = 0, daemon_mounts = 0, guest_mounts = 0;
};

Held Count(GuestVm& vm) {
  const auto info = vm.Call(kGuestInfo, agent::v1::Empty());
  EXPECT_OK(info);
  return {Descriptors(vm.virtiofsd()), Mounts(vm.virtiofsd()),
          info.ok() ? std::count(info->mounts().begin(), info->mounts().end(), '\n') : -1};
}

// One life of a container with its volumes, on both sides.
void RunOnce(GuestVm& vm, int round) {
  ContainerOptions options;
  options.args = {"/bin/sh", "-c", "cat /v/*/sub/file | wc -l"};
  std::vector<std::string> points;
  for (int i = 0; i < kVolumes; ++i) {
    const std::string volume = fmt::format("{}/volumes/{}", vm.directory(), i);
    fs::create_directories(volume + "/sub");
    std::ofstream(volume + "/sub/file") << "text\n";
    points.push_back(fmt::format("{}/r{}-{}", vm.shared_directory(), round, i));
    fs::create_directory(points.back());
    ASSERT_EQ(mount(volume.c_str(), points.back().c_str(), nullptr, MS_BIND, nullptr), 0);
  }
  options.change_spec = [&](std::string& text) {
    auto spec = nlohmann::json::parse(text);
    for (int i = 0; i < kVolumes; ++i) {
      spec["mounts"].push_back({{"destination", fmt::format("/v/{}", i)},
                                {"type", "bind"},
                                {"source", fmt::format("{}/r{}-{}", kSharedDirectory, round, i)},
                                {"options", {"rbind", "rw"}}});
    }
    text = spec.dump();
  };
  {
    TestContainer container(vm, options);
    ASSERT_OK(container.created());
    ASSERT_OK(container.Start());
    EXPECT_EQ(container.out().ToEnd(), fmt::format("{}\n", kVolumes));
    EXPECT_EQ(container.Wait().exit_status(), 0u);
  }
  for (const std::string& point : points) {
    EXPECT_EQ(umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW), 0);
    fs::remove(point);
  }
}

TEST(Descriptors, StayTheSameOverRestartsWithThirtyVolumes) {
  GuestVm& vm = GuestVm::Shared();
  Onlooker onlooker(vm);
  Held first;
  long agent_first = 0;
  for (int round = 0; round < Restarts(); ++round) {
    RunOnce(vm, round);
    ASSERT_FALSE(HasFatalFailure());
    if (round == 1) {
      first = Count(vm);
      agent_first = onlooker.AgentDescriptors();
    }
  }
  // The guest looks for names that are gone after a second or two.
  Held last = Count(vm);
  for (const auto deadline = steady_clock::now() + seconds(20);
       last.daemon > first.daemon && steady_clock::now() < deadline;) {
    poll(nullptr, 0, 100);
    last = Count(vm);
  }
  const long agent_last = onlooker.AgentDescriptors();
  printf(
      "after 2 and after %d restarts: virtiofsd's descriptors %ld, %ld, its mounts %ld, %ld; the agent's "
      "%ld, %ld, "
      "the guest's mounts %ld, %ld\n",
      Restarts(), first.daemon, last.daemon, first.daemon_mounts, last.daemon_mounts, agent_first, agent_last,
      first.guest_mounts, last.guest_mounts);
  EXPECT_LE(last.daemon, first.daemon);
  EXPECT_LE(last.daemon_mounts, first.daemon_mounts);
  EXPECT_LE(last.guest_mounts, first.guest_mounts);
  EXPECT_LE(agent_last, agent_first);
}

TEST(Descriptors, StayTheSameOverExecs) {
  GuestVm& vm = GuestVm::Shared();
  Onlooker onlooker(vm);
  const auto exec = [&] {
    const auto result = onlooker.container().Exec({"/bin/cat"}, "some input");
    EXPECT_OK(result.status);
    EXPECT_EQ(result.out, "some input");
  };
  for (int i = 0; i < 10; ++i) exec();
  const Held first = Count(vm);
  const long agent_first = onlooker.AgentDescriptors(), ours_first = Descriptors(getpid());
  for (int i = 0; i < 10 * Restarts(); ++i) exec();
  const Held last = Count(vm);
  const long agent_last = onlooker.AgentDescriptors(), ours_last = Descriptors(getpid());
  printf("over %d execs: virtiofsd's descriptors %ld, %ld, the agent's %ld, %ld, the host's end %ld, %ld\n",
         10 * Restarts(), first.daemon, last.daemon, agent_first, agent_last, ours_first, ours_last);
  EXPECT_LE(last.daemon, first.daemon);
  EXPECT_LE(last.guest_mounts, first.guest_mounts);
  EXPECT_LE(agent_last, agent_first);
  EXPECT_LE(ours_last, ours_first);
}

}  // namespace
}  // namespace lamina::guest
