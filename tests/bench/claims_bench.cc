// Claims through a real laminad's socket: 64 clients, each on a connection of its own, claim and release in
// turn, every answer durable. One thread plays all clients, so that what is measured is laminad; what that
// thread costs is shown. Once with the journal in memory, which leaves what the socket costs, once on the
// disk. "at once": each client has a call under way all the time, so that a call takes 64 / rate on average
// whatever laminad does, and has no goal; "paced": 2,000 claims a second of them all, ten times what RunD
// starts on a node. Goals of docs/ledger.md.
#include <fmt/format.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "base/file_system.h"
#include "base/ttrpc/frame.h"
#include "base/units.h"
#include "base/unix_socket.h"
#include "proto/ttrpc.pb.h"
#include "tests/integration/node/node_kit.h"

namespace lamina::node {
namespace {

using std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kClients = 64;
constexpr Seconds kFor{5};
constexpr double kPacedClaims = 2000;
constexpr int kRecovered = 2500;
constexpr char kConfig[] = "[memory]\ncapacity = \"64TiB\"\nreserve = 0\nmin_available = 0\n";

bool missed = false;

double Percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

void Row(const std::string& what, const std::string& value, const std::string& goal = "", bool met = true) {
  fmt::print("| {} | {} | {}{} |\n", what, value, goal, goal.empty() ? "" : met ? " (met)" : " (MISSED)");
  missed |= !met;
}

// CPU seconds of a process so far.
double CpuSeconds(pid_t pid) {
  const std::string stat = FileSystem::Real().Read(fmt::format("/proc/{}/stat", pid), 4096).value_or("");
  unsigned long user = 0, system = 0;
  sscanf(stat.c_str() + stat.rfind(')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
         &system);
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// One client: its connection, and the call that is under way or comes next.
struct Client {
  UniqueFd fd;
  ttrpc::FrameReader reader;
  std::string claim, sandbox_id;  // the claim's payload
  uint32_t stream_id = 1;
  bool releases = false;
  bool waits = false;           // for its time
  steady_clock::time_point at;  // when the call was due
};

class Load {
 public:
  // `claims_per_second` of all clients; 0: each calls again at once.
  Load(const Laminad& laminad, double claims_per_second)
      : interval_(claims_per_second == 0 ? 0 : kClients / claims_per_second), epoll_(epoll_create1(0)) {
    for (int i = 0; i < kClients; ++i) {
      Client& client = clients_.emplace_back();
      absl::StatusOr<UniqueFd> fd = ConnectUnix(laminad.directory() + "/run/shim.sock");
      if (!fd.ok()) abort();
      client.fd = std::move(*fd);
      client.sandbox_id = fmt::format("client-{:057}", i);
      client.claim = laminad.ClaimOf(client.sandbox_id, 256 * kMiB).SerializeAsString();
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.u32 = static_cast<uint32_t>(i);
      epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, client.fd.get(), &event);
    }
  }

  void Run() {
    const auto begin = steady_clock::now();
    for (size_t i = 0; i < clients_.size(); ++i) {
      clients_[i].waits = true;
      clients_[i].at = begin + std::chrono::duration_cast<steady_clock::duration>(
                                   interval_ * static_cast<double>(i) / kClients);
    }
    epoll_event events[kClients];
    while (steady_clock::now() - begin < kFor) {
      auto next = steady_clock::time_point::max();
      for (Client& client : clients_) {
        if (client.waits && client.at <= steady_clock::now()) Claim(client);
        if (client.waits) next = std::min(next, client.at);
      }
      timespec wait{0, 50'000'000};
      if (next < steady_clock::time_point::max())
        wait.tv_nsec = std::clamp<int64_t>((next - steady_clock::now()).count(), 0, 50'000'000);
      const int count = epoll_pwait2(epoll_.get(), events, kClients, &wait, nullptr);
      for (int i = 0; i < count; ++i) Answered(clients_[events[i].data.u32]);
    }
    seconds = Seconds(steady_clock::now() - begin).count();
  }

  std::vector<double> claim_ms;
  size_t calls = 0, failed = 0;
  double seconds = 0;

 private:
  void Send(Client& client, const char* method, const std::string& payload) {
    ttrpc::Request request;
    request.set_service("lamina.laminad.v1.Laminad");
    request.set_method(method);
    request.set_payload(payload);
    ttrpc::Frame frame;
    frame.stream_id = client.stream_id;
    frame.payload = request.SerializeAsString();
    client.stream_id += 2;
    const std::string bytes = *ttrpc::EncodeFrame(frame);
    if (write(client.fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) abort();
  }
  void Claim(Client& client) {
    client.waits = client.releases = false;
    Send(client, "Claim", client.claim);
  }
  void Answered(Client& client) {
    char buffer[16384];
    const ssize_t n = read(client.fd.get(), buffer, sizeof buffer);
    if (n <= 0) abort();
    client.reader.Feed({buffer, static_cast<size_t>(n)});
    ttrpc::Frame frame;
    while (client.reader.Next(frame).value_or(false)) {
      ttrpc::Response response;
      laminad::v1::ClaimResponse granted;
      if (!response.ParseFromString(frame.payload) || response.status().code() != 0) ++failed;
      ++calls;
      const auto now = steady_clock::now();
      if (client.releases) {
        // Due a fixed time after the one before, so that a late answer does not hide what waits behind it.
        client.at = interval_.count() == 0
                        ? now
                        : client.at + std::chrono::duration_cast<steady_clock::duration>(interval_);
        client.waits = true;
        if (client.at <= now) Claim(client);
        continue;
      }
      claim_ms.push_back(std::chrono::duration<double, std::milli>(now - client.at).count());
      if (!granted.ParseFromString(response.payload())) ++failed;
      laminad::v1::ReleaseRequest release;
      release.set_sandbox_id(client.sandbox_id);
      release.set_generation(granted.generation());
      client.releases = true;
      Send(client, "Release", release.SerializeAsString());
    }
  }

  const Seconds interval_;
  const UniqueFd epoll_;
  std::vector<Client> clients_;
};

// What the disk alone allows: the slowest hundredth of as many small appends a second as there are paced
// claims and releases, each timed from when it was due, by a program that does nothing else and syncs all
// that are due at once.
double DiskP99Ms(const std::string& parent) {
  std::string path = parent + "/lamina-sync-XXXXXX";
  const UniqueFd fd(mkstemp(path.data()));
  const auto fail = [&](const char* what) {
    fmt::print(stderr, "{} {}: {}\n", what, path, strerror(errno));
    exit(1);
  };
  if (!fd) fail("create");
  unlink(path.c_str());
  const std::string record(400, 'r');
  const auto interval = std::chrono::duration_cast<steady_clock::duration>(Seconds(0.5 / kPacedClaims));
  std::vector<double> ms;
  const auto begin = steady_clock::now();
  for (auto due = begin; due < begin + kFor;) {
    std::this_thread::sleep_until(due);
    std::vector<steady_clock::time_point> batch;
    std::string bytes;
    for (const auto now = steady_clock::now(); due <= now; due += interval) {
      batch.push_back(due);
      bytes += record;
    }
    if (write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) fail("write");
    if (fdatasync(fd.get()) != 0) fail("sync");
    const auto now = steady_clock::now();
    for (const auto& at : batch) ms.push_back(Seconds(now - at).count() * 1e3);
  }
  return Percentile(ms, 0.99);
}

void Measure(const char* where, const std::string& parent, double p99_goal_ms) {
  Laminad laminad(kConfig, "", parent);
  if (const absl::Status status = laminad.Start(); !status.ok()) {
    fmt::print(stderr, "{}\n", std::string(status.message()));
    exit(1);
  }
  const auto figures = [&](double claims_per_second, const char* how, double rate_goal, double p99_goal) {
    Load load(laminad, claims_per_second);
    const double server = CpuSeconds(laminad.pid()), client = CpuSeconds(getpid());
    load.Run();
    const auto calls = static_cast<double>(load.calls);
    const double server_us = (CpuSeconds(laminad.pid()) - server) * 1e6 / calls,
                 client_us = (CpuSeconds(getpid()) - client) * 1e6 / calls, rate = calls / load.seconds,
                 p99 = Percentile(load.claim_ms, 0.99);
    const std::string head = fmt::format("{}, {}: ", where, how);
    Row(head + "claims and releases a second", fmt::format("{:.0f}", rate),
        rate_goal == 0 ? "" : fmt::format(">= {:.0f}", rate_goal), rate >= rate_goal);
    Row(head + "claim, median", fmt::format("{:.2f} ms", Percentile(load.claim_ms, 0.5)));
    Row(head + "claim, p99", fmt::format("{:.2f} ms", p99),
        p99_goal == 0 ? "" : fmt::format("<= {:.3g} ms", p99_goal), p99_goal == 0 || p99 <= p99_goal);
    Row(head + "CPU of a call: laminad, the clients",
        fmt::format("{:.0f} us, {:.0f} us", server_us, client_us));
    Row(head + "failed calls", fmt::format("{}", load.failed), "0", load.failed == 0);
  };
  const bool memory = p99_goal_ms == 2;
  figures(0, "at once", memory ? 20'000 : 0, 0);
  if (!memory) {
    // Nothing can be durable sooner than the disk says.
    const double disk = DiskP99Ms(parent);
    Row(fmt::format("{}: as many appends a second, without laminad, p99", where),
        fmt::format("{:.2f} ms", disk));
    p99_goal_ms = std::max(p99_goal_ms, 1.25 * disk);
  }
  figures(kPacedClaims, "paced", 0, p99_goal_ms);
}

// Killed with 2,500 claims, laminad starts anew: from its start until it says that it is ready, which is
// after the journal was read and every claim was looked at.
void Recover() {
  Laminad laminad(kConfig);
  bool ok = laminad.Start().ok();
  {
    const auto client = laminad.Connect();
    laminad::v1::ClaimResponse response;
    for (int i = 0; ok && i < kRecovered; ++i) {
      ok =
          client
              ->Call("lamina.laminad.v1.Laminad", "Claim",
                     laminad.ClaimOf(fmt::format("pod-{:060}", i), kMiB), &response, std::chrono::seconds(60))
              .ok();
    }
  }
  laminad.Stop(SIGKILL);
  const auto start = steady_clock::now();
  ok = ok && laminad.Start().ok();
  const double seconds = Seconds(steady_clock::now() - start).count();
  ok = ok && laminad.Http("/v1/status").body.find(fmt::format("\"claimed_bytes\": {}", kRecovered * kMiB)) !=
                 std::string::npos;
  Row(fmt::format("{} claims, laminad killed: ready again, all of them counted", kRecovered),
      ok ? fmt::format("{:.2f} s", seconds) : "not all", "<= 1 s", ok && seconds <= 1);
}

}  // namespace
}  // namespace lamina::node

int main() {
  fmt::print("| {} clients | | goal |\n|---|---|---|\n", lamina::node::kClients);
  lamina::node::Measure("journal in memory", "/dev/shm", 2);
  lamina::node::Measure("on disk", "/tmp", 10);
  lamina::node::Recover();
  return lamina::node::missed ? 1 : 0;
}
