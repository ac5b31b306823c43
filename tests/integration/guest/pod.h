// Containers of busybox in the shared guest: specs, layers, processes with captured output.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/guest/guest_vm.h"

namespace lamina::guest {

// What arrives on one stream, until its end.
class Capture {
 public:
  Capture(GuestVm& vm, uint32_t stream);
  ~Capture();
  // All of it once the stream has ended; fails the test after `timeout`.
  std::string ToEnd(std::chrono::seconds timeout = std::chrono::seconds(30));
  // What has come as soon as it contains `text`; fails the test after 30 s.
  std::string UntilContains(const std::string& text);

 private:
  bool ReadMore(std::chrono::steady_clock::time_point deadline);
  UniqueFd fd_;
  std::string text_;
  bool ended_ = false;
};

// A layer id: the hex digits of `number`, padded.
std::string LayerId(uint64_t number);

// /bin/busybox with its applets as a layer, mounted once in the shared guest.
const std::string& BusyboxLayer(GuestVm& vm);
// A directory with the content of the busybox layer on the host.
const std::string& BusyboxDirectory();
// Mounts `directory` as a new layer from the arena and answers its id.
std::string MountDirectory(GuestVm& vm, const std::string& directory);

struct ContainerOptions {
  std::vector<std::string> args = {"/bin/true"};
  std::vector<std::string> layers = {};  // topmost first; empty: the busybox layer
  bool terminal = false;
  bool stdin_stream = false;
  std::string resources_json = {};  // LinuxResources
  std::function<void(std::string& spec_json)> change_spec = {};
};

std::string SpecJson(const ContainerOptions& options);
std::string ProcessJson(const std::vector<std::string>& args);

// One container; deleted by the destructor.
class TestContainer {
 public:
  TestContainer(GuestVm& vm, const ContainerOptions& options);
  ~TestContainer();

  const std::string& id() const { return id_; }
  absl::Status created() const { return created_; }
  absl::Status Start(const std::string& exec_id = "");
  agent::v1::WaitProcessResponse Wait(const std::string& exec_id = "");
  absl::Status Signal(int signal, const std::string& exec_id = "", bool all = false);
  absl::Status Delete(const std::string& exec_id = "");
  Capture& out() { return *out_; }
  Capture& err() { return *err_; }
  uint32_t in_stream() const { return in_stream_; }
  uint32_t out_stream() const { return out_stream_; }
  agent::v1::ProcessRequest Request(const std::string& exec_id = "") const;
  // Create, start, wait, output.
  struct Result {
    absl::Status status;
    uint32_t exit_status = 0;
    std::string out, err;
  };
  Result Exec(const std::vector<std::string>& args, const std::string& input = "");

 private:
  GuestVm& vm_;
  std::string id_;
  absl::Status created_;
  uint32_t in_stream_ = 0, out_stream_ = 0;
  std::unique_ptr<Capture> out_, err_;
  int execs_ = 0;
};

// Sends `text` on the stream and, if asked, its end.
void SendInput(GuestVm& vm, uint32_t stream, const std::string& text, bool end);

}  // namespace lamina::guest
