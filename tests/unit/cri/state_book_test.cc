#include "cri/state_book.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using testing::HasStatus;

persist::SandboxState Pod() {
  persist::SandboxState state;
  state.sandbox_id = "pod";
  return state;
}

uint32_t Vcpus(const StateBook& book) {
  return book.Look([](const persist::SandboxState& state) { return state.vcpus; });
}

TEST(StateBookTest, AChangeIsInTheFileOrNowhere) {
  testing::TempDir dir;
  FaultyFileSystem fs(FileSystem::Real());
  StateBook book(fs, dir / "state");
  book.Restore(Pod());
  ASSERT_OK(book.Change([](auto& state) { state.vcpus = 1; }));
  persist::StateStore store(FileSystem::Real(), dir / "state");
  const int all = fs.calls.exchange(0);
  for (int n = 0; n < all; ++n) {
    fs.calls = 0;
    fs.fail_at = n;
    const absl::Status status = book.Change([](auto& state) { state.vcpus = 2; });
    if (status.ok()) break;  // the later ones make what is there by now
    EXPECT_EQ(Vcpus(book), 1U);
  }
  fs.fail_at = 0;
  fs.calls = 0;
  EXPECT_THAT(book.Record([](auto& state) { state.vcpus = 3; }),
              HasStatus(StatusCode::kResourceExhausted, "space"));
  EXPECT_EQ(Vcpus(book), 3U);
  fs.fail_at = -1;
  ASSERT_OK(book.Change([](auto& state) { state.memory_bytes = 5; }));
  EXPECT_EQ(store.Load("pod")->vcpus, 3U);
}

TEST(StateBookTest, OnceClosedNothingBringsTheFileBack) {
  testing::TempDir dir;
  StateBook book(FileSystem::Real(), dir / "state");
  book.Restore(Pod());
  ASSERT_OK(book.Change([](auto& state) { state.vcpus = 1; }));
  EXPECT_EQ(book.path(), dir / "state/sandboxes/pod/state.json");
  book.Close();
  ASSERT_OK(FileSystem::Real().Remove(book.path()));
  ASSERT_OK(book.Record([](auto& state) { state.vcpus = 2; }));
  EXPECT_EQ(Vcpus(book), 2U);
  EXPECT_FALSE(FileSystem::Real().Exists(book.path()));
}

// A disk that takes its time.
class SlowFileSystem : public FaultyFileSystem {
 public:
  SlowFileSystem() : FaultyFileSystem(FileSystem::Real()) {}
  absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) override {
    begun.set_value();
    go_on.get_future().get();
    return FaultyFileSystem::WriteAndSync(path, data, mode);
  }
  std::promise<void> begun, go_on;
};

TEST(StateBookTest, WhoLooksDoesNotWaitForTheDisk) {
  testing::TempDir dir;
  SlowFileSystem fs;
  StateBook book(fs, dir / "state");
  book.Restore(Pod());
  auto change =
      std::async(std::launch::async, [&] { return book.Change([](auto& state) { state.vcpus = 1; }); });
  fs.begun.get_future().get();
  EXPECT_EQ(Vcpus(book), 0U);  // not yet on disk
  fs.go_on.set_value();
  ASSERT_OK(change.get());
  EXPECT_EQ(Vcpus(book), 1U);
}

TEST(StateBookTest, ChangesOfManyThreadsAllCount) {
  testing::TempDir dir;
  StateBook book(FileSystem::Real(), dir / "state");
  book.Restore(Pod());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 10; ++n) EXPECT_OK(book.Change([](auto& state) { ++state.vcpus; }));
    });
  }
  for (std::thread& thread : threads) thread.join();
  persist::StateStore store(FileSystem::Real(), dir / "state");
  EXPECT_EQ(store.Load("pod")->vcpus, 40U);
}

}  // namespace
}  // namespace lamina::cri
