#include "tests/bench/pod/shim_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "base/unique_fd.h"
#include "proto/containerd/task.pb.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::bench {
namespace {

using std::chrono::steady_clock;

constexpr char kTask[] = "containerd.task.v2.Task";
constexpr std::chrono::seconds kTimeout{60};
constexpr int kSilenceMs = 60'000;

containerd::TaskRequest Name(const std::string& container, const std::string& exec) {
  containerd::TaskRequest request;
  request.set_id(container);
  request.set_exec_id(exec);
  return request;
}

}  // namespace

absl::StatusOr<ShimClient> ShimClient::Connect(const std::string& bundle) {
  const std::string address = e2e::ReadText(bundle + "/address");
  if (address.rfind("unix://", 0) != 0)
    return MakeStatus(absl::StatusCode::kNotFound, "{}/address holds \"{}\"", bundle, address);
  ASSIGN_OR_RETURN(auto client, ttrpc::Client::Dial(address.substr(7), "the shim"));
  return ShimClient(std::move(client));
}

absl::StatusOr<std::string> ShimClient::Start(const std::string& container,
                                              const std::vector<std::string>& command,
                                              const std::string& fifo) {
  containerd::ExecProcessRequest request;
  const std::string exec = "bench-" + std::to_string(++execs_);
  request.set_id(container);
  request.set_exec_id(exec);
  request.set_stdout(fifo);
  request.mutable_spec()->set_type_url("types.containerd.io/opencontainers/runtime-spec/1/Process");
  request.mutable_spec()->set_value(nlohmann::json{
      {"args", command}, {"cwd", "/"}, {"env", {"PATH=/bin:/usr/bin"}}, {"user", {{"uid", 0}, {"gid", 0}}}}
                                        .dump());
  containerd::Nothing nothing;
  RETURN_IF_ERROR(client_->Call(kTask, "Exec", request, &nothing, kTimeout));
  containerd::StartResponse started;
  RETURN_IF_ERROR(client_->Call(kTask, "Start", Name(container, exec), &started, kTimeout));
  return exec;
}

absl::Status ShimClient::Finish(const std::string& container, const std::string& exec) {
  containerd::WaitResponse waited;
  RETURN_IF_ERROR(client_->Call(kTask, "Wait", Name(container, exec), &waited, kTimeout));
  if (waited.exit_status() != 0) {
    return MakeStatus(absl::StatusCode::kInternal, "the exec in container {} exited with {}", container,
                      waited.exit_status());
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ShimClient::Exec(const std::string& container,
                                        const std::vector<std::string>& command) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const std::string exec, Start(container, command, ""));
  RETURN_IF_ERROR(Finish(container, exec));
  const double seconds = std::chrono::duration<double>(steady_clock::now() - begin).count();
  containerd::DeleteResponse deleted;
  RETURN_IF_ERROR(client_->Call(kTask, "Delete", Name(container, exec), &deleted, kTimeout));
  return seconds;
}

absl::StatusOr<ShimClient::Output> ShimClient::ExecAndRead(const std::string& container,
                                                           const std::vector<std::string>& command,
                                                           const std::string& fifo) {
  if (mkfifo(fifo.c_str(), 0600) != 0) return ErrnoStatus(errno, "make the FIFO " + fifo);
  // Opened like containerd does, before there is a writer.
  const UniqueFd reader(open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const auto run = [&]() -> absl::StatusOr<Output> {
    if (!reader) return ErrnoStatus(errno, "open the FIFO " + fifo);
    ASSIGN_OR_RETURN(const std::string exec, Start(container, command, fifo));
    Output output;
    steady_clock::time_point first, last;
    std::vector<char> buffer(64 * 1024);
    for (;;) {
      const ssize_t n = read(reader.get(), buffer.data(), buffer.size());
      if (n == 0) break;
      if (n < 0) {
        pollfd ready{reader.get(), POLLIN, 0};
        if (errno != EAGAIN && errno != EINTR) return ErrnoStatus(errno, "read the FIFO " + fifo);
        if (poll(&ready, 1, kSilenceMs) == 0)
          return MakeStatus(absl::StatusCode::kDeadlineExceeded, "the FIFO {} is silent", fifo);
        continue;
      }
      last = steady_clock::now();
      if (output.bytes == 0) first = last;
      output.bytes += static_cast<uint64_t>(n);
    }
    output.seconds = std::chrono::duration<double>(last - first).count();
    RETURN_IF_ERROR(Finish(container, exec));
    containerd::DeleteResponse deleted;
    RETURN_IF_ERROR(client_->Call(kTask, "Delete", Name(container, exec), &deleted, kTimeout));
    return output;
  };
  absl::StatusOr<Output> output = run();
  unlink(fifo.c_str());
  return output;
}

}  // namespace lamina::bench
