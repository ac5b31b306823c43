#pragma once

#include <map>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"
#include "node/host.h"
#include "vmm/fake_balloon.h"

namespace lamina::node {

// Processes that a test starts and ends. Thread-safe.
class FakeHost : public Host {
 public:
  void Start(int64_t pid, uint64_t start_time, uint64_t resident_bytes = 0) {
    MutexLock lock(mutex_);
    processes_[pid] = {start_time, resident_bytes};
  }
  void End(int64_t pid) {
    MutexLock lock(mutex_);
    processes_.erase(pid);
  }
  void SetAvailable(uint64_t bytes) {
    MutexLock lock(mutex_);
    available_ = bytes;
  }

  bool Alive(int64_t pid, uint64_t start_time) override {
    MutexLock lock(mutex_);
    const auto it = processes_.find(pid);
    return it != processes_.end() && it->second.first == start_time;
  }
  // The machine boots: no process lives on. Its pids may be given again.
  void Reboot(const std::string& boot_id) {
    MutexLock lock(mutex_);
    boot_id_ = boot_id;
    processes_.clear();
  }
  std::string BootId() override {
    MutexLock lock(mutex_);
    return boot_id_;
  }
  uint64_t ResidentBytes(int64_t pid) override {
    MutexLock lock(mutex_);
    const auto it = processes_.find(pid);
    return it == processes_.end() ? 0 : it->second.second;
  }
  void SetNumaNodes(std::map<uint32_t, NumaMemory> nodes) {
    MutexLock lock(mutex_);
    nodes_ = std::move(nodes);
  }
  std::map<uint32_t, NumaMemory> NumaNodes() override {
    MutexLock lock(mutex_);
    return nodes_;
  }
  uint64_t MemTotalBytes() override { return uint64_t{16} << 30; }
  MemoryLeft Left() override {
    MutexLock lock(mutex_);
    return {available_, "the node"};
  }
  absl::StatusOr<std::unique_ptr<vmm::Balloon>> OpenBalloon(const std::string& runtime_dir) override {
    MutexLock lock(mutex_);
    const auto it = guests_.find(runtime_dir);
    if (it == guests_.end()) return absl::UnavailableError("no QEMU at " + runtime_dir);
    return std::make_unique<vmm::FakeBalloon>(*it->second);
  }
  // Time passes only in naps, and only for one thread.
  void Nap(std::chrono::milliseconds time) override {
    if (clock != nullptr) clock->Advance(time);
  }

  // The guest behind the balloon in `runtime_dir`; the caller's.
  void AddGuest(const std::string& runtime_dir, vmm::FakeGuest* guest) {
    MutexLock lock(mutex_);
    guests_[runtime_dir] = guest;
  }
  FakeClock* clock = nullptr;

 private:
  Mutex mutex_;
  std::string boot_id_ GUARDED_BY(mutex_) = "first-boot";
  std::map<int64_t, std::pair<uint64_t, uint64_t>> processes_
      GUARDED_BY(mutex_);                                             // pid -> start time, residence
  std::map<std::string, vmm::FakeGuest*> guests_ GUARDED_BY(mutex_);  // by runtime directory
  std::map<uint32_t, NumaMemory> nodes_ GUARDED_BY(mutex_);
  uint64_t available_ GUARDED_BY(mutex_) = uint64_t{8} << 30;
};

}  // namespace lamina::node
