// Reservations against a model, with a hypervisor that fails at will.
#include "vmm/scsi.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "base/status.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;

// Keeps what a VM would have; a call fails when `fail` says so, before or after its effect.
class FakeHost : public ScsiHost {
 public:
  enum Failure { kNone, kBefore, kAfter };
  std::function<Failure()> fail = [] { return kNone; };
  std::function<void()> on_add = [] {};

  absl::StatusOr<std::string> AddController(uint32_t index) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (fail() != kNone) return absl::InternalError("no controller");
    EXPECT_TRUE(controllers_.insert(index).second) << "a controller is added once";
    return "pci-" + std::to_string(index);
  }
  absl::Status AddDisk(uint32_t controller, uint32_t lun, const DiskFile& file) override {
    const std::string& image = file.path;
    on_add();
    std::lock_guard<std::mutex> lock(mutex_);
    ++adds;
    EXPECT_EQ(controllers_.count(controller), 1u);
    const Failure failure = fail();
    if (failure == kBefore) return absl::InternalError("no disk");
    EXPECT_TRUE(disks_.emplace(std::pair(controller, lun), image).second) << "the place is taken";
    for (const auto& [place, other] : disks_) {
      EXPECT_TRUE(other != image || place == std::pair(controller, lun)) << image << " is attached twice";
    }
    return failure == kAfter ? absl::DeadlineExceededError("no answer") : absl::OkStatus();
  }
  absl::Status RemoveDisk(uint32_t controller, uint32_t lun) override {
    std::lock_guard<std::mutex> lock(mutex_);
    const Failure failure = fail();
    if (failure == kBefore) return absl::InternalError("it stays");
    disks_.erase({controller, lun});
    return failure == kAfter ? absl::DeadlineExceededError("no answer") : absl::OkStatus();
  }
  absl::Status GrowDisk(uint32_t controller, uint32_t lun, uint64_t bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(disks_.count({controller, lun}), 1u) << "only what is there is grown";
    if (fail() != kNone) return absl::InternalError("it stays as it is");
    sizes_[{controller, lun}] = bytes;
    return absl::OkStatus();
  }
  uint64_t size(uint32_t controller, uint32_t lun) {
    std::lock_guard<std::mutex> lock(mutex_);
    return sizes_[{controller, lun}];
  }
  std::map<std::pair<uint32_t, uint32_t>, std::string> disks() {
    std::lock_guard<std::mutex> lock(mutex_);
    return disks_;
  }

  int adds = 0;

 private:
  std::mutex mutex_;
  std::set<uint32_t> controllers_;
  std::map<std::pair<uint32_t, uint32_t>, std::string> disks_;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> sizes_;
};

TEST(ScsiDisks, OneImageIsOneAttachmentHoweverOften) {
  FakeHost host;
  ScsiDisks scsi(host);
  const uint64_t a = *scsi.Reserve("a"), b = *scsi.Reserve("a"), other = *scsi.Reserve("b");
  EXPECT_TRUE(host.disks().empty()) << "a reservation does not touch the VM";
  EXPECT_EQ(scsi.Map(a)->lun, 0u);
  EXPECT_EQ(scsi.Map(a)->lun, 0u);
  EXPECT_EQ(scsi.Map(b)->lun, 0u);
  EXPECT_EQ(scsi.Map(other)->lun, 1u);
  EXPECT_EQ(scsi.Map(a)->pci_path, "pci-0");
  EXPECT_EQ(host.adds, 2);
  EXPECT_OK(scsi.Unmap(a));
  EXPECT_OK(scsi.Unmap(a)) << "again: nothing happens";
  EXPECT_EQ(host.disks().size(), 2u) << "b holds it";
  EXPECT_THAT(scsi.Map(a), HasStatus(absl::StatusCode::kNotFound, "not held"));
  EXPECT_OK(scsi.Unmap(b));
  EXPECT_OK(scsi.Unmap(4711));
  EXPECT_EQ(host.disks().size(), 1u);
  EXPECT_EQ(scsi.Map(*scsi.Reserve("c"))->lun, 0u) << "the place is free again";
}

TEST(ScsiDisks, EveryLunIsGivenButTheReservedOnes) {
  FakeHost host;
  ScsiDisks scsi(host, {{0, 0}, {2, 63}});
  std::set<std::pair<std::string, uint32_t>> places;
  std::vector<uint64_t> ids;
  for (uint32_t i = 0; i < kScsiControllers * kScsiLuns - 2; ++i) {
    ids.push_back(*scsi.Reserve("image-" + std::to_string(i)));
    const DiskPlace place = *scsi.Map(ids.back());
    EXPECT_TRUE(places.insert({place.pci_path, place.lun}).second);
  }
  EXPECT_EQ(places.count({"pci-0", 0}), 0u);
  EXPECT_EQ(places.count({"pci-2", 63}), 0u);
  EXPECT_EQ(places.count({"pci-3", 63}), 1u);
  const size_t held = scsi.reservations();
  EXPECT_THAT(scsi.Reserve("one more"), HasStatus(absl::StatusCode::kResourceExhausted, "256 SCSI places"));
  EXPECT_EQ(scsi.reservations(), held) << "a reservation that fails holds nothing";
  EXPECT_EQ(scsi.disks(), held);
  EXPECT_OK(scsi.Reserve("image-7")) << "what is there already needs no place";
  EXPECT_OK(scsi.Unmap(ids[100]));
  EXPECT_OK(scsi.Reserve("one more"));
}

TEST(ScsiDisks, WhoWaitsForAnothersAttachGetsItsErrorAndMayTryAgain) {
  FakeHost host;
  ScsiDisks scsi(host);
  std::latch adding(1), go(1);
  std::atomic<bool> hold = true;
  host.on_add = [&] {
    if (!hold.exchange(false)) return;
    adding.count_down();
    go.wait();
  };
  std::atomic<bool> failed = false;
  host.fail = [&] { return host.adds == 1 && !failed.exchange(true) ? FakeHost::kBefore : FakeHost::kNone; };
  const uint64_t first = *scsi.Reserve("a"), second = *scsi.Reserve("a");
  auto one = std::async(std::launch::async, [&] { return scsi.Map(first).status(); });
  adding.wait();
  std::atomic<bool> asked = false;
  auto two = std::async(std::launch::async, [&] {
    asked = true;
    return scsi.Map(second).status();
  });
  while (!asked) std::this_thread::yield();
  EXPECT_OK(scsi.Unmap(*scsi.Reserve("a"))) << "to leave needs no waiting";
  go.count_down();
  const absl::Status error = one.get(), waited = two.get();
  EXPECT_THAT(error, HasStatus(absl::StatusCode::kInternal));
  // The second either waited, and has the first's error, or came late, and its own attempt succeeded.
  if (!waited.ok()) {
    EXPECT_EQ(waited, error);
  }
  EXPECT_EQ(scsi.reservations(), 2u) << "an error gives no reservation up";
  EXPECT_OK(scsi.Map(second));
  EXPECT_OK(scsi.Unmap(second));
  EXPECT_OK(scsi.Unmap(first));
  EXPECT_EQ(scsi.disks(), 0u);
  EXPECT_TRUE(host.disks().empty());
}

TEST(ScsiDisks, ARemovalGoesOnWhereItFailed) {
  FakeHost host;
  ScsiDisks scsi(host);
  const uint64_t id = *scsi.Reserve("a");
  ASSERT_OK(scsi.Map(id));
  for (const FakeHost::Failure failure : {FakeHost::kBefore, FakeHost::kAfter, FakeHost::kBefore}) {
    host.fail = [&] { return failure; };
    EXPECT_NOT_OK(scsi.Unmap(id));
    EXPECT_EQ(scsi.disks(), 1u) << "its place is not given away";
    EXPECT_OK(scsi.Unmap(*scsi.Reserve("other")));
  }
  host.fail = [] { return FakeHost::kNone; };
  // Who comes meanwhile finds a clean disk.
  EXPECT_EQ(scsi.Map(id)->lun, 0u);
  EXPECT_OK(scsi.Unmap(id));
  EXPECT_TRUE(host.disks().empty());
}

TEST(ScsiDisks, OneThatIsWrittenMayBeReadByOthersAndNotTheOtherWayRound) {
  FakeHost host;
  ScsiDisks scsi(host);
  const uint64_t writer = *scsi.Reserve(DiskFile{.path = "a", .writable = true});
  const uint64_t reader = *scsi.Reserve("a");
  EXPECT_EQ(scsi.Map(writer)->lun, scsi.Map(reader)->lun);
  ASSERT_OK(scsi.Map(*scsi.Reserve("b")));
  const size_t held = scsi.reservations();
  EXPECT_THAT(scsi.Reserve(DiskFile{.path = "b", .writable = true}),
              HasStatus(absl::StatusCode::kFailedPrecondition, "disk b: wanted writable"));
  EXPECT_EQ(scsi.reservations(), held);
}

TEST(ScsiDisks, GrowsWhatIsAttached) {
  FakeHost host;
  ScsiDisks scsi(host);
  const uint64_t id = *scsi.Reserve(DiskFile{.path = "a", .writable = true});
  EXPECT_THAT(scsi.Grow(id, 4096), HasStatus(absl::StatusCode::kFailedPrecondition, "not attached"));
  ASSERT_OK(scsi.Map(id));
  ASSERT_OK(scsi.Grow(id, 8192));
  EXPECT_EQ(host.size(0, 0), 8192u);
  host.fail = [] { return FakeHost::kBefore; };
  EXPECT_THAT(scsi.Grow(id, 1 << 20), HasStatus(absl::StatusCode::kInternal, "grow disk a to 1048576 bytes"));
  host.fail = [] { return FakeHost::kNone; };
  ASSERT_OK(scsi.Unmap(id));
  EXPECT_THAT(scsi.Grow(id, 8192), HasStatus(absl::StatusCode::kNotFound, "not held"));
}

// Random calls of several owners, with failures: nothing leaks, counts stay exact, any order of leaving
// works.
TEST(ScsiDisks, AgreesWithAModel) {
  std::mt19937_64 random(11);
  FakeHost host;
  bool faults = true;
  host.fail = [&] {
    if (!faults || random() % 6 != 0) return FakeHost::kNone;
    return random() % 2 == 0 ? FakeHost::kBefore : FakeHost::kAfter;
  };
  ScsiDisks scsi(host, {{0, 1}});
  std::map<uint64_t, std::string> model;
  for (int i = 0; i < 8'000; ++i) {
    const uint64_t what = random() % 8;
    auto some = model.begin();
    if (!model.empty()) std::advance(some, random() % model.size());
    if (what < 3 || model.empty()) {
      const std::string image = "image-" + std::to_string(random() % 300);
      const auto id = scsi.Reserve(image);
      if (id.ok()) {
        ASSERT_TRUE(model.emplace(*id, image).second) << "ids are never used again";
      } else {
        ASSERT_GE(scsi.disks(), kScsiControllers * kScsiLuns - 1);
      }
    } else if (what < 6) {
      const auto place = scsi.Map(some->first);
      if (place.ok()) {
        const uint32_t controller = static_cast<uint32_t>(place->pci_path.back() - '0');
        ASSERT_EQ(host.disks()[std::pair(controller, place->lun)], some->second);
        ASSERT_FALSE(controller == 0 && place->lun == 1);
      }
    } else if (scsi.Unmap(some->first).ok()) {
      model.erase(some);
    }
    ASSERT_EQ(scsi.reservations(), model.size());
    if (i % 16 != 0) continue;
    std::set<std::string> images;
    for (const auto& [id, image] : model) images.insert(image);
    ASSERT_EQ(scsi.disks(), images.size());
  }
  faults = false;
  std::vector<uint64_t> left;
  for (const auto& [id, image] : model) left.push_back(id);
  std::shuffle(left.begin(), left.end(), random);
  for (const uint64_t id : left) ASSERT_OK(scsi.Unmap(id));
  EXPECT_EQ(scsi.disks(), 0u);
  EXPECT_TRUE(host.disks().empty());
}

TEST(ScsiDisks, ManyThreadsLeaveNothing) {
  FakeHost host;
  ScsiDisks scsi(host);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 500; ++i) {
        const absl::StatusOr<uint64_t> id = scsi.Reserve("image-" + std::to_string(random() % 5));
        ASSERT_OK(id);
        ASSERT_OK(scsi.Map(*id));
        ASSERT_OK(scsi.Unmap(*id));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(scsi.reservations(), 0u);
  EXPECT_EQ(scsi.disks(), 0u);
  EXPECT_TRUE(host.disks().empty());
}

}  // namespace
}  // namespace lamina::vmm
