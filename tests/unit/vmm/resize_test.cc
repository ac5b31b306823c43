#include "vmm/resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using nlohmann::json;
using std::chrono::seconds;
using std::chrono::steady_clock;

TEST(VcpuSlots, AreReadLowestFirst) {
  const auto slots = ParseVcpuSlots(
      R"([{"props": {"core-id": 1, "thread-id": 0, "socket-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu"},
          {"props": {"core-id": 0, "thread-id": 0, "socket-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu",
           "qom-path": "/machine/unattached/device[0]"}])");
  ASSERT_OK(slots);
  ASSERT_EQ(slots->size(), 2u);
  EXPECT_TRUE((*slots)[0].plugged);
  EXPECT_FALSE((*slots)[1].plugged);
  EXPECT_EQ((*slots)[1].properties, R"({"core-id":1,"driver":"max-x86_64-cpu","socket-id":0,"thread-id":0})");
  for (const char* bad :
       {"", "{}", "[1]", "[{}]", R"([{"type": "x", "props": 1}])", R"([{"type": 1, "props": {}}])"})
    EXPECT_THAT(ParseVcpuSlots(bad), HasStatus(absl::StatusCode::kInternal, "query-hotpluggable-cpus"))
        << bad;
}

// Every step can be carried by the page structs (64 B for each 4 KiB) that fit what is there, and the end is
// reached.
TEST(MemorySteps, NeverNeedMorePageStructsThanThereIsMemory) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 5000; ++round) {
    const uint64_t boot = (48 + random() % 512) * kMiB, wanted = (random() % 1'000'000) * kHotplugStep;
    uint64_t plugged = 0;
    int steps = 0;
    while (plugged < wanted) {
      const uint64_t next = NextMemoryStep(boot, plugged, wanted);
      ASSERT_GT(next, plugged);
      ASSERT_LE(next, wanted);
      ASSERT_EQ(next % kHotplugStep, 0u);
      ASSERT_LE((next - plugged) / 64, (boot + plugged) * 3 / 4);
      plugged = next;
      ASSERT_LT(++steps, 8);
    }
  }
  EXPECT_EQ(NextMemoryStep(96 * kMiB, 0, kGiB), kGiB);
  EXPECT_EQ(NextMemoryStep(96 * kMiB, 0, 64 * kGiB), 48 * 96 * kMiB);
  EXPECT_EQ(NextMemoryStep(96 * kMiB, 512 * kMiB, 256 * kMiB), 256 * kMiB)
      << "what is asked back is one step";
}

// QEMU's side of the commands that Resizer uses. `takes`: how much the guest plugs between two looks.
class FakeQemu {
 public:
  explicit FakeQemu(uint64_t takes) : takes_(takes) {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    fd_ = UniqueFd(fds[1]);
    thread_ = std::thread([this] { Serve(); });
    auto client = QmpClient::FromFd(UniqueFd(fds[0]), steady_clock::now() + seconds(10));
    EXPECT_OK(client);
    client_ = std::move(*client);
  }
  ~FakeQemu() {
    client_.reset();
    thread_.join();
  }
  QmpClient& client() { return *client_; }
  const std::vector<uint64_t>& requests() const { return requests_; }
  const std::vector<json>& devices() const { return devices_; }

 private:
  void Say(const json& message) {
    const std::string line = message.dump() + "\r\n";
    EXPECT_EQ(write(fd_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
  }
  json Answer(const std::string& command, const json& arguments) {
    if (command == "qom-set") {
      requested_ = arguments["value"];
      requests_.push_back(requested_);
    } else if (command == "qom-get" && arguments["property"] == "size") {
      if (size_ < requested_) size_ += std::min(takes_, requested_ - size_);
      return size_;
    } else if (command == "qom-get") {
      return requested_;
    } else if (command == "device_add") {
      devices_.push_back(arguments);
    } else if (command == "query-hotpluggable-cpus") {
      json slots = json::array();
      for (int core = 3; core >= 0; --core) {
        json slot = {{"type", "cpu"}, {"vcpus-count", 1}, {"props", {{"core-id", core}}}};
        const bool added = std::any_of(devices_.begin(), devices_.end(),
                                       [&](const json& device) { return device["core-id"] == core; });
        if (core == 0 || added) slot["qom-path"] = "/x";
        slots.push_back(slot);
      }
      return slots;
    }
    return json::object();
  }
  void Serve() {
    Say({{"QMP", {{"version", json::object()}}}});
    std::string buffer;
    char bytes[4096];
    for (ssize_t n; (n = read(fd_.get(), bytes, sizeof bytes)) > 0;) {
      buffer.append(bytes, static_cast<size_t>(n));
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
        const json command = json::parse(buffer.substr(0, end));
        Say({{"return", Answer(command["execute"], command.value("arguments", json::object()))},
             {"id", command.value("id", json())}});
      }
    }
  }

  const uint64_t takes_;
  uint64_t requested_ = 0, size_ = 0;
  std::vector<uint64_t> requests_;
  std::vector<json> devices_;
  UniqueFd fd_;
  std::thread thread_;
  std::unique_ptr<QmpClient> client_;
};

TEST(ResizerTest, PlugsWhatIsMissingAndNoMore) {
  FakeQemu qemu(0);
  QmpResizer resizer(qemu.client(), 96 * kMiB);
  EXPECT_EQ(resizer.PlugVcpus(1).value_or(0), 1u);
  EXPECT_EQ(resizer.PlugVcpus(3).value_or(0), 3u);
  EXPECT_EQ(resizer.PlugVcpus(3).value_or(0), 3u) << "repeated";
  EXPECT_EQ(resizer.PlugVcpus(2).value_or(0), 3u) << "never fewer";
  ASSERT_EQ(qemu.devices().size(), 2u);
  EXPECT_EQ(qemu.devices()[0], (json{{"core-id", 1}, {"driver", "cpu"}, {"id", "vcpu-1"}}));
  EXPECT_EQ(qemu.devices()[1]["id"], "vcpu-2");
  EXPECT_THAT(resizer.PlugVcpus(5), HasStatus(absl::StatusCode::kOutOfRange, "5 vCPUs"));
}

TEST(ResizerTest, GrowsInStepsThatTheGuestCanCarry) {
  FakeQemu qemu(kTiB);
  QmpResizer resizer(qemu.client(), 96 * kMiB);
  ASSERT_OK(resizer.GrowMemory(16 * kGiB, seconds(60)));
  EXPECT_THAT(qemu.requests(), ::testing::ElementsAre(48 * 96 * kMiB, 16 * kGiB));
  const auto memory = resizer.Memory();
  ASSERT_OK(memory);
  EXPECT_EQ(memory->plugged, 16 * kGiB);
  EXPECT_EQ(memory->counted(), 16 * kGiB);
  ASSERT_OK(resizer.GrowMemory(16 * kGiB, seconds(60)));
  EXPECT_EQ(qemu.requests().size(), 2u) << "repeated: nothing is asked again";
}

TEST(ResizerTest, AGuestThatTakesNothingIsNotWaitedForLonger) {
  FakeQemu qemu(0);
  QmpResizer resizer(qemu.client(), 96 * kMiB);
  EXPECT_THAT(resizer.GrowMemory(128 * kMiB, std::chrono::milliseconds(50)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "hold 128MiB of virtio-mem and has taken 0"));
  ASSERT_OK(resizer.RequestMemory(0));
  EXPECT_EQ(resizer.Memory()->requested, 0u);
}

}  // namespace
}  // namespace lamina::vmm
