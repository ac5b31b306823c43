// Each question that a dashboard of the chart asks has an answer where pods run.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/file_system.h"
#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/integration/node/prometheus_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using nlohmann::json;

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
  return text;
}

// {panel's title, expression as Grafana asks it}, of every dashboard.
std::vector<std::pair<std::string, std::string>> Questions() {
  std::vector<std::pair<std::string, std::string>> out;
  const std::string directory = LAMINA_SOURCE_DIR "/charts/lamina/dashboards";
  FileSystem& fs = FileSystem::Real();
  for (const std::string& name : fs.List(directory).value_or(std::vector<std::string>())) {
    const json dashboard =
        json::parse(fs.Read(directory + "/" + name, 4 * kMiB).value_or(""), nullptr, false);
    EXPECT_TRUE(dashboard.is_object()) << name;
    for (const json& panel : dashboard.value("panels", json::array())) {
      for (const json& target : panel.value("targets", json::array())) {
        std::string expression = Replaced(target.value("expr", ""), "$__rate_interval", "20s");
        expression = Replaced(Replaced(std::move(expression), "$job", ".+"), "$instance", ".+");
        out.emplace_back(name + ", " + panel.value("title", ""), std::move(expression));
      }
    }
  }
  return out;
}

TEST(Dashboards, EachPanelShowsSomethingWherePodsRun) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const std::string layer = laminad.directory() + "/layer";
  ASSERT_OK(FileSystem::Real().MakeDirectories(layer, 0755));
  WriteFile(layer + "/file", "content");
  std::vector<std::unique_ptr<Sleeper>> vmms;
  for (const std::string id : {"one", "two"}) {
    const auto claim = laminad.Claim(id, 256 * kMiB);
    ASSERT_OK(claim);
    vmms.push_back(std::make_unique<Sleeper>());
    ASSERT_OK(laminad.Started(id, claim->generation(), *vmms.back()));
    laminad::v1::ReadyRequest ready;
    ready.set_sandbox_id(id);
    ready.set_generation(claim->generation());
    for (const char* phase : {"claim", "qemu", "total"}) (*ready.mutable_phase_seconds())[phase] = 0.5;
    laminad::v1::Empty empty;
    ASSERT_OK(laminad.Call("Ready", ready, &empty));
    const auto placed = laminad.Place(id, claim->generation(), {layer});
    ASSERT_OK(placed);
  }
  Prometheus prometheus(laminad);
  ASSERT_OK(prometheus.Start());
  const auto questions = Questions();
  ASSERT_FALSE(questions.empty());
  for (const auto& [panel, expression] : questions) {
    std::string error;
    EXPECT_TRUE(Eventually([&] { return !prometheus.Query(expression, &error).empty() || !error.empty(); }))
        << panel << ": no answer to " << expression << "\n"
        << prometheus.Log();
    EXPECT_EQ(error, "") << panel << ": " << expression;
  }
  EXPECT_EQ(prometheus.Query("lamina_no_such_family{job=~\".+\"}").size(), 0u);
}

}  // namespace
}  // namespace lamina::node
