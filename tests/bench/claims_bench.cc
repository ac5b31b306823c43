// Claims through a real laminad's socket: 64 clients, each on a connection of its own, claim and release in
// turn; each answer is durable. Goals of docs/ledger.md.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/units.h"
#include "tests/integration/node/node_kit.h"

namespace lamina::node {
namespace {

using std::chrono::steady_clock;

constexpr int kClients = 64;
constexpr std::chrono::seconds kFor{8};
constexpr char kService[] = "lamina.laminad.v1.Laminad";

double Percentile(std::vector<double>& values, double part) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

void Row(const char* what, const std::string& value, const char* goal, bool met) {
  fmt::print("| {} | {} | {} {} |\n", what, value, goal, met ? "(met)" : "(MISSED)");
}

int Main() {
  Laminad laminad("[memory]\ncapacity = \"64TiB\"\nreserve = 0\nmin_available = 0\n");
  if (const absl::Status status = laminad.Start(); !status.ok()) {
    fmt::print(stderr, "{}\n", std::string(status.message()));
    return 1;
  }
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0};
  std::vector<std::vector<double>> claims(kClients);
  std::vector<std::thread> threads;
  const auto begin = steady_clock::now();
  for (int t = 0; t < kClients; ++t) {
    threads.emplace_back([&, t] {
      const auto client = laminad.Connect();
      const laminad::v1::ClaimRequest claim = laminad.ClaimOf(fmt::format("client-{:057}", t), 256 * kMiB);
      laminad::v1::ReleaseRequest release;
      release.set_sandbox_id(claim.sandbox_id());
      while (!stop) {
        laminad::v1::ClaimResponse response;
        laminad::v1::Empty empty;
        const auto start = steady_clock::now();
        bool ok = client->Call(kService, "Claim", claim, &response, std::chrono::seconds(60)).ok();
        const auto granted = steady_clock::now();
        release.set_generation(response.generation());
        ok &= client->Call(kService, "Release", release, &empty, std::chrono::seconds(60)).ok();
        if (!ok) ++failed;
        claims[static_cast<size_t>(t)].push_back(
            std::chrono::duration<double, std::milli>(granted - start).count());
      }
    });
  }
  std::this_thread::sleep_for(kFor);
  stop = true;
  for (auto& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(steady_clock::now() - begin).count();
  std::vector<double> all;
  for (const auto& some : claims) all.insert(all.end(), some.begin(), some.end());
  const double rate = 2 * static_cast<double>(all.size()) / seconds, median = Percentile(all, 0.5),
               p99 = Percentile(all, 0.99);
  fmt::print("| {} clients, each claim durable ({} failed) | | goal |\n|---|---|---|\n", kClients,
             failed.load());
  Row("claims and releases a second", fmt::format("{:.0f}", rate), ">= 20000", rate >= 20'000);
  Row("claim, median", fmt::format("{:.2f} ms", median), "<= 2 ms", median <= 2);
  Row("claim, p99", fmt::format("{:.2f} ms", p99), "<= 10 ms", p99 <= 10);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lamina::node

int main() { return lamina::node::Main(); }
