// The ledger's rules under 64 claimers, and the journal's recovery: goals of docs/ledger.md.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "node/claims_journal.h"
#include "sizing/ledger.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using std::chrono::steady_clock;

constexpr int kClaimers = 64, kEntries = 2500, kEach = 20'000;

double Micros(steady_clock::duration time) { return std::chrono::duration<double, std::micro>(time).count(); }

double Percentile(std::vector<double>& values, double part) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

struct Rate {
  double claims_per_second = 0, p99_micros = 0;
};

// Each claimer claims and releases `bytes` in turn, beside kEntries that stay. A pair is two calls; only
// claims are counted and timed.
Rate Run(uint64_t bytes, bool timed) {
  sizing::Ledger ledger(uint64_t{1} << 62);
  for (int i = 0; i < kEntries; ++i) ledger.Claim(fmt::format("entry-{:060}", i), 256 << 20).IgnoreError();
  std::vector<std::vector<double>> taken(kClaimers);
  std::atomic<bool> go{false};
  const auto work = [&](int t) {
    const std::string id = fmt::format("claimer-{:056}", t);
    while (!go) std::this_thread::yield();
    for (int i = 0; i < kEach; ++i) {
      const auto begin = timed ? steady_clock::now() : steady_clock::time_point();
      const auto generation = ledger.Claim(id, bytes);
      if (timed) taken[static_cast<size_t>(t)].push_back(Micros(steady_clock::now() - begin));
      ledger.Release(id, generation.value_or(0));
    }
  };
  for (auto& some : taken) some.reserve(kEach);
  std::vector<std::thread> threads;
  for (int t = 0; t < kClaimers; ++t) threads.emplace_back(work, t);
  const auto begin = steady_clock::now();
  go = true;
  for (auto& thread : threads) thread.join();
  Rate rate;
  rate.claims_per_second = kClaimers * kEach / (Micros(steady_clock::now() - begin) / 1e6);
  std::vector<double> all;
  for (const auto& some : taken) all.insert(all.end(), some.begin(), some.end());
  if (timed) rate.p99_micros = Percentile(all, 0.99);
  return rate;
}

void Row(const char* what, const std::string& value, const char* goal, bool met) {
  fmt::print("| {} | {} | {} {} |\n", what, value, goal, met ? "(met)" : "(MISSED)");
}

int Main() {
  fmt::print("| {} claimers beside {} entries | | goal |\n|---|---|---|\n", kClaimers, kEntries);
  const Rate rate = Run(256 << 20, false), timed = Run(256 << 20, true);
  Row("claims a second, each released again", fmt::format("{:.2f} M", rate.claims_per_second / 1e6), ">= 1 M",
      rate.claims_per_second >= 1e6);
  Row("claim p99", fmt::format("{:.2f} us", timed.p99_micros), "<= 10 us", timed.p99_micros <= 10);
  const Rate small = Run(1, true), large = Run(uint64_t{1} << 40, true);
  Row("claim p99 of 1 TiB over that of 1 byte", fmt::format("{:.2f}", large.p99_micros / small.p99_micros),
      "~ 1", large.p99_micros <= 2 * small.p99_micros + 1);

  testing::TempDir dir;
  node::ClaimRecords records;
  for (int i = 0; i < kEntries; ++i) {
    laminad::v1::ClaimRecord record;
    record.mutable_claim()->set_sandbox_id(fmt::format("{:064}", i));
    record.mutable_claim()->set_bytes(256 << 20);
    record.mutable_claim()->mutable_sizing()->add_reasons(std::string(300, 'r'));
    records[record.claim().sandbox_id()] = record;
  }
  FileSystem::Real().WriteAndSync(dir / "claims.journal", node::EncodeJournal(records), 0600).IgnoreError();
  const auto begin = steady_clock::now();
  const auto journal = node::ClaimsJournal::Open(FileSystem::Real(), dir / "claims.journal", records);
  const double seconds = Micros(steady_clock::now() - begin) / 1e6;
  Row("2,500 claims read from the journal", fmt::format("{:.0f} ms", seconds * 1e3), "<= 1 s",
      journal.ok() && records.size() == kEntries && seconds <= 1);
  return 0;
}

}  // namespace
}  // namespace lamina

int main() { return lamina::Main(); }
