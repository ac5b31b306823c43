#include "cri/events.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>

#include "base/ttrpc/server.h"
#include "proto/containerd/task.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::ElementsAre;

// containerd's end: keeps what it is told, and refuses as often as it is asked to.
class FakeContainerd {
 public:
  explicit FakeContainerd(std::string path) : path_(std::move(path)) { Start(); }

  void Start() {
    server_ = std::make_unique<ttrpc::Server>();
    server_->Handle<containerd::ForwardRequest, containerd::Nothing>(
        "containerd.services.events.ttrpc.v1.Events", "Forward",
        [this](const ttrpc::CallContext& context,
               const containerd::ForwardRequest& request) -> absl::StatusOr<containerd::Nothing> {
          MutexLock lock(mutex_);
          ++calls_;
          changed_.NotifyAll();
          if (refusals_ > 0) {
            --refusals_;
            return absl::InternalError("not now");
          }
          const containerd::Envelope& envelope = request.envelope();
          containerd::TaskExit exit;
          exit.ParseFromString(envelope.event().value());
          got_.push_back(envelope.topic() + " " + exit.container_id() + " " +
                         std::to_string(exit.exit_status()));
          last_ = envelope;
          ns_ = context.ns;
          return containerd::Nothing();
        });
    EXPECT_OK(server_->Listen(path_));
  }
  void Stop() {
    server_->Stop();
    server_.reset();
    unlink(path_.c_str());
  }
  void Refuse(int times) {
    MutexLock lock(mutex_);
    refusals_ = times;
  }
  // What has come, once it is that much.
  std::vector<std::string> Await(size_t count) {
    const auto deadline = steady_clock::now() + seconds(60);
    MutexLock lock(mutex_);
    while (got_.size() < count && changed_.WaitUntil(mutex_, deadline)) {
    }
    return got_;
  }
  void AwaitCalls(int count) {
    const auto deadline = steady_clock::now() + seconds(60);
    MutexLock lock(mutex_);
    while (calls_ < count && changed_.WaitUntil(mutex_, deadline)) {
    }
  }
  containerd::Envelope last() {
    MutexLock lock(mutex_);
    return last_;
  }
  std::string ns() {
    MutexLock lock(mutex_);
    return ns_;
  }

 private:
  const std::string path_;
  Mutex mutex_;
  CondVar changed_;
  int calls_ GUARDED_BY(mutex_) = 0, refusals_ GUARDED_BY(mutex_) = 0;
  std::vector<std::string> got_ GUARDED_BY(mutex_);
  containerd::Envelope last_ GUARDED_BY(mutex_);
  std::string ns_ GUARDED_BY(mutex_);
  std::unique_ptr<ttrpc::Server> server_;
};

class EventsTest : public ::testing::Test {
 protected:
  static void Publish(EventPublisher& publisher, const std::string& topic, uint32_t status) {
    containerd::TaskExit exit;
    exit.set_container_id("c");
    exit.set_exit_status(status);
    publisher.Publish(topic, "containerd.events.TaskExit", exit);
  }
  testing::TempDir dir_;
  std::string path_ = dir_ / "c.sock";
};

TEST_F(EventsTest, ArriveWithTopicTypeTimeAndNamespace) {
  FakeContainerd containerd(path_);
  EventPublisher publisher(path_, "k8s.io");
  const int64_t before = time(nullptr);
  Publish(publisher, "/tasks/exit", 7);
  EXPECT_THAT(containerd.Await(1), ElementsAre("/tasks/exit c 7"));
  EXPECT_EQ(containerd.ns(), "k8s.io");
  EXPECT_EQ(containerd.last().namespace_(), "k8s.io");
  EXPECT_EQ(containerd.last().event().type_url(), "containerd.events.TaskExit");
  EXPECT_GE(containerd.last().timestamp().seconds(), before);
}

TEST_F(EventsTest, KeepTheirOrder) {
  FakeContainerd containerd(path_);
  EventPublisher publisher(path_, "k8s.io");
  std::vector<std::string> expected;
  for (uint32_t i = 0; i < 200; ++i) {
    // An OOM is told before the exit it caused.
    const std::string topic = i % 2 == 0 ? "/tasks/oom" : "/tasks/exit";
    Publish(publisher, topic, i);
    expected.push_back(fmt::format("{} c {}", topic, i));
  }
  publisher.Flush(seconds(60));
  EXPECT_EQ(containerd.Await(200), expected);
}

TEST_F(EventsTest, FlushReturnsWhenAllHasBeenTaken) {
  FakeContainerd containerd(path_);
  EventPublisher publisher(path_, "k8s.io");
  Publish(publisher, "/tasks/oom", 1);
  publisher.Flush(seconds(60));
  EXPECT_EQ(containerd.Await(0).size(), 1U) << "it is there without further waiting";
}

TEST_F(EventsTest, WaitForAContainerdThatIsAway) {
  EventPublisher publisher(path_, "k8s.io");
  for (uint32_t i = 0; i < 3; ++i) Publish(publisher, "/tasks/exit", i);
  publisher.Flush(std::chrono::milliseconds(10));  // gives up, loses nothing
  FakeContainerd containerd(path_);
  EXPECT_THAT(containerd.Await(3), ElementsAre("/tasks/exit c 0", "/tasks/exit c 1", "/tasks/exit c 2"));
  // It restarts between two events: a new connection is made.
  containerd.Stop();
  Publish(publisher, "/tasks/exit", 3);
  Publish(publisher, "/tasks/exit", 4);
  containerd.Start();
  publisher.Flush(seconds(60));
  // What was under way when it stopped may arrive twice.
  EXPECT_THAT(containerd.Await(5), ::testing::Contains("/tasks/exit c 3"));
  EXPECT_EQ(containerd.Await(5).back(), "/tasks/exit c 4");
}

TEST_F(EventsTest, ARefusedOneIsTriedAgainInItsPlace) {
  FakeContainerd containerd(path_);
  containerd.Refuse(2);
  EventPublisher publisher(path_, "k8s.io");
  Publish(publisher, "/tasks/exit", 1);
  Publish(publisher, "/tasks/exit", 2);
  EXPECT_THAT(containerd.Await(2), ElementsAre("/tasks/exit c 1", "/tasks/exit c 2"));
}

TEST_F(EventsTest, OneThatIsAlwaysRefusedHoldsUpNoOther) {
  FakeContainerd containerd(path_);
  containerd.Refuse(5);
  EventPublisher publisher(path_, "k8s.io");
  Publish(publisher, "/tasks/exit", 1);
  Publish(publisher, "/tasks/exit", 2);
  EXPECT_THAT(containerd.Await(1), ElementsAre("/tasks/exit c 2"));
}

TEST_F(EventsTest, OnlyTheNewestWaitWhileContainerdIsAway) {
  EventPublisher publisher(path_, "k8s.io");
  for (uint32_t i = 0; i < 1200; ++i) Publish(publisher, "/tasks/exit", i);
  FakeContainerd containerd(path_);
  publisher.Flush(seconds(60));
  const std::vector<std::string> got = containerd.Await(1024);
  EXPECT_GE(got.size(), 1024U);
  EXPECT_LE(got.size(), 1025U) << "one may have been under way";
  EXPECT_EQ(got.back(), "/tasks/exit c 1199");
}

TEST_F(EventsTest, WithoutAnAddressNothingIsKept) {
  EventPublisher publisher("", "k8s.io");
  Publish(publisher, "/tasks/exit", 1);
  const auto begin = steady_clock::now();
  publisher.Flush(seconds(3600));
  EXPECT_LT(steady_clock::now() - begin, seconds(600));
}

}  // namespace
}  // namespace lamina::cri
