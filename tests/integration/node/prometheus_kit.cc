#include "tests/integration/node/prometheus_kit.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/file_system.h"
#include "base/status.h"
#include "base/subprocess.h"

namespace lamina::node {

using nlohmann::json;

Prometheus::Prometheus(const Laminad& laminad)
    : directory_(laminad.directory()),
      target_(laminad.rest_address()),
      address_("127.0.0.1:" + std::to_string(FreePort())) {}

Prometheus::~Prometheus() {
  if (pid_ == 0) return;
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

absl::Status Prometheus::Start() {
  // honor_labels as the chart's PodMonitor has it: a sandbox's series keep their pod and namespace.
  WriteFile(directory_ + "/prometheus.yml",
            fmt::format("global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: lamina\n  "
                        "honor_labels: true\n  static_configs: [{{targets: ['{}']}}]\n",
                        target_));
  SpawnOptions options;
  options.argv = {"prometheus", "--config.file=" + directory_ + "/prometheus.yml",
                  "--storage.tsdb.path=" + directory_ + "/tsdb", "--web.listen-address=" + address_,
                  "--log.level=warn"};
  options.log_path = directory_ + "/prometheus.log";
  ASSIGN_OR_RETURN(pid_, Spawn(options));
  return absl::OkStatus();
}

json Prometheus::Query(const std::string& expression, std::string* error) const {
  const auto result = RunCommand({"curl", "-s", "-G", "--max-time", "5", "--data-urlencode",
                                  "query=" + expression, "http://" + address_ + "/api/v1/query"},
                                 std::chrono::seconds(10));
  const json answer = json::parse(result.ok() ? result->output : "", nullptr, false);
  if (!answer.is_object()) return json::array();
  if (error != nullptr) *error = answer.value("error", "");
  return answer.value("status", "") == "success" ? answer["data"]["result"] : json::array();
}

std::string Prometheus::Log() const {
  return FileSystem::Real().Read(directory_ + "/prometheus.log", 1 << 20).value_or("");
}

}  // namespace lamina::node
