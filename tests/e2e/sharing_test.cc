// Who shares an arena, as the configured domain says: seen in laminad's answers and in the QEMUs' mappings.
#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <tuple>

#include "persist/state_store.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;
using ::testing::IsEmpty;
using ::testing::IsSubsetOf;

std::set<std::string> Common(const std::set<std::string>& a, const std::set<std::string>& b) {
  std::set<std::string> common;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::inserter(common, common.end()));
  return common;
}

// The arenas' files that the pod's QEMU has mapped.
std::set<std::string> MappedArenas(const std::string& pod) {
  persist::StateStore store(FileSystem::Real(), TestNode().state_dir());
  const auto state = store.Load(pod);
  EXPECT_OK(state.status());
  std::set<std::string> paths;
  if (!state.ok()) return paths;
  std::ifstream maps(fmt::format("/proc/{}/maps", state->vmm.pid));
  const std::string prefix = TestNode().state_dir() + "/layers/";
  for (std::string line; std::getline(maps, line);) {
    const size_t at = line.find(prefix);
    if (at == std::string::npos) continue;
    EXPECT_EQ(line.substr(line.find(' ') + 1, 2), "r-") << "a guest must not write to an arena: " << line;
    paths.insert(line.substr(at));
  }
  return paths;
}

json Rest(const std::string& path, const char* list) {
  const auto body = TestNode().Rest(path);
  EXPECT_OK(body.status());
  return json::parse(body.value_or("{}"), nullptr, false).value(list, json::array());
}

// The domain, whether two pods of a namespace share, whether pods of two namespaces do.
class SharingTest : public ::testing::TestWithParam<std::tuple<const char*, bool, bool>> {
 protected:
  void TearDown() override {
    EXPECT_OK(TestNode().RemoveAllPods());
    EXPECT_THAT(TestNode().Leftovers(In(std::chrono::seconds(30))), IsEmpty());
  }
};

TEST_P(SharingTest, GoesAsFarAsTheDomainAndNoFurther) {
  const auto& [domain, in_namespace, beyond] = GetParam();
  ASSERT_OK(TestNode().StopLaminad());
  ASSERT_OK(TestNode().Reconfigure({{"layers.sharing", fmt::format("\"{}\"", domain)}}));
  ASSERT_OK(TestNode().StartLaminad());

  struct Pod {
    std::string id;
    std::set<std::string> mapped;
  };
  std::map<std::string, Pod> pods;
  for (const auto& [name, name_space] : std::vector<std::pair<std::string, std::string>>{
           {"shop-1", "shop"}, {"shop-2", "shop"}, {"bank-1", "bank"}}) {
    PodSpec spec;
    spec.name = name;
    spec.namespace_name = name_space;
    ASSERT_OK_AND_ASSIGN(pods[name].id, Cri().RunPod(spec));
    ASSERT_OK_AND_ASSIGN(const std::string container, Cri().RunContainer(pods[name].id, Sleeper()));
    ASSERT_OK_AND_ASSIGN(const std::string text, ShellIn(container, "cat /srv/hello"));
    EXPECT_EQ(text, "hello from an image\n");
  }
  std::map<std::string, std::string> path_of, domain_of;
  for (const json& arena : Rest("/v1/arenas", "arenas")) {
    path_of[arena["id"]] = arena["path"];
    domain_of[arena["path"]] = arena["domain"];
  }
  for (auto& [name, pod] : pods) {
    pod.mapped = MappedArenas(pod.id);
    std::set<std::string> used, ids;
    for (const json& layer : Rest("/v1/layers", "layers")) {
      const auto& users = layer["users"];
      if (std::find(users.begin(), users.end(), pod.id) != users.end()) {
        used.insert(path_of[layer["arena"]]);
        ids.insert(layer["id"]);
      }
    }
    EXPECT_FALSE(ids.empty()) << name;
    EXPECT_THAT(used, IsSubsetOf(pod.mapped)) << name << ": what laminad says is what QEMU has";
    std::set<std::string> domains;
    for (const std::string& path : pod.mapped) domains.insert(domain_of[path]);
    EXPECT_EQ(domains.size(), 1U) << name << " has arenas of several domains";
  }
  EXPECT_EQ(!Common(pods["shop-1"].mapped, pods["shop-2"].mapped).empty(), in_namespace);
  EXPECT_EQ(!Common(pods["shop-1"].mapped, pods["bank-1"].mapped).empty(), beyond);
  EXPECT_EQ(!Common(pods["shop-2"].mapped, pods["bank-1"].mapped).empty(), beyond);
}

INSTANTIATE_TEST_SUITE_P(Domains, SharingTest,
                         ::testing::Values(std::tuple("namespace", true, false),
                                           std::tuple("pod", false, false), std::tuple("node", true, true)),
                         [](const auto& info) { return std::string(std::get<0>(info.param)); });

}  // namespace
}  // namespace lamina::e2e
