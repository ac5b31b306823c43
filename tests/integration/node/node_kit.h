// A laminad of its own in a private folder, and what stands in for shims and VMs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ttrpc/client.h"
#include "proto/laminad.pb.h"

namespace lamina::node {

// A process that waits until it is ended; ended and reaped with the object.
class Sleeper {
 public:
  Sleeper();
  ~Sleeper() { End(); }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  void End();
  pid_t pid() const { return pid_; }
  uint64_t start_time() const { return start_time_; }

 private:
  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
};

struct HttpAnswer {
  int status = 0;
  std::string headers, body;
};

class Laminad {
 public:
  // `extra` is TOML for the config, whole sections other than paths and laminad; `paths` more lines of
  // [paths]; its folder is made in `parent`.
  explicit Laminad(
      const std::string& extra = "[memory]\ncapacity = \"64GiB\"\nreserve = 0\nmin_available = 0\n",
      const std::string& paths = "", const std::string& parent = "/tmp");
  ~Laminad();  // ends it, removes its folder

  // Until /readyz says so; failing that, an error with the end of its log. `wrapper`: a command that runs the
  // command that follows it, in the same process.
  absl::Status Start(const std::vector<std::string>& wrapper = {});
  // With the signal; waits for its end and gives its exit code (128 + signal when killed).
  int Stop(int signal);
  pid_t pid() const { return pid_; }

  const std::string& directory() const { return directory_; }
  std::string config_path() const { return directory_ + "/config.toml"; }
  const std::string& rest_address() const { return rest_address_; }
  std::string Log() const;

  // As a shim; a connection of its own per call of Connect().
  std::unique_ptr<ttrpc::Client> Connect() const;
  absl::Status Call(const char* method, const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* response) const;
  // The test's own process is the shim.
  laminad::v1::ClaimRequest ClaimOf(const std::string& id, uint64_t bytes) const;
  absl::StatusOr<laminad::v1::ClaimResponse> Claim(const std::string& id, uint64_t bytes) const;
  absl::Status Started(const std::string& id, uint64_t generation, const Sleeper& vmm) const;
  absl::Status Release(const std::string& id, uint64_t generation) const;
  absl::StatusOr<laminad::v1::PlaceLayersResponse> Place(const std::string& id, uint64_t generation,
                                                         const std::vector<std::string>& sources,
                                                         uint32_t free_slots = 4,
                                                         const std::vector<std::string>& attached = {}) const;

  HttpAnswer Http(const std::string& path, const std::vector<std::string>& curl_arguments = {}) const;

 private:
  std::string directory_, rest_address_;
  pid_t pid_ = 0;
};

struct CliAnswer {
  int exit_code = 0;
  std::string output;  // stdout and stderr
};
// The real `lamina`; with a laminad, on its config.
CliAnswer RunLamina(const std::vector<std::string>& arguments, const Laminad* laminad = nullptr);

// A loopback port that was free just now.
int FreePort();
// Asks again, a little later each time, until it is so or the time is over.
bool Eventually(const std::function<bool()>& holds, std::chrono::seconds timeout = std::chrono::seconds(20));
void WriteFile(const std::string& path, const std::string& content);

}  // namespace lamina::node
